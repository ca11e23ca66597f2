// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diversity.h"

namespace zspa::cpu {

struct SoftSuppressRequest {
  const float* inv;         // [N], see relevance_topk.h
  const double* scores;     // [N]; NaN, infinite or, by scaling, negative: masked out
  const double* positions;  // [N, 2] or null; not finite: masked out
  double sharpness, spread, reach;
  bool subtract;  // from the score, or scale it
  int64_t k;
};

// Writes k tokens in the order of taking; -1 where no token is left.
void soft_suppress(const Tokens& tokens, const SoftSuppressRequest& request, int threads,
                   Workspace& workspace, Stats& stats, int64_t* out);

}  // namespace zspa::cpu
