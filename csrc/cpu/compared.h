// SPDX-License-Identifier: Apache-2.0
// Rows that are compared by cosine: in bulk in float32 or less, in double where that cannot decide.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "exact.h"
#include "relevance_topk.h"

namespace zspa::cpu {

constexpr int64_t kColumnBlock = 240;  // targets packed at once: 2 MB of bfloat16 at D = 4096

// Rows that are compared, in float32 or less, and how their exact cosines are computed.
struct Compared {
  Tokens tokens;
  std::vector<float> inv;    // kMaskedOut, kNoDirection or one over the length
  std::vector<double> wide;  // [N, D], for rows that are sums; empty for rows as given
  double slack;              // how far a float32 cosine may be from the exact one

  bool directed(int64_t i) const { return inv[size_t(i)] > 0.0f; }

  bool same(int64_t a, int64_t b) const {
    const size_t D = size_t(tokens.D);
    if (!wide.empty()) return !std::memcmp(&wide[size_t(a) * D], &wide[size_t(b) * D], 8 * D);
    return !std::memcmp(tokens.row(a), tokens.row(b), D * size_t(size_of(tokens.dtype)));
  }

  double cosine(int64_t a, int64_t b) const {
    return on_grid(dot(a, b) / (std::sqrt(dot(a, a)) * std::sqrt(dot(b, b))));
  }

  double dot(int64_t a, int64_t b) const {
    if (wide.empty())
      return kernels().wide_dot(tokens.dtype, tokens.row(a), tokens.row(b), tokens.D);
    double sum = 0.0;
    for (int64_t d = 0; d < tokens.D; ++d) sum += wide[a * tokens.D + d] * wide[b * tokens.D + d];
    return sum;
  }
};

inline Compared compared(const Tokens& tokens, const uint8_t* mask, int threads) {
  Compared rows{tokens, std::vector<float>(size_t(tokens.N)), {}, 0.0};
  inverse_norms(tokens, mask, threads, rows.inv.data());
  rows.slack = cosine_slack(tokens.D);
  return rows;
}

// Calls visit(query, first, cosines, count) for tiles of the cosines of the rows `queries` with
// `targets`: of places [first, first + count). A row is visited by one thread.
template <class Visit>
void for_cosines(const Compared& rows, const std::vector<int>& queries,
                 const std::vector<int>& targets, int threads, const Visit& visit) {
  Panel panel;
  std::vector<Unit> units;
  std::vector<float> inverse;  // of the targets
  for (int target : targets) inverse.push_back(rows.inv[size_t(target)]);
  split_units(int64_t(queries.size()), units);
  const int64_t T = int64_t(targets.size());
  for (int64_t first = 0; first < T; first += kColumnBlock) {
    const int64_t width = std::min(kColumnBlock, T - first);
    panel.reset(rows.tokens.dtype, rows.tokens.D, width);
    for (int64_t c = 0; c < width; ++c) panel.put(c, rows.tokens.row(targets[size_t(first + c)]));
    for_each_tile(rows.tokens, queries, units, panel, width, threads,
                  [&](int, const int* ids, int count, int64_t c0, int64_t c1, const float* dots) {
                    float cosines[kUnitColumns];
                    for (int i = 0; i < count; ++i) {
                      const float inv = rows.inv[size_t(ids[i])];
                      const float* others = inverse.data() + first + c0;
                      const int64_t wide = c1 - c0;
                      for (int64_t c = 0; c < wide; ++c)
                        cosines[c] = dots[i * kUnitColumns + c] * (inv * others[c]);
                      visit(ids + i - queries.data(), first + c0, cosines, wide);
                    }
                  });
  }
}

// Most tiles hold nothing that counts: their largest cosine, in four lanes, says so at once.
inline float largest(const float* cosines, int64_t count) {
  float lanes[4] = {-2.0f, -2.0f, -2.0f, -2.0f};
  int64_t c = 0;
  for (; c + 4 <= count; c += 4)
    for (int64_t x = 0; x < 4; ++x)
      lanes[x] = cosines[c + x] > lanes[x] ? cosines[c + x] : lanes[x];
  for (; c < count; ++c) lanes[0] = std::max(lanes[0], cosines[c]);
  return std::max(std::max(lanes[0], lanes[1]), std::max(lanes[2], lanes[3]));
}

}  // namespace zspa::cpu
