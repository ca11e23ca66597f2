// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "diversity.h"

namespace zspa::cpu {

struct SuppressRequest {
  const float* inv;      // [N], see relevance_topk.h
  const double* scores;  // [N]; NaN or infinite: masked out
  double threshold;      // a token whose cosine to a taken one is above is left out
  bool fill;             // whether the best of those left out take the slots that remain
  int64_t k;
};

// Writes k tokens in the order of taking; -1 where no token is left.
void suppress(const Tokens& tokens, const SuppressRequest& request, int threads,
              Workspace& workspace, Stats& stats, int64_t* out);

}  // namespace zspa::cpu
