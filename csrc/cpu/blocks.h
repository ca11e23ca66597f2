// SPDX-License-Identifier: Apache-2.0
// How large the blocks of a blocked greedy are, pass by pass. They change the work, never a pick.
#pragma once

#include <algorithm>
#include <cstdint>

namespace zspa::cpu {

struct BlockSizes {
  int64_t refresh;     // stale rows brought up to date per pass
  int64_t candidates;  // of them, picked from with their own Gram matrix: at most so many,
  int64_t fewest;      // and at least so many
  int64_t poor, rich;  // a pass is poor or rich that takes less or more than one in so many
};

// Towards the end there is no use for a block that is much larger than the picks still wanted.
constexpr int64_t kCandidatesPerPick = 3;

// Passes until k picks are `taken`. pass(refresh, candidates) adds to `taken` and returns how many
// candidates there were, -1 when no token is left. Candidates halve after a poor pass, which must not
// pay for a large Gram matrix again, and double after a rich one.
template <class Pass>
void pick_in_blocks(const BlockSizes& sizes, int64_t k, const int64_t& taken, const Pass& pass) {
  int64_t candidates = sizes.candidates;
  while (taken < k) {
    const int64_t before = taken;
    const int64_t useful = kCandidatesPerPick * (k - taken);
    const int64_t offered = pass(sizes.refresh, std::min(candidates, useful));
    if (offered < 0) return;
    const int64_t accepted = taken - before;
    if (sizes.poor * accepted < offered) candidates = std::max(sizes.fewest, candidates / 2);
    if (sizes.rich * accepted > offered) candidates = std::min(sizes.candidates, candidates * 2);
  }
}

}  // namespace zspa::cpu
