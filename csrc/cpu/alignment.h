// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tokens.h"

namespace zspa::cpu {

// out[i] = sum_d (twice[d] - x_id) x_id in double for all tokens x: the squared length of a point, twice
// which is given, less the squared distance of the token to it.
void alignment(const Tokens& tokens, const double* twice, int threads, double* out);

}  // namespace zspa::cpu
