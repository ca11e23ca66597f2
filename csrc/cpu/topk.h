// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace zspa::cpu {

// A dtype that only scores have, beside those of DType; the number is part of the interface with
// zspa_kernels/backends/cpp/_topk.py.
constexpr int kDouble = 3;

// One image's scores, of float, Half, BFloat16 or double.
template <class Score>
struct Rated {
  const Score* scores;
  int64_t N;
  const uint8_t* mask = nullptr;    // [N], 0 = masked out; null = nobody is
  const uint8_t* forced = nullptr;  // [N], 1 = before all others; null = nobody is
};

// The k tokens of the largest scores, forced ones first, ties by lowest index; infinite scores and
// NaN are masked out. out [k]: by falling score or by index, then -1. Returns how many were found.
template <class Score>
int64_t top_k(const Rated<Score>& rated, int64_t k, bool ascending, int64_t* out);

}  // namespace zspa::cpu
