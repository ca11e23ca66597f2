// SPDX-License-Identifier: Apache-2.0
// The elementwise parts of perturbation sensitivity; its matrix products are BLAS calls of the caller
// (zspa_kernels/backends/cpp/sensitivity.py).
#pragma once

#include "kernels.h"
#include "parallel.h"

namespace zspa::cpu {

struct Rows {
  char* data;
  DType dtype;
  int64_t count;
  int64_t width;
  int64_t row_bytes;

  char* row(int64_t i) const { return data + i * row_bytes; }
};

// out row i = act'(x row i + bias); `out` may be `x`. With a `diagonal` [width]:
// form[i] += sum(diagonal * act'^2).
void slopes(const Rows& x, const float* bias, Activation activation, const float* diagonal,
            int threads, const Rows& out, float* form);

// out row i * m + j = (act(a + radius s) - act(a - radius s)) / (2 radius), with a = x row i + bias
// and s row j of `shifts` [m, width]; the limit of it for radius 0.
void quotients(const Rows& x, const float* bias, Activation activation, const float* shifts,
               int64_t m, float radius, int threads, const Rows& out);

// sums[i] += sum of squares of row i, in float32.
void add_squares(const Rows& x, int threads, float* sums);

// How many columns before the first that is not all zero; -0.0 is not zero here.
int64_t leading_zeros(const Rows& x);

}  // namespace zspa::cpu
