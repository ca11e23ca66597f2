// SPDX-License-Identifier: Apache-2.0
// What greedy selections with stale keys share: a key that is not up to date is a lower bound.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/keys.h"
#include "tokens.h"

namespace zspa::cpu {

// What comes behind all keys of a type.
template <class K>
constexpr K kLast = K();
template <>
inline constexpr Key kLast<Key> = kNoKey;

// Keeps the `count` smallest keys; returns the smallest of the others, kLast if there is none.
template <class K>
K keep_smallest(std::vector<K>& keys, int64_t count) {
  if (count >= int64_t(keys.size())) return kLast<K>;
  std::nth_element(keys.begin(), keys.begin() + count, keys.end());
  const K next = keys[size_t(count)];
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

// One pass of a blocked greedy over the open tokens: refresh(rows) brings the `refresh_rows` smallest
// keys up to date, and pick(bound) is offered the `candidates` smallest of them, in `keys`, as far as
// they are below `bound`, the smallest key of all others. Returns how many were offered, -1 when no
// token is left. `keys` and `rows` are scratch.
template <class K, class KeyOf, class Refresh, class Pick>
int64_t lazy_pass(const std::vector<char>& open, std::vector<K>& keys, std::vector<int>& rows,
                  int64_t refresh_rows, int64_t candidates, const KeyOf& key,
                  const Refresh& refresh, const Pick& pick) {
  keys.clear();
  for (size_t i = 0; i < open.size(); ++i)
    if (open[i]) keys.push_back(key(int64_t(i)));
  if (keys.empty()) return -1;
  K bound = keep_smallest(keys, refresh_rows);
  rows.clear();
  for (K k : keys) rows.push_back(int(index_of(k)));
  refresh(rows);
  for (K& k : keys) k = key(index_of(k));
  bound = std::min(bound, keep_smallest(keys, candidates));
  keys.erase(std::remove_if(keys.begin(), keys.end(), [&](K k) { return !(k < bound); }),
             keys.end());
  if (!keys.empty()) pick(bound);
  return int64_t(keys.size());
}

}  // namespace zspa::cpu
