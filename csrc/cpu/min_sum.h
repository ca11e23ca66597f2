// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diversity.h"

namespace zspa::cpu {

struct MinSumRequest {
  const float* inv;      // [N], see relevance_topk.h
  const int64_t* seeds;  // [num_seeds] or null; entries that name no valid token are ignored
  int64_t num_seeds;
  int64_t k;
};

// Writes k picks in order; -1 where no token is left.
void min_sum(const Tokens& tokens, const MinSumRequest& request, int threads, Workspace& workspace,
             Stats& stats, int64_t* out);

}  // namespace zspa::cpu
