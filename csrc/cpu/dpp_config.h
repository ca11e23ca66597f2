// SPDX-License-Identifier: Apache-2.0
// Block sizes of the determinantal greedy. They change the work, never a pick.
#pragma once

#include <cstdint>

#include "blocks.h"

namespace zspa::cpu {

// Residuals of different tokens lie close together, so few stale ones can be told from the best:
// more rows are refreshed a pass than by the diversity greedy, and passes stay few. With fewer than 32
// candidates a pass costs as much for fewer picks.
inline BlockSizes dpp_block_sizes(int64_t N) {
  constexpr int64_t kFewest = 32, kPoor = 16, kRich = 3;
  if (N <= 1500) return {512, 64, kFewest, kPoor, kRich};
  if (N <= 8192) return {1024, 128, kFewest, kPoor, kRich};
  return {2048, 256, kFewest, kPoor, kRich};
}

// A token whose residual has fallen to this share of its start counts as a combination of the picks.
// An entry of the factorisation is off by at most 1e-6 for the cosine at D = 4096 and by 2.4e-6 for
// 400 eliminations, and the residual of a repeated row by four times that: it is always below.
constexpr float kDependent = 0x1p-16f;

}  // namespace zspa::cpu
