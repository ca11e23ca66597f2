// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "relevance_topk.h"

namespace zspa::cpu {

// How many tokens, and how many words, are pivots at most; how many tokens are kept.
struct PivotCounts {
  int64_t tokens, words, kept;
};

// The tokens and the words of largest L1 norm as pivots, and the tokens that resemble each of them least
// (DART, arXiv 2502.11494). The pivots among the tokens are kept; the other places are divided evenly, the
// first pivots getting one more. By falling norm, tokens before words, each pivot takes the tokens of
// lowest cosine to it, those without direction last; ties to the lowest index, in norms as well.
// `keys`, if not null, are measured instead of the tokens. norms [N]: -1 of a zero row, NaN of one that is
// masked out. out [kept]: ascending, or turn after turn, by index within; then -1. in_core [kept]: 1 for
// a pivot.
void by_pivots(const Tokens& tokens, const uint8_t* mask, const Tokens* keys, const Prompt& words,
               const PivotCounts& counts, bool ascending, int threads, float* norms, int64_t* out,
               uint8_t* in_core);

}  // namespace zspa::cpu
