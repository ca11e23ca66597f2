// SPDX-License-Identifier: Apache-2.0
// sensitivity: act', difference quotients of act, sums of squares, row by row.
// Algorithm   : around a = x + bias, act is a series in the odd powers of the step: act' and act''' are
//               evaluated once a token and hidden unit, a direction then costs three multiply-adds an
//               element, and nothing cancels. Steps beyond kSeriesStep: the difference itself.
// Work        : one exp an element of x; one pass over the output.
// Mapping     : a token a task (with all its directions), or 16 rows; channels along the lanes.
// Numerics    : float32; a row's result depends on that row alone.
#include "sensitivity.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace zspa::cpu {
namespace {

constexpr int64_t kRowsPerTask = 16;
constexpr int64_t kSlopeCost = 30;  // of one derivative, in multiply-adds

template <class Body>
void for_rows(int64_t rows, int64_t multiply_adds, int threads, const Body& body) {
  const int64_t tasks = (rows + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(threads_for(multiply_adds, usable_threads(threads)), tasks,
               [&](int64_t task, int thread) {
                 const int64_t end = std::min((task + 1) * kRowsPerTask, rows);
                 for (int64_t i = task * kRowsPerTask; i < end; ++i) body(i, thread);
               });
}

// How many of the bytes before the first that is not 0, or `limit`.
int64_t zero_bytes(const char* bytes, int64_t limit) {
  constexpr int64_t kAtOnce = 16;  // words: one branch a cache line or two, not one an element
  int64_t i = 0;
  for (; i + kAtOnce * 8 <= limit; i += kAtOnce * 8) {
    uint64_t words[kAtOnce], any = 0;
    std::memcpy(words, bytes + i, sizeof words);
    for (uint64_t word : words) any |= word;
    if (any) break;
  }
  while (i < limit && bytes[i] == 0) ++i;
  return i;
}

}  // namespace

void slopes(const Rows& x, const float* bias, Activation activation, const float* diagonal,
            int threads, const Rows& out, float* form) {
  const Kernels& kernel = kernels();
  for_rows(x.count, x.count * x.width * kSlopeCost, threads, [&](int64_t i, int) {
    form[i] +=
        kernel.slope(activation, x.dtype, x.row(i), bias, x.width, diagonal, out.dtype, out.row(i));
  });
}

void quotients(const Rows& x, const float* bias, Activation activation, const float* shifts,
               int64_t m, float radius, int threads, const Rows& out) {
  const Kernels& kernel = kernels();
  std::vector<char> wide(static_cast<size_t>(m));
  for (int64_t j = 0; j < m; ++j) {
    float largest = 0.0f;
    for (int64_t h = 0; h < x.width; ++h)
      largest = std::max(largest, std::fabs(shifts[j * x.width + h]));
    wide[size_t(j)] = largest * radius > kSeriesStep;
  }
  const int64_t padded = round_up(x.width, 16);
  std::vector<float> scratch(size_t(3 * padded * std::max(1, threads)));
  const int64_t work = x.count * x.width * (m * 4 + kSlopeCost);
  parallel_for(threads_for(work, usable_threads(threads)), x.count, [&](int64_t i, int thread) {
    float* at = scratch.data() + 3 * padded * thread;
    float* first = at + padded;
    float* third = first + padded;
    kernel.expand(activation, x.dtype, x.row(i), bias, x.width, at, first, third);
    for (int64_t j = 0; j < m; ++j)
      kernel.quotient(activation, at, first, third, shifts + j * x.width, radius, wide[size_t(j)],
                      x.width, out.dtype, out.row(i * m + j));
  });
}

void add_squares(const Rows& x, int threads, float* sums) {
  for_rows(x.count, x.count * x.width, threads,
           [&](int64_t i, int) { sums[i] += squared_length(x.dtype, x.row(i), x.width); });
}

int64_t leading_zeros(const Rows& x) {
  const int64_t item = x.dtype == DType::f32 ? 4 : 2;
  int64_t zeros = x.width * item;
  for (int64_t i = 0; i < x.count; ++i) zeros = zero_bytes(x.row(i), zeros);
  return zeros / item;
}

}  // namespace zspa::cpu
