// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tokens.h"

namespace zspa::cpu {

// out [N]: the sum of the absolute values of each row, added in double, rounded once.
void absolute_sums(const Tokens& tokens, int threads, float* out);

// out [P, N]: the cosine of each row to each of `pivots` [P, D], which have length 1, on the grid of
// exact.h; 0 of a row without direction.
void cosines_to(const Tokens& tokens, const double* pivots, int64_t P, int threads, double* out);

}  // namespace zspa::cpu
