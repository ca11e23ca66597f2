// SPDX-License-Identifier: Apache-2.0
// dpp: exact greedy MAP of a determinantal point process with kernel w_i w_j cos(i, j)
// (Chen, Zhang and Zhou 2018): Cholesky factorisation that pivots on the largest residual.
// Algorithm   : blocked greedy with lazy refresh, as in diversity.cpp. A residual only falls, so a
//               stale one is an upper bound. Per pass:
//               1. bring the `refresh` largest stale rows up to date: cosines with the picks they
//                  missed, then forward substitution;
//               2. candidates = the largest of those; bound = the largest residual of all others;
//               3. pick inside the candidates, with their own Gram matrix, while a pick beats the
//                  bound. Picks equal those of one-at-a-time greedy.
//               Related: LAPACK xPSTRF, block pivoting of RPCholesky (Epperly, Tropp and Webber).
// Inputs      : tokens [N, D], inverse norms [N], weights [N]      Outputs: picks [k] int64
// Work        : 0.6 to 1 of the N k dots, N k^2 / 2 multiply-adds; no N x N matrix, but the factor,
//               N x k floats.
// Mapping     : products of 16-row units with packed columns; substitution with rows as lanes.
// Numerics    : float32. Weights scale nothing but the comparison: the Schur complement of W C W is
//               W S W. An element of the factor has the same bits whichever pass makes it.
// Deterministic: yes, for any number of threads.
#include "dpp.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "dpp_config.h"
#include "lazy.h"

namespace zspa::cpu {
namespace {

// The residual of a row after it got the entry `c` of the factor.
inline float shrink(float residual, float c) {
  residual -= c * c;
  return residual <= kDependent ? 0.0f : residual;
}

class Greedy {
 public:
  Greedy(const Tokens& tokens, const DppRequest& request, int threads, Workspace& workspace,
         Stats& stats, int64_t* out)
      : tokens_(tokens),
        request_(request),
        threads_(threads),
        workspace_(workspace),
        stats_(stats),
        out_(out),
        inv_(request.inv, request.inv + tokens.N),
        residual_(size_t(tokens.N), 1.0f),
        seen_(size_t(tokens.N), 0),
        open_(size_t(tokens.N), 1) {}

  void run() {
    start();
    pick_in_blocks(dpp_block_sizes(tokens_.N), request_.k, taken_,
                   [&](int64_t rows, int64_t candidates) { return pass(rows, candidates); });
    std::fill(out_ + taken_, out_ + request_.k, int64_t(-1));
  }

 private:
  // Who may be picked, and the first pick: until then every residual is up to date.
  void start() {
    Key best = kNoKey;
    for (int64_t i = 0; i < tokens_.N; ++i) {
      if (request_.weights && !(request_.weights[i] >= 0.0f && request_.weights[i] < kInf))
        inv_[i] = kMaskedOut;
      if (inv_[i] == kMaskedOut) open_[i] = 0;
      if (inv_[i] == kNoDirection) residual_[i] = 0.0f;
      if (open_[i]) best = std::min(best, key(i));
    }
    if (request_.k == 0 || best == kNoKey) return;
    workspace_.picks.reset(tokens_.dtype, tokens_.D, request_.k);
    factor_.reset(new float[size_t(tokens_.N * request_.k)]);
    tiles_.resize(size_t(threads_));
    take(index_of(best));
    if (taken_ < request_.k && columns() > 0) update_all();
  }

  // Token i is picked; unless it depends on the picks before it, it becomes a column. Its row of the
  // factor is complete.
  void take(int64_t i) {
    out_[taken_++] = i;
    open_[i] = 0;
    if (residual_[i] == 0.0f) return;
    workspace_.picks.put(columns(), tokens_.row(i));
    column_inv_.push_back(inv_[i]);
    pivots_.push_back(factor(i));
    scales_.push_back(1.0f / std::sqrt(residual_[i]));
  }

  int64_t columns() const { return int64_t(column_inv_.size()); }
  float* factor(int64_t i) { return factor_.get() + i * request_.k; }

  // The square root, because the square of a weight may leave the range of a float.
  Key key(int64_t i) const {
    const float value =
        request_.weights ? request_.weights[i] * std::sqrt(residual_[i]) : residual_[i];
    return make_key(-value, i);
  }

