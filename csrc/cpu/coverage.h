// SPDX-License-Identifier: Apache-2.0
// What a column covers beyond what is covered; microkernel.h includes this file into the anonymous
// namespace of each instruction set.
//
// Operation   : sum_i max(0, column[i] * factors[i] - best[i]), while `ahead`, the column that may be
//               asked for next, is fetched into the cache: columns lie anywhere in a matrix that is
//               larger than the caches.
// Numerics    : float32, product and difference rounded one after the other, so that a column that is
//               covered itself has exactly nothing left; sums of kCovered elements in two chains, then
//               one chain over those. No term is negative and every operation is monotone: the result
//               cannot grow when `best` does.

#ifndef ZSPA_ISA_DEFINED
#error "include coverage.h from microkernel.h only"
#endif

constexpr int64_t kCovered = 512;

float covered(const float* column, const float* factors, const float* best, int64_t n,
              const float* ahead) {
  const auto left = [&](int64_t i) ZSPA_INLINE {
    const typename Isa::Vec x =
        Isa::load(column + i) * Isa::load(factors + i) - Isa::load(best + i);  // [kLanes]
    return x > 0.0f ? x : Isa::zero();
  };
  typename Isa::Vec total = Isa::zero();
  for (int64_t start = 0; start < n; start += kCovered) {
    typename Isa::Vec sum[2] = {Isa::zero(), Isa::zero()};
    const int64_t end = std::min(start + kCovered, n);
    int64_t i = start;
    for (; i + 2 * L <= end; i += 2 * L) {
      __builtin_prefetch(ahead + i);
      __builtin_prefetch(ahead + i + L);
      sum[0] += left(i);
      sum[1] += left(i + L);
    }
    for (; i < end; i += L) sum[0] += left(i);
    total += sum[0] + sum[1];
  }
  return Isa::sum(total);
}
