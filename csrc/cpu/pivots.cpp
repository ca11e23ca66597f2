// SPDX-License-Identifier: Apache-2.0
// by_pivots: a few pivots, and the tokens that resemble each of them least (DART, arXiv 2502.11494).
// Algorithm   : one read of the tokens for the norms that choose the pivots, another for the cosines
//               with all of these in float32. A pivot takes what is below the cosine of the last one it
//               takes; those so near to that cosine that float32 cannot decide are compared in double.
// Inputs      : rows [N, D], keys [N, C], words [M, D]     Outputs: norms [N], tokens [kept]
// Work        : N D (P + 1) for P pivots. Where all tokens are about as similar, as much in double.
// Numerics    : norms in double, in an order that depends on the width alone, rounded once. Decides as
//               cosines in double on a grid of 2^-40 do, which is coarser than their error.
// Deterministic: yes, for any number of threads.
#include "pivots.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "combined.h"
#include "exact.h"
#include "topk.h"

namespace zspa::cpu {
namespace {

constexpr int64_t kRows = 32;         // of a task
constexpr int64_t kCostOfDouble = 4;  // times that of a multiply-add in float
constexpr float kMostSimilar = 2.0f;  // as which a token without direction counts, to every pivot

struct Pivot {
  const void* row;
  DType dtype;
  float inv;  // one over its length, or kNoDirection
};

// Inverse lengths and L1 norms of rows, these of `keys` if there are any.
void rate(const Tokens& rows, const uint8_t* mask, const Tokens* keys, int threads, float* inv,
          float* norms) {
  const Tokens& measured = keys ? *keys : rows;
  const int64_t work = rows.N * (rows.D + measured.D) * kCostOfDouble;
  parallel_for(threads_for(work, threads), (rows.N + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < std::min(rows.N, (task + 1) * kRows); ++i) {
      const bool real = !mask || mask[i];
      inv[i] = real ? inverse_norm(squared_length(rows.dtype, rows.row(i), rows.D)) : kMaskedOut;
      if (keys && !(squared_length(keys->dtype, keys->row(i), keys->D) <= kHugeRow))
        inv[i] = kMaskedOut;
      if (inv[i] == kMaskedOut)
        norms[i] = std::numeric_limits<float>::quiet_NaN();
      else if (inv[i] == kNoDirection)
        norms[i] = -1.0f;
      else
        norms[i] = float(kernels().absolute_sum(measured.dtype, measured.row(i), measured.D));
    }
  });
}

// The pivots among the words, by falling norm: those without a direction are none.
std::vector<Pivot> words_of(const Prompt& prompt, int64_t most, int threads) {
  const Tokens rows{prompt.data, prompt.dtype, prompt.M, prompt.D, prompt.row_bytes};
  std::vector<float> inv(size_t(rows.N)), norms(size_t(rows.N));
  rate(rows, prompt.mask, nullptr, threads, inv.data(), norms.data());
  for (float& norm : norms)
    if (norm < 0.0f) norm = std::numeric_limits<float>::quiet_NaN();
  std::vector<int64_t> best(size_t(std::min(most, rows.N)));
  best.resize(
      size_t(top_k(Rated<float>{norms.data(), rows.N}, int64_t(best.size()), false, best.data())));
  std::vector<Pivot> pivots;
  for (const int64_t m : best) pivots.push_back({rows.row(m), rows.dtype, inv[size_t(m)]});
  return pivots;
}

class Similar {
 public:
  Similar(const Tokens& tokens, const float* inv, const std::vector<Pivot>& pivots,
          const std::vector<int>& rows, int threads)
      : tokens_(tokens),
        inv_(inv),
        pivots_(pivots),
        threads_(threads),
        slack_(cosine_slack(tokens.D)),
        cosines_(pivots.size() * size_t(tokens.N)),
        squares_(size_t(tokens.N), 0.0) {
    size_t own = 0;  // pivots of the tokens' dtype: all, or those that are tokens
    while (own < pivots.size() && pivots[own].dtype == tokens.dtype) ++own;
    multiply_first(rows, int64_t(own));
    for (size_t p = own; p < pivots.size(); ++p) multiply(rows, p);
  }

  // Takes `count` of `left`, which ascends, out of it: those least similar to a pivot, ascending.
  std::vector<int> take(size_t pivot, size_t count, std::vector<int>& left) {
    std::vector<int> taken, near;
    if (count >= left.size()) left.swap(taken);
    if (count == 0 || left.empty()) return taken;
    const float* cosines = cosines_.data() + pivot * size_t(tokens_.N);
    std::vector<float> order;
    for (const int i : left) order.push_back(cosines[i]);
    std::nth_element(order.begin(), order.begin() + (count - 1), order.end());
    const double edge = order[count - 1];
    for (const int i : left) {
      if (cosines[i] < edge - 2 * slack_)
        taken.push_back(i);
      else if (cosines[i] <= edge + 2 * slack_)
        near.push_back(i);
    }
    const size_t missing = count - taken.size();
    if (missing < near.size()) near = least(pivots_[pivot], near, missing);
    taken.insert(taken.end(), near.begin(), near.end());
    std::sort(taken.begin(), taken.end());
    std::vector<int> rest;
    std::set_difference(left.begin(), left.end(), taken.begin(), taken.end(),
                        std::back_inserter(rest));
    left.swap(rest);
    return taken;
  }

