// SPDX-License-Identifier: Apache-2.0
// How near a row is to a point, in double; microkernel.h includes this file into the anonymous
// namespace of each instruction set.
//
// Operation   : sum_d (twice[d] - x[d]) x[d], twice the point: its squared length less the squared
//               distance of x to it.
// Numerics    : double, 16 partial sums, a fixed tree at the end; nothing is fused, so that every
//               instruction set gives the same bits.

#ifndef ZSPA_ISA_DEFINED
#error "include nearness.h from microkernel.h only"
#endif

template <class T>
double nearness_of(const T* __restrict row, int64_t D, const double* __restrict twice) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  int64_t d = 0;
  for (; d + kSums <= D; d += kSums)
    for (int64_t x = 0; x < kSums; ++x) {
      const double value = to_float(row[d + x]);
      sums[x] += (twice[d + x] - value) * value;
    }
  for (int64_t x = 0; d < D; ++d, ++x) {
    const double value = to_float(row[d]);
    sums[x] += (twice[d] - value) * value;
  }
  for (int64_t half = kSums / 2; half > 0; half /= 2)
    for (int64_t x = 0; x < half; ++x) sums[x] += sums[x + half];
  return sums[0];
}

double nearness(DType dtype, const void* row, int64_t D, const double* twice) {
  double sum = 0.0;
  ZSPA_BY_DTYPE(sum = nearness_of(static_cast<const T*>(row), D, twice))
  return sum;
}
