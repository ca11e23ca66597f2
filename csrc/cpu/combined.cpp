// SPDX-License-Identifier: Apache-2.0
// combined: a core and what was picked beside it as one selection.
// Algorithm   : a token and where it is from are one number, so that a sort keeps them together.
// Work        : R + P, and k log k for ascending tokens.
#include "combined.h"

#include <algorithm>

namespace zspa::cpu {

void combined(const int64_t* core, int64_t R, const int64_t* picks, int64_t P, int64_t k,
              bool ascending, int64_t* out, uint8_t* in_core) {
  int64_t count = 0;
  const auto take = [&](const int64_t* tokens, int64_t size, int64_t from_core) {
    for (int64_t t = 0; t < size && count < k; ++t)
      if (tokens[t] >= 0) out[count++] = 2 * tokens[t] + from_core;
  };
  take(core, R, 1);
  take(picks, P, 0);
  if (ascending) std::sort(out, out + count);
  for (int64_t t = 0; t < count; ++t) {
    in_core[t] = uint8_t(out[t] % 2);
    out[t] /= 2;
  }
  std::fill(out + count, out + k, int64_t(-1));
  std::fill(in_core + count, in_core + k, uint8_t(0));
}

}  // namespace zspa::cpu
