// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diversity.h"

namespace zspa::cpu {

struct FacilityRequest {
  const float* inv;       // [N], see relevance_topk.h
  const float* weights;   // [N] or null; NaN, infinite or negative: masked out
  const float* benefits;  // [M] rows of N or null; what is not positive and finite counts as 0
  int64_t M;
  int64_t benefit_stride;  // of the rows, in elements
  float temperature;       // 0: tokens cover each other by their cosines; else by their softmax
  float scale;             // of the coverage of tokens beside that of the rows of `benefits`
  int64_t k;
};

// Writes k picks in order; -1 where no token is left.
void facility_location(const Tokens& tokens, const FacilityRequest& request, int threads,
                       Workspace& workspace, Stats& stats, int64_t* out);

}  // namespace zspa::cpu
