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

// The k - spaced tokens of the largest scores and, of the others that are not masked out, `spaced` at
// equal distances (VisionZip, arXiv 2412.04467). out [k]: all ascending, or the former before the
// latter, then -1; top [k]: 1 for the former.
void top_k_and_spaced(const Rated<float>& rated, int64_t k, int64_t spaced, bool ascending,
                      int64_t* out, uint8_t* top);

// Those of picks [K] that lie in [0, N), ascending, then -1; found [K]: 1 for the former.
void ascending(const int64_t* picks, int64_t K, int64_t N, int64_t* out, uint8_t* found);

}  // namespace zspa::cpu
