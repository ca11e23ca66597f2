// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diversity.h"

namespace zspa::cpu {

// owner[i]: the slot of `kept` [K] whose token is most similar to token i; its own for a kept token,
// -1 for an invalid one and where no kept token is valid. Entries of `kept` that name no valid token
// are ignored.
void assign(const Tokens& tokens, const uint8_t* mask, const int64_t* kept, int64_t K, int threads,
            int64_t* owner);

// What becomes of every token when the kept ones, `indices` [K], stay: each of these owns its slot, and
// those that are not `core` [K] take in the tokens that `assign` gives them. weights [N]: 1 for a kept
// token, equal shares of 1 for what its slot takes in, 0 for the rest, whose owner is -1.
void groups(const Tokens& tokens, const uint8_t* mask, const int64_t* indices, const uint8_t* core,
            int64_t K, int threads, int64_t* owner, float* weights);

// ToMe's matching until k tokens are left: heads [k], ascending, then -1; owner [N], the place in
// `heads` of the token that each goes into, -1 for an invalid one.
void match(const Tokens& tokens, const uint8_t* mask, int64_t k, int threads, int64_t* heads,
           int64_t* owner);

// How many of the rows `ranked` [R] are up to the `patience`-th of them whose cosines with the first `least`
// are all below `limit`, a multiple of 2^-40; R if there are fewer (AnchorPrune, arXiv 2607.07033). A row
// without direction is never one of them, and nothing is near it.
int64_t until_novel(const Tokens& tokens, const int64_t* ranked, int64_t R, int64_t least,
                    double limit, int64_t patience, int threads);

// out [k, D]: the sum of the rows each slot owns, times their weights. owner [N], others than [0, k)
// are left out; weights [N], or null for the mean.
void merge(const Tokens& rows, const int64_t* owner, const float* weights, int64_t k, int threads,
           float* out);

}  // namespace zspa::cpu
