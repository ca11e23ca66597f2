// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diversity.h"

namespace zspa::cpu {

struct DppRequest {
  const float* inv;      // [N], see relevance_topk.h
  const float* weights;  // [N] or null; NaN, infinite or negative: masked out
  int64_t k;
};

// Writes k picks in order; -1 where no token is left.
void dpp(const Tokens& tokens, const DppRequest& request, int threads, Workspace& workspace,
         Stats& stats, int64_t* out);

}  // namespace zspa::cpu