  void update_all() {
    std::vector<int>& rows = workspace_.rows;
    rows.clear();
    for (int64_t i = 0; i < tokens_.N; ++i)
      if (open_[i] && residual_[i] > 0.0f) rows.push_back(int(i));
    split_units(int64_t(rows.size()), workspace_.units);
    fold();
  }

  void refresh(std::vector<int>& rows) {
    rows.erase(std::remove_if(rows.begin(), rows.end(),
                              [&](int i) { return seen_[i] == columns() || residual_[i] == 0.0f; }),
               rows.end());
    units_by_seen(rows, seen_, columns(), workspace_.units);
    fold();
  }

  // Rows of the factor -> tile [columns][kUnitRows]; lanes without a row are 0.
  void load_tile(const int* ids, int count, int64_t columns, float* tile) {
    for (int64_t s0 = 0; s0 < columns; s0 += kUnitRows) {
      const int64_t wide = std::min<int64_t>(kUnitRows, columns - s0);
      for (int lane = 0; lane < kUnitRows; ++lane) {
        const float* from = lane < count ? factor(ids[lane]) + s0 : nullptr;
        float* to = tile + s0 * kUnitRows + lane;
        for (int64_t s = 0; s < wide; ++s) to[s * kUnitRows] = from ? from[s] : 0.0f;
      }
    }
  }

  // Columns [unit.first, columns()) of the factor for the rows of all units, and their residuals.
  void fold() {
    const std::vector<int>& rows = workspace_.rows;
    for (const Unit& unit : workspace_.units)
      stats_.dots += (unit.end - unit.begin) * (columns() - unit.first);
    for_each_tile(
        tokens_, rows, workspace_.units, workspace_.picks, columns(), threads_,
        [&](int thread, const int* ids, int count, int64_t c0, int64_t c1, const float* dots) {
          std::vector<float>& memory = tiles_[size_t(thread)];
          memory.resize(size_t(request_.k * kUnitRows));
          float* tile = memory.data();
          load_tile(ids, count, c0, tile);
          for (int64_t c = c0; c < c1; ++c)
            for (int lane = 0; lane < kUnitRows; ++lane)
              tile[c * kUnitRows + lane] = lane < count
                                               ? dots[lane * kUnitColumns + (c - c0)] *
                                                     (inv_[ids[lane]] * column_inv_[size_t(c)])
                                               : 0.0f;
          kernels().eliminate(tile, c0, c1, pivots_.data(), scales_.data());
          for (int lane = 0; lane < count; ++lane) {
            const int i = ids[lane];
            for (int64_t c = c0; c < c1; ++c) {
              const float entry = tile[c * kUnitRows + lane];
              factor(i)[c] = entry;
              // Behind a residual of 0 errors grow, and may leave the range of a float.
              if (c >= seen_[i] && residual_[i] > 0.0f) residual_[i] = shrink(residual_[i], entry);
            }
          }
        });
    for (int i : rows) seen_[i] = columns();
  }

  // One pass. Returns the number of candidates, -1 when no token is left.
  int64_t pass(int64_t refresh_rows, int64_t candidates) {
    const int64_t offered = lazy_pass(
        open_, workspace_.keys, workspace_.rows, refresh_rows, candidates,
        [&](int64_t i) { return key(i); }, [&](std::vector<int>& rows) { refresh(rows); },
        [&](Key bound) { pick_among(bound); });
    if (offered >= 0) ++stats_.passes;
    return offered;
  }

  // Greedy inside workspace_.keys, whose rows are up to date, while the best key is below the bound.
  void pick_among(Key bound) {
    std::vector<Key>& keys = workspace_.keys;
    std::vector<int>& rows = workspace_.rows;
    rows.clear();
    for (Key k : keys) rows.push_back(int(index_of(k)));
    std::sort(rows.begin(), rows.end());
    const int64_t n = int64_t(rows.size());
    bool independent = false;
    for (int64_t c = 0; c < n; ++c) {
      keys[size_t(c)] = key(rows[size_t(c)]);
      independent = independent || residual_[rows[size_t(c)]] > 0.0f;
    }
    const bool chained = independent && n > 1 && taken_ + 1 < request_.k;
    const int64_t base = columns();
    if (chained) open_chain();
    while (taken_ < request_.k) {
      const int64_t best = std::min_element(keys.begin(), keys.end()) - keys.begin();
      if (keys[size_t(best)] >= bound) break;
      const int token = rows[size_t(best)];
      keys[size_t(best)] = kNoKey;
      if (chained) store_row(best, base);
      const int64_t before = columns();
      take(token);
      if (chained && columns() > before && taken_ < request_.k) extend_chain(best);
    }
    if (!chained || taken_ == request_.k) return;
    for (int64_t c = 0; c < n; ++c) {
      if (!open_[rows[size_t(c)]]) continue;
      store_row(c, base);
      seen_[rows[size_t(c)]] = columns();
    }
  }

