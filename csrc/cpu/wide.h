// SPDX-License-Identifier: Apache-2.0
// What decides where float32 cannot; microkernel.h includes this file into the anonymous namespace of
// each instruction set.
//
// Operation   : dots of rows and sums of absolute values in double, and bounds of the weights by which
//               tokens suppress each other.
// Numerics    : wide_dot: products of float32, float16 or bfloat16 are exact in double; 16 partial
//               sums, a fixed tree at the end. Nothing is fused, so that every instruction set gives
//               the same bits; dot(a, b) and dot(b, a) have the same, and so have equal rows.
//               weights: exp to 1e-15 by a polynomial, and the result moved outwards by far more.

#ifndef ZSPA_ISA_DEFINED
#error "include wide.h from microkernel.h only"
#endif

template <class T>
double wide_dot_of(const T* __restrict a, const T* __restrict b, int64_t D) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  int64_t d = 0;
  for (; d + kSums <= D; d += kSums)
    for (int64_t x = 0; x < kSums; ++x)
      sums[x] += double(to_float(a[d + x])) * double(to_float(b[d + x]));
  for (int64_t x = 0; d < D; ++d, ++x) sums[x] += double(to_float(a[d])) * double(to_float(b[d]));
  for (int64_t half = kSums / 2; half > 0; half /= 2)
    for (int64_t x = 0; x < half; ++x) sums[x] += sums[x + half];
  return sums[0];
}

double wide_dot(DType dtype, const void* a, const void* b, int64_t D) {
  double sum = 0.0;
  ZSPA_BY_DTYPE(sum = wide_dot_of(static_cast<const T*>(a), static_cast<const T*>(b), D))
  return sum;
}

template <class T>
double absolute_sum_of(const T* __restrict row, int64_t D) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  int64_t d = 0;
  for (; d + kSums <= D; d += kSums)
    for (int64_t x = 0; x < kSums; ++x) sums[x] += double(__builtin_fabsf(to_float(row[d + x])));
  for (int64_t x = 0; d < D; ++d, ++x) sums[x] += double(__builtin_fabsf(to_float(row[d])));
  for (int64_t half = kSums / 2; half > 0; half /= 2)
    for (int64_t x = 0; x < half; ++x) sums[x] += sums[x + half];
  return sums[0];
}

double absolute_sum(DType dtype, const void* row, int64_t D) {
  double sum = 0.0;
  ZSPA_BY_DTYPE(sum = absolute_sum_of(static_cast<const T*>(row), D))
  return sum;
}

// exp(t) for -50 <= t <= 0; 0 below.
ZSPA_INLINE inline double decay(double t) {
  constexpr double kMagic = 0x1.8p52;  // pushes the integer part into the lowest bits
  const double inside = t < -50.0 ? -50.0 : t;
  const double shifted = inside * 0x1.71547652b82fep+0 + kMagic;
  const double n = shifted - kMagic;
  // ln 2 in two parts, of which the first has so few digits that its multiples are exact.
  const double r = (inside - n * 0x1.62e42fefap-1) - n * 0x1.cf79abc9e3b39p-40;  // |r| <= 0.35
  double sum = 1.0 / 479001600.0;
  sum = sum * r + 1.0 / 39916800.0;
  sum = sum * r + 1.0 / 3628800.0;
  sum = sum * r + 1.0 / 362880.0;
  sum = sum * r + 1.0 / 40320.0;
  sum = sum * r + 1.0 / 5040.0;
  sum = sum * r + 1.0 / 720.0;
  sum = sum * r + 1.0 / 120.0;
  sum = sum * r + 1.0 / 24.0;
  sum = sum * r + 1.0 / 6.0;
  sum = sum * r + 0.5;
  sum = sum * r + 1.0;
  sum = sum * r + 1.0;
  int64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = int64_t(uint64_t(bits) << 52) + 0x3ff0000000000000;  // 2^n
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return t < -50.0 ? 0.0 : sum * power;
}

void weights(const float* __restrict cosines, const double* __restrict apart, int64_t n,
             double sharpness, double slack, double* __restrict most, double* __restrict least) {
  constexpr double kMore = 1.0 + 1e-12, kLess = 1.0 - 1e-12;
  for (int64_t i = 0; i < n; ++i) {
    const double far = 1.0 - cosines[i];
    const double high = far + slack, low = far - slack;
    const double near = low > 0.0 ? low : 0.0;
    most[i] = decay(apart[i] - sharpness * (near * near)) * kMore;
    least[i] = decay(apart[i] - sharpness * ((high > 0.0 ? high : 0.0) * high)) * kLess;
  }
}
