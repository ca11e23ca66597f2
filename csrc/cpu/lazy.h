// SPDX-License-Identifier: Apache-2.0
// What greedy selections with stale keys share: a key that is not up to date is a lower bound.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/keys.h"
#include "tokens.h"

namespace zspa::cpu {

// Keeps the `count` smallest keys; returns the smallest of the others, kNoKey if there is none.
inline Key keep_smallest(std::vector<Key>& keys, int64_t count) {
  if (count >= int64_t(keys.size())) return kNoKey;
  std::nth_element(keys.begin(), keys.begin() + count, keys.end());
  const Key next = keys[size_t(count)];
  keys.resize(size_t(count));
  return next;
}

// Sorts `rows` by how many columns they have seen, and cuts them into units for the columns up to
// `columns`. Rows that missed about the same columns share a unit: a few columns that some of them
// have seen already are cheaper than a ragged tile.
inline void units_by_seen(std::vector<int>& rows, const std::vector<int64_t>& seen, int64_t columns,
                          std::vector<Unit>& units) {
  std::sort(rows.begin(), rows.end(),
            [&](int a, int b) { return seen[a] != seen[b] ? seen[a] < seen[b] : a < b; });
  units.clear();
  for (size_t i = 0; i < rows.size();) {
    const int64_t first = seen[rows[i]];
    const int64_t slack = (columns - first) / 4;
    size_t end = i;
    while (end < rows.size() && end < i + kUnitRows && seen[rows[end]] <= first + slack) ++end;
    units.push_back({int(i), int(end), first});
    i = end;
  }
}

}  // namespace zspa::cpu
