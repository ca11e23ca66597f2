// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "relevance_topk.h"

namespace zspa::cpu {

// out[i]: minus the mean squared distance of token i to the words of the prompt that count, in double;
// -inf for masked out tokens, 0 for all others where no word counts. `mask` as in Prompt.
void alignment(const Tokens& tokens, const uint8_t* mask, const Prompt& prompt, int threads,
               double* out);

}  // namespace zspa::cpu
