// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace zspa::cpu {

// The first k tokens of `core` [R] and then of `picks` [P], which share none; -1 is no token. out [k]:
// in this order or ascending, then -1; in_core [k]: 1 for those of `core`.
void combined(const int64_t* core, int64_t R, const int64_t* picks, int64_t P, int64_t k,
              bool ascending, int64_t* out, uint8_t* in_core);

}  // namespace zspa::cpu
