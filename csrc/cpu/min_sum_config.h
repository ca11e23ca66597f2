// SPDX-License-Identifier: Apache-2.0
// Block sizes of the min-sum greedy. They change the work, never a pick.
#pragma once

#include <cstdint>

namespace zspa::cpu {

struct MinSumSizes {
  int64_t candidates;  // tokens among which the next picks are foreseen, with their Gram matrix
  int64_t columns;     // picks foreseen a pass at most
};

// A Gram matrix costs candidates^2 / 2 dots, a foreseen pick N: few candidates on small images. More
// than 128 foresee hardly more picks (independent tokens take 27 passes instead of 21 with 192, and
// 1.6 of the N k dots either way); 64 columns fill the tiles of a product and stay in L2.
inline MinSumSizes min_sum_sizes(int64_t N) {
  if (N <= 1500) return {64, 32};
  return {128, 64};
}

// What is foreseen doubles after a pass that took three quarters of it, and halves after one that took
// less than a third: how far a forecast holds depends on the tokens.
constexpr int64_t kFirstForecast = 16;
constexpr int64_t kShortestForecast = 4;

// Columns kept: those of a pass, and as many of earlier ones that nobody picked yet. On independent
// tokens every eighth pick has its column from an earlier pass.
constexpr int64_t kPassesKept = 2;

// Rows whose directions are added up in float32 before their sum goes into the double one.
constexpr int64_t kRowsPerSum = 64;

}  // namespace zspa::cpu