  // Tiles of the candidates workspace_.rows, with room for a column a pick, and their Gram matrix.
  void open_chain() {
    const std::vector<int>& rows = workspace_.rows;
    const int64_t n = int64_t(rows.size());
    tile_size_ = (columns() + std::min(n, request_.k - taken_)) * kUnitRows;
    chain_.resize(size_t((n + kUnitRows - 1) / kUnitRows * tile_size_));
    for (int64_t i = 0; i < n; i += kUnitRows)
      load_tile(rows.data() + i, int(std::min<int64_t>(kUnitRows, n - i)), columns(),
                chain_.data() + i / kUnitRows * tile_size_);
    workspace_.gram.resize(size_t(n * n));
    gram(tokens_, rows, inv_.data(), threads_, workspace_.candidates, workspace_.gram.data());
    for (int64_t i = 0; i < n; ++i) workspace_.gram[size_t(i * n + i)] = 1.0f;
    stats_.dots += n * (n - 1) / 2;
  }

  // The newest column, candidate `best`, for all candidates.
  void extend_chain(int64_t best) {
    std::vector<Key>& keys = workspace_.keys;
    const std::vector<int>& rows = workspace_.rows;
    const int64_t n = int64_t(rows.size()), column = columns() - 1;
    const float* cosines = workspace_.gram.data() + best * n;
    for (int64_t i = 0; i < n; i += kUnitRows) {
      float* tile = chain_.data() + i / kUnitRows * tile_size_;
      float* entries = tile + column * kUnitRows;
      const int64_t count = std::min<int64_t>(kUnitRows, n - i);
      std::copy(cosines + i, cosines + i + count, entries);
      std::fill(entries + count, entries + kUnitRows, 0.0f);
      kernels().eliminate(tile, column, column + 1, pivots_.data(), scales_.data());
      for (int64_t c = i; c < i + count; ++c) {
        if (keys[size_t(c)] == kNoKey) continue;
        float& residual = residual_[rows[size_t(c)]];
        if (residual > 0.0f) residual = shrink(residual, entries[c - i]);
        keys[size_t(c)] = key(rows[size_t(c)]);
      }
    }
  }

  // What candidate `c` got since column `base` -> its row of the factor.
  void store_row(int64_t c, int64_t base) {
    const float* tile = chain_.data() + c / kUnitRows * tile_size_ + c % kUnitRows;
    float* row = factor(workspace_.rows[size_t(c)]);
    for (int64_t s = base; s < columns(); ++s) row[s] = tile[s * kUnitRows];
  }

  const Tokens& tokens_;
  const DppRequest& request_;
  const int threads_;
  Workspace& workspace_;
  Stats& stats_;
  int64_t* out_;
  int64_t taken_ = 0;
  std::vector<float> inv_;
  std::vector<float> residual_;            // of the kernel without weights, after the columns seen
  std::vector<int64_t> seen_;              // columns of the factor a row has
  std::vector<char> open_;                 // may still be picked
  std::unique_ptr<float[]> factor_;        // [N, k], written up to seen_
  std::vector<float> column_inv_;          // of the columns of workspace_.picks
  std::vector<const float*> pivots_;       // their rows of the factor
  std::vector<float> scales_;              // 1 / square root of their residuals
  std::vector<std::vector<float>> tiles_;  // [k][kUnitRows] of each thread
  std::vector<float> chain_;               // tiles of the candidates of a pass
  int64_t tile_size_ = 0;                  // of chain_
};

}  // namespace

void dpp(const Tokens& tokens, const DppRequest& request, int threads, Workspace& workspace,
         Stats& stats, int64_t* out) {
  Greedy(tokens, request, threads, workspace, stats, out).run();
}

}  // namespace zspa::cpu
