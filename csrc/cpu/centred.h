// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tokens.h"

namespace zspa::cpu {

// out [N, D]: tokens minus the mean of those that count; NaN for the others, zero for a token that is
// the mean up to rounding. `mask` [N], 0 = padding; null = all real.
void centred(const Tokens& tokens, const uint8_t* mask, int threads, float* out);

// out [N]: minus the mean cosine of each token to the others; -1 without direction, NaN for tokens
// that do not count, 0 for one that is alone.
void distinctiveness(const Tokens& tokens, const uint8_t* mask, int threads, float* out);

// out [N]: lengths of rows, infinite or NaN for those that have none.
void lengths(const Tokens& tokens, int threads, float* out);

// out [N]: 1 for rows that are not masked out, by their length or by `mask`.
void valid_rows(const Tokens& tokens, const uint8_t* mask, int threads, uint8_t* out);

}  // namespace zspa::cpu
