// SPDX-License-Identifier: Apache-2.0
// The table of a ragged batch, from whatever integers the caller's tensors hold.
#pragma once

#include <cstdint>

namespace zspa::cpu {

// Integers of a tensor: int32 or int64, one after another; `data` null = zeros.
struct Integers {
  const void* data;
  bool wide;

  int64_t operator[](int64_t i) const {
    if (!data) return 0;
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

// What a table must stay inside.
struct Limits {
  int64_t rows, longest, slots;
};

// `table` [S, kTableColumns] of offsets [S + 1] and counts [S]; clamped as described with
// `ragged_table` in zspa_kernels/_segments.py.
void make_table(Integers offsets, Integers k_core, Integers k_diverse, int64_t S, Limits limits,
                int64_t* table);

// `out` [S, 2]: spans with 0 <= start <= end <= rows; without `spans`, all rows.
void clamp_spans(Integers spans, int64_t S, int64_t rows, int64_t* out);

}  // namespace zspa::cpu
