// SPDX-License-Identifier: Apache-2.0
// absolute_sums, cosines_to: the norms that choose pivots, and the cosines of all tokens to a few of
// them (DART, arXiv 2502.11494).
// Algorithm   : 32 rows a task, 8 pivots and 256 channels at a time, so that the pivots' channels stay
//               in L1 and the rows in L2.
// Work        : N D for the norms, N D (P + 1) for the cosines; one read of the tokens each.
// Numerics    : double throughout, in an order that depends on D alone.
// Deterministic: yes, for any number of threads.
#include "pivots.h"

#include <algorithm>
#include <cmath>

#include "exact.h"

namespace zspa::cpu {
namespace {

constexpr int64_t kRows = 32;
constexpr int64_t kCostOfDouble = 4;  // times that of a multiply-add in float

double total(const double* sums) {
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

}  // namespace

void absolute_sums(const Tokens& tokens, int threads, float* out) {
  threads = threads_for(tokens.N * tokens.D * kCostOfDouble, usable_threads(threads));
  parallel_for(threads, (tokens.N + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < std::min(tokens.N, (task + 1) * kRows); ++i)
      out[i] = float(kernels().absolute_sum(tokens.dtype, tokens.row(i), tokens.D));
  });
}

void cosines_to(const Tokens& tokens, const double* pivots, int64_t P, int threads, double* out) {
  const int64_t N = tokens.N, D = tokens.D;
  const Kernels& kernel = kernels();
  threads = threads_for(N * D * (P + 1) * kCostOfDouble, usable_threads(threads));
  parallel_for(threads, (N + kRows - 1) / kRows, [&](int64_t task, int) {
    const int64_t first = task * kRows, count = std::min(kRows, N - first);
    double sums[kRows][(1 + kWideColumns) * kWideSums];
    for (int64_t p = 0; p < P; p += kWideColumns) {
      const int64_t some = std::min(kWideColumns, P - p);
      for (auto& sum : sums) std::fill(std::begin(sum), std::end(sum), 0.0);
      for (int64_t d = 0; d < D; d += kWideChannels)
        for (int64_t i = 0; i < count; ++i)
          kernel.wide_dots(tokens.dtype, tokens.row(first + i), d, std::min(D, d + kWideChannels),
                           pivots + p * D, D, some, sums[i]);
      for (int64_t i = 0; i < count; ++i) {
        const double square = total(sums[i]);
        const double length = square < double(kZeroRow) ? HUGE_VAL : std::sqrt(square);
        for (int64_t q = 0; q < some; ++q)
          out[(p + q) * N + first + i] = on_grid(total(sums[i] + (1 + q) * kWideSums) / length);
      }
    }
  });
}

}  // namespace zspa::cpu