 private:
  void set(size_t pivot, int64_t token, float dot) {
    const float inv = inv_[token];
    cosines_[pivot * size_t(tokens_.N) + size_t(token)] =
        inv == kNoDirection ? kMostSimilar : dot * (inv * pivots_[pivot].inv);
  }

  // `rows` with the first pivots, which are of their dtype, as columns of a product.
  void multiply_first(const std::vector<int>& rows, int64_t count) {
    Panel panel;
    std::vector<Unit> units;
    split_units(int64_t(rows.size()), units);
    panel.reset(tokens_.dtype, tokens_.D, count);
    for (int64_t p = 0; p < count; ++p) panel.put(p, pivots_[size_t(p)].row);
    for_each_tile(tokens_, rows, units, panel, count, threads_,
                  [&](int, const int* ids, int tall, int64_t p0, int64_t p1, const float* dots) {
                    for (int i = 0; i < tall; ++i)
                      for (int64_t p = p0; p < p1; ++p)
                        set(size_t(p), ids[i], dots[i * kUnitColumns + (p - p0)]);
                  });
  }

  // `rows` with one of another dtype.
  void multiply(const std::vector<int>& rows, size_t pivot) {
    const Kernels& kernel = kernels();
    const int64_t D = tokens_.D;
    std::vector<float> ordered(size_t(round_up(D, kernel.step)));
    const std::vector<float> wide = widened(pivots_[pivot].dtype, pivots_[pivot].row, D);
    kernel.order(tokens_.dtype, wide.data(), D, ordered.data());
    const float* vector = ordered.data();
    const int64_t work = int64_t(rows.size()) * D * 2;
    parallel_for(threads_for(work, threads_), int64_t(rows.size()), [&](int64_t r, int) {
      const int i = rows[size_t(r)];
      float square, dot;
      kernel.row_pass(tokens_.dtype, tokens_.row(i), D, &vector, 1, &square, &dot);
      set(pivot, i, dot);
    });
  }

  // The `count` of `near` that are least similar to a pivot in double.
  std::vector<int> least(const Pivot& pivot, const std::vector<int>& near, size_t count) {
    const std::vector<float> wide = widened(pivot.dtype, pivot.row, tokens_.D);
    const double square = kernels().wide_dot(DType::f32, wide.data(), wide.data(), tokens_.D);
    std::vector<std::pair<double, int>> keys(near.size());
    const int64_t dots = int64_t(near.size()) * tokens_.D;
    parallel_for(threads_for(dots * kCostOfDouble, threads_), int64_t(near.size()),
                 [&](int64_t n, int) {
                   const int i = near[size_t(n)];
                   keys[size_t(n)] = {exact(i, pivot, wide.data(), std::sqrt(square)), i};
                 });
    std::nth_element(keys.begin(), keys.begin() + count, keys.end());
    std::vector<int> first;
    for (size_t n = 0; n < count; ++n) first.push_back(keys[n].second);
    return first;
  }

  double exact(int i, const Pivot& pivot, const float* wide, double length) {
    if (inv_[i] == kNoDirection || pivot.inv == kNoDirection) return 0.0;  // as all that are near
    const std::vector<float> row = widened(tokens_.dtype, tokens_.row(i), tokens_.D);
    double& square = squares_[size_t(i)];
    if (square == 0.0) square = kernels().wide_dot(DType::f32, row.data(), row.data(), tokens_.D);
    const double dot = kernels().wide_dot(DType::f32, row.data(), wide, tokens_.D);
    return on_grid(dot / (std::sqrt(square) * length));
  }

  const Tokens& tokens_;
  const float* inv_;
  const std::vector<Pivot>& pivots_;
  int threads_;
  double slack_;
  std::vector<float> cosines_;   // [P, N], of the rows that were multiplied
  std::vector<double> squares_;  // [N], of lengths; 0: not known
};

}  // namespace

void by_pivots(const Tokens& tokens, const uint8_t* mask, const Tokens* keys, const Prompt& words,
               const PivotCounts& counts, bool ascending, int threads, float* norms, int64_t* out,
               uint8_t* in_core) {
  threads = usable_threads(threads);
  std::vector<float> inv(size_t(tokens.N));
  rate(tokens, mask, keys, threads, inv.data(), norms);
  std::vector<int64_t> core(size_t(std::min(counts.tokens, counts.kept))), others;
  core.resize(
      size_t(top_k(Rated<float>{norms, tokens.N}, int64_t(core.size()), false, core.data())));
  std::vector<Pivot> pivots;
  for (const int64_t i : core) {
    pivots.push_back({tokens.row(i), tokens.dtype, inv[size_t(i)]});
    inv[size_t(i)] = kMaskedOut;  // not to be taken
  }
  std::vector<int> left;
  for (int64_t i = 0; i < tokens.N; ++i)
    if (inv[size_t(i)] != kMaskedOut) left.push_back(int(i));
  const size_t places = size_t(counts.kept) - core.size();
  if (places > 0 && !left.empty()) {
    for (const Pivot& word : words_of(words, counts.words, threads)) pivots.push_back(word);
    Similar similar(tokens, inv.data(), pivots, left, threads);
    for (size_t p = 0; p < pivots.size(); ++p) {
      const size_t count = places / pivots.size() + (p < places % pivots.size());
      for (const int i : similar.take(p, count, left)) others.push_back(i);
    }
  }
  combined(core.data(), int64_t(core.size()), others.data(), int64_t(others.size()), counts.kept,
           ascending, out, in_core);
}

}  // namespace zspa::cpu
