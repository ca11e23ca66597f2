// SPDX-License-Identifier: Apache-2.0
// diversity: exact greedy max-min selection (DivPrune, arXiv 2503.02175; ZSPAPrune, 2510.17197, eq. 8).
// Algorithm   : blocked greedy with lazy refresh. A running maximum only grows, so a stale key is a
//               lower bound. Per pass:
//               1. bring the `refresh` smallest stale rows up to date with the picks they missed;
//               2. candidates = the smallest of those; bound = the smallest key of all others;
//               3. pick inside the candidates, with their own Gram matrix, while a pick is below
//                  the bound. Keys are (value, index): picks equal those of one-at-a-time greedy.
//               Related: Minoux 1978 (lazy greedy), Kaolin's blocked farthest point sampling.
// Inputs      : tokens [N, D], inverse norms [N], weights [N], seeds [S]   Outputs: picks [k] int64
// Work        : 0.3 to 0.8 of the N k dots of the plain greedy, without the seed's; no N x N matrix.
// Mapping     : refresh and Gram are products of 16-row units with packed columns, over all threads.
// Numerics    : float32; dot * (inv_i * inv_j), the same bits for a pair on every path.
// Deterministic: yes, for any number of threads.
#include "diversity.h"

#include <algorithm>

#include "diversity_config.h"
#include "lazy.h"

namespace zspa::cpu {
namespace {

class Greedy {
 public:
  Greedy(const Tokens& tokens, const DiversityRequest& request, int threads, Workspace& workspace,
         Stats& stats, int64_t* out)
      : tokens_(tokens),
        request_(request),
        threads_(threads),
        workspace_(workspace),
        stats_(stats),
        out_(out),
        inv_(request.inv, request.inv + tokens.N),
        closest_(size_t(tokens.N), -1.0f),
        seen_(size_t(tokens.N), 0),
        open_(size_t(tokens.N), 1) {}

  void run() {
    start();
    if (all_pairs_)
      pick_from_all_pairs();
    else
      pick_in_blocks(block_sizes(tokens_.N), request_.k, taken_,
                     [&](int64_t rows, int64_t candidates) { return pass(rows, candidates); });
    std::fill(out_ + taken_, out_ + request_.k, int64_t(-1));
  }

 private:
  // Who may be picked, the seeds, and the first pick where there is no valid seed.
  void start() {
    for (int64_t i = 0; i < tokens_.N; ++i) {
      if (request_.weights && !(request_.weights[i] >= 0.0f && request_.weights[i] < kInf))
        inv_[i] = kMaskedOut;
      if (inv_[i] == kMaskedOut) open_[i] = 0;
      if (inv_[i] == kNoDirection) closest_[i] = 1.0f;
    }
    workspace_.picks.reset(tokens_.dtype, tokens_.D, request_.num_seeds + request_.k);
    column_inv_.reserve(size_t(request_.num_seeds + request_.k));
    bool seeded = false;
    for (int64_t s = 0; s < request_.num_seeds; ++s) {
      const int64_t seed = request_.seeds[s];
      if (seed < 0 || seed >= tokens_.N || inv_[seed] == kMaskedOut) continue;
      seeded = true;
      if (open_[seed]) select(seed);
    }
    if (request_.k == 0) return;
    if (!seeded) {
      const int64_t first = request_.weights ? heaviest() : seed();
      if (first < 0) return;
      all_pairs_ = !request_.weights && tokens_.N <= kFewTokens;
      out_[taken_++] = first;
      select(first);
    }
    if (taken_ < request_.k && !all_pairs_) update_all();
  }

  // Few tokens and no seeds: the search for the first pick left the cosines of all pairs behind.
  void pick_from_all_pairs() {
    const std::vector<int>& rows = workspace_.rows;
    const int64_t n = int64_t(rows.size());
    int64_t token = out_[0];
    while (taken_ < request_.k) {
      const auto at = std::lower_bound(rows.begin(), rows.end(), int(token));
      if (at != rows.end() && *at == token) {
        const float* cosines = workspace_.gram.data() + (at - rows.begin()) * n;
        for (int64_t c = 0; c < n; ++c)
          if (rows[size_t(c)] != token && cosines[c] > closest_[size_t(rows[size_t(c)])])
            closest_[size_t(rows[size_t(c)])] = cosines[c];
      }
      Key best = kNoKey;
      for (int64_t i = 0; i < tokens_.N; ++i)
        if (open_[i]) best = std::min(best, key(i));
      if (best == kNoKey) return;
      token = index_of(best);
      open_[token] = 0;
      out_[taken_++] = token;
    }
  }

  int64_t seed() { return divprune_seed(tokens_, inv_.data(), threads_, workspace_, stats_); }

  int64_t heaviest() const {
    Key best = kNoKey;
    for (int64_t i = 0; i < tokens_.N; ++i)
      if (open_[i]) best = std::min(best, make_key(-request_.weights[i], i));
    return best == kNoKey ? -1 : index_of(best);
  }

