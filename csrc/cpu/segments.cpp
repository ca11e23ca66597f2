// SPDX-License-Identifier: Apache-2.0
#include "segments.h"

#include <algorithm>

#include "problem.h"

namespace zspa::cpu {
namespace {

int64_t clamp(int64_t value, int64_t highest) { return std::clamp<int64_t>(value, 0, highest); }

}  // namespace

void make_table(Integers offsets, Integers k_core, Integers k_diverse, int64_t S, Limits limits,
                int64_t* table) {
  int64_t slot = 0;
  for (int64_t s = 0; s < S; ++s) {
    int64_t* row = table + s * kTableColumns;
    row[kFirstRow] = clamp(offsets[s], limits.rows);
    const int64_t end = clamp(offsets[s + 1], limits.rows);
    row[kLength] = clamp(end - row[kFirstRow], limits.longest);
    row[kCore] = clamp(k_core[s], limits.slots - slot);
    row[kDiverse] = clamp(k_diverse[s], limits.slots - slot - row[kCore]);
    row[kFirstSlot] = slot;
    slot += row[kCore] + row[kDiverse];
  }
}

void clamp_spans(Integers spans, int64_t S, int64_t rows, int64_t* out) {
  for (int64_t s = 0; s < S; ++s) {
    const int64_t start = spans.data ? clamp(spans[2 * s], rows) : 0;
    const int64_t end = spans.data ? clamp(spans[2 * s + 1], rows) : rows;
    out[2 * s] = start;
    out[2 * s + 1] = std::max(start, end);
  }
}

}  // namespace zspa::cpu
