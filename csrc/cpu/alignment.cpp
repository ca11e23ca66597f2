// SPDX-License-Identifier: Apache-2.0
// alignment: squared distances of all tokens to a point (TrimTokenator, arXiv 2509.00320).
// Work        : 2 N D double multiply-adds, one read of the tokens.
// Mapping     : 64 rows a task; channels along the lanes.
// Numerics    : double, see nearness.h. A row's result depends on that row and the point alone.
#include "alignment.h"

#include <algorithm>

namespace zspa::cpu {

void alignment(const Tokens& tokens, const double* twice, int threads, double* out) {
  constexpr int64_t kRows = 64;
  // A multiply-add in double and a conversion cost several of a product's.
  threads = threads_for(tokens.N * tokens.D * 8, usable_threads(threads));
  parallel_for(threads, (tokens.N + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < std::min(tokens.N, (task + 1) * kRows); ++i)
      out[i] = kernels().nearness(tokens.dtype, tokens.row(i), tokens.D, twice);
  });
}

}  // namespace zspa::cpu
