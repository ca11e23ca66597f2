// SPDX-License-Identifier: Apache-2.0
#include "tokens.h"

namespace zspa::cpu {

void gram(const Tokens& tokens, const std::vector<int>& rows, const float* inv, int threads,
          Panel& panel, float* cosines) {
  const int64_t n = int64_t(rows.size());
  panel.reset(tokens.dtype, tokens.D, n);
  const Kernels& kernel = kernels();
  const int64_t tasks = (n + kUnitRows - 1) / kUnitRows;
  threads = threads_for(n * n / 2 * tokens.D, threads);
  parallel_for(threads, tasks, [&](int64_t task, int) {
    const int64_t begin = task * kUnitRows, end = std::min(begin + kUnitRows, n);
    for (int64_t c = begin; c < end; ++c) panel.put(c, tokens.row(rows[size_t(c)]));
  });
  parallel_for(threads, tasks, [&](int64_t task, int) {
    const int64_t begin = (tasks - 1 - task) * kUnitRows;  // the longest rows first
    const int count = int(std::min<int64_t>(kUnitRows, n - begin));
    alignas(64) float dots[kUnitRows * kUnitColumns];
    const void* pointers[kUnitRows];
    for (int i = 0; i < count; ++i) pointers[i] = tokens.row(rows[size_t(begin + i)]);
    for (int64_t c0 = 0; c0 < begin + count; c0 += kUnitColumns) {
      const int64_t c1 = std::min<int64_t>(c0 + kUnitColumns, begin + count);
      kernel.dots(tokens.dtype, pointers, count, panel.view(), c0, c1, dots, kUnitColumns, nullptr,
                  0);
      for (int i = 0; i < count; ++i) {
        const int64_t a = begin + i;
        for (int64_t b = c0; b < std::min(c1, a); ++b) {
          const float scale = inv[rows[size_t(a)]] * inv[rows[size_t(b)]];
          cosines[a * n + b] = cosines[b * n + a] = dots[i * kUnitColumns + (b - c0)] * scale;
        }
      }
    }
  });
}

}  // namespace zspa::cpu
