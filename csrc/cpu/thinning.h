// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tokens.h"

namespace zspa::cpu {

// What is left of a line of tokens, at first by falling `scores` [N]: of its even places those `step` go that
// are most similar to any odd one, the other even ones stand by falling similarity in front of the odd ones,
// and so on until k are left (VisPruner, arXiv 2412.01818). out [k], in the order of the last line, then -1.
void thin(const Tokens& tokens, const uint8_t* mask, const double* scores, int64_t k, int64_t step,
          int threads, int64_t* out);

}  // namespace zspa::cpu
