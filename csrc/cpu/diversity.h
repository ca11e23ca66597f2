// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/keys.h"
#include "tokens.h"

namespace zspa::cpu {

// Work done, for benchmarks and tests. The numbering is part of the interface with Python.
struct Stats {
  int64_t passes = 0;
  int64_t dots = 0;  // all, those of the seed included
  int64_t seed_dots = 0;
};

// Memory of one thread of work, kept from segment to segment: O(N + candidates^2 + K D).
struct Workspace {
  Panel picks;
  Panel candidates;
  std::vector<float> gram;
  std::vector<int> rows;
  std::vector<Unit> units;
  std::vector<Key> keys;
};

struct DiversityRequest {
  const float* inv;      // [N], see relevance_topk.h
  const float* weights;  // [N] or null; NaN, infinite or negative: masked out
  const int64_t* seeds;  // [num_seeds] or null; entries that name no valid token are ignored
  int64_t num_seeds;
  int64_t k;
};

// Writes k picks in order; -1 where no token is left.
void diversity(const Tokens& tokens, const DiversityRequest& request, int threads,
               Workspace& workspace, Stats& stats, int64_t* out);

// So few tokens are all compared with each other: one small product.
constexpr int64_t kFewTokens = 128;

// DivPrune's seed: the token whose largest cosine to any other token is smallest, among those with
// inv[i] != kMaskedOut; -1 if there is none. Of up to kFewTokens tokens with a direction, their list
// is left in workspace.rows and the cosines of all pairs in workspace.gram.
int64_t divprune_seed(const Tokens& tokens, const float* inv, int threads, Workspace& workspace,
                      Stats& stats);

}  // namespace zspa::cpu