  // Token i is selected: it may not be picked again, and it becomes a column.
  void select(int64_t i) {
    open_[i] = 0;
    if (inv_[i] == kNoDirection) return;
    workspace_.picks.put(int64_t(column_inv_.size()), tokens_.row(i));
    column_inv_.push_back(inv_[i]);
  }

  int64_t columns() const { return int64_t(column_inv_.size()); }

  Key key(int64_t i) const { return key(i, closest_[i]); }
  Key key(int64_t i, float closest) const {
    return make_key(request_.weights ? -(request_.weights[i] * (1.0f - closest)) : closest, i);
  }

  void update_all() {
    std::vector<int>& rows = workspace_.rows;
    rows.clear();
    for (int64_t i = 0; i < tokens_.N; ++i)
      if (open_[i] && inv_[i] != kNoDirection) rows.push_back(int(i));
    split_units(int64_t(rows.size()), workspace_.units);
    stats_.dots += int64_t(rows.size()) * columns();
    fold();
  }

  // Brings the listed rows up to date. The columns that some rows of a unit have seen already
  // change no maximum.
  void refresh(std::vector<int>& rows) {
    rows.erase(
        std::remove_if(rows.begin(), rows.end(),
                       [&](int i) { return seen_[i] == columns() || inv_[i] == kNoDirection; }),
        rows.end());
    units_by_seen(rows, seen_, columns(), workspace_.units);
    for (const Unit& unit : workspace_.units)
      stats_.dots += int64_t(unit.end - unit.begin) * (columns() - unit.first);
    fold();
  }

  // closest = max(closest, cosine to the columns of the unit) for the rows of all units.
  void fold() {
    const std::vector<int>& rows = workspace_.rows;
    for_each_tile(tokens_, rows, workspace_.units, workspace_.picks, columns(), threads_,
                  [&](int, const int* ids, int count, int64_t c0, int64_t c1, const float* dots) {
                    for (int i = 0; i < count; ++i) {
                      const float* row = dots + i * kUnitColumns;
                      const float inv = inv_[ids[i]];
                      float closest = closest_[ids[i]];
                      for (int64_t c = c0; c < c1; ++c) {
                        const float cosine = row[c - c0] * (inv * column_inv_[size_t(c)]);
                        closest = cosine > closest ? cosine : closest;
                      }
                      closest_[ids[i]] = closest;
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

  // Greedy inside workspace_.keys while the best key is below the bound.
  void pick_among(Key bound) {
    std::vector<Key>& keys = workspace_.keys;
    std::vector<int>& rows = workspace_.rows;
    rows.clear();
    for (Key k : keys) rows.push_back(int(index_of(k)));
    std::sort(rows.begin(), rows.end());
    const int64_t n = int64_t(rows.size());
    keys.resize(size_t(n));
    std::vector<float> closest(static_cast<size_t>(n));
    for (int64_t c = 0; c < n; ++c) {
      closest[size_t(c)] = closest_[rows[size_t(c)]];
      keys[size_t(c)] = key(rows[size_t(c)]);
    }
    if (n > 1 && taken_ + 1 < request_.k) {
      workspace_.gram.resize(size_t(n * n));
      gram(tokens_, rows, inv_.data(), threads_, workspace_.candidates, workspace_.gram.data());
      stats_.dots += n * (n - 1) / 2;
    }
    while (taken_ < request_.k) {
      const int64_t best = std::min_element(keys.begin(), keys.end()) - keys.begin();
      if (keys[size_t(best)] >= bound) return;
      const int token = rows[size_t(best)];
      out_[taken_++] = token;
      select(token);
      keys[size_t(best)] = kNoKey;
      if (taken_ == request_.k || inv_[token] == kNoDirection) continue;
      const float* cosines = workspace_.gram.data() + best * n;
      for (int64_t c = 0; c < n; ++c) {
        if (keys[size_t(c)] == kNoKey || !(cosines[c] > closest[size_t(c)])) continue;
        closest[size_t(c)] = cosines[c];
        keys[size_t(c)] = key(rows[size_t(c)], cosines[c]);
      }
    }
  }

  const Tokens& tokens_;
  const DiversityRequest& request_;
  const int threads_;
  Workspace& workspace_;
  Stats& stats_;
  int64_t* out_;
  int64_t taken_ = 0;
  bool all_pairs_ = false;  // workspace_ has the cosines of all pairs
  std::vector<float> inv_;
  std::vector<float> closest_;     // largest cosine to the columns seen so far
  std::vector<int64_t> seen_;      // columns folded into closest_
  std::vector<char> open_;         // may still be picked
  std::vector<float> column_inv_;  // of the columns of workspace_.picks
};

}  // namespace

void diversity(const Tokens& tokens, const DiversityRequest& request, int threads,
               Workspace& workspace, Stats& stats, int64_t* out) {
  Greedy(tokens, request, threads, workspace, stats, out).run();
}

}  // namespace zspa::cpu
