// SPDX-License-Identifier: Apache-2.0
// Block sizes of the min-sum greedy. They change the work, never a pick.
#pragma once

#include <cstdint>

namespace zspa::cpu {

struct MinSumSizes {
  int64_t candidates;  // tokens among which the next picks are foreseen, with their Gram matrix
  int64_t columns;     // picks foreseen a pass at most
};

// A Gram matrix costs candidates^2 / 2 dots, a foreseen pick N: few candidates on small images. Twice
// as many foresee few more picks (independent tokens, N = 2880, k = 288: 21 passes instead of 28, but
// 1.6 of the N k dots instead of 1.45). 48 columns are two full tiles of a product.
inline MinSumSizes min_sum_sizes(int64_t N) {
  if (N <= 1500) return {48, 24};
  return {96, 48};
}

// What is foreseen doubles after a pass that took three quarters of it, and halves after one that took
// less than a third: how far a forecast holds depends on the tokens.
constexpr int64_t kFirstForecast = 16;
// Narrow tokens (D <= 64) are hard to foresee: nearly every pass ends after one pick, at the shortest
// forecast, and 3 to 5 of the N k dots are computed.
constexpr int64_t kShortestForecast = 4;

// Columns kept: those of a pass, and as many of earlier ones that nobody picked yet. On independent
// tokens they save a seventh of the dots.
constexpr int64_t kPassesKept = 2;

// Rows whose directions are added up in float32 before their sum goes into the double one.
constexpr int64_t kRowsPerSum = 64;

}  // namespace zspa::cpu
