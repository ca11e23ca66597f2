// SPDX-License-Identifier: Apache-2.0
#include "tokens.h"

namespace zspa::cpu {

PanelView rows_as_columns(const Tokens& tokens, const int* ids, int64_t count) {
  PanelView view = panel_shape(tokens.dtype, tokens.D);
  const Kernels& kernel = kernels();
  if (count == 0 || ids[count - 1] - ids[0] != count - 1) return view;
  if (kernel.packed_size(tokens.dtype) != size_of(tokens.dtype) || tokens.D % kernel.step != 0)
    return view;
  view.data = static_cast<char*>(const_cast<void*>(tokens.row(ids[0])));  // products only read
  view.column_bytes = tokens.row_bytes;
  return view;
}

void gram(const Tokens& tokens, const std::vector<int>& rows, const float* inv, int threads,
          Panel& panel, float* cosines) {
  const int64_t n = int64_t(rows.size());
  const Kernels& kernel = kernels();
  const int64_t tasks = (n + kUnitRows - 1) / kUnitRows;
  threads = threads_for(n * n / 2 * tokens.D, threads);
  PanelView columns = rows_as_columns(tokens, rows.data(), n);
  if (!columns.data) {
    panel.reset(tokens.dtype, tokens.D, n);
    parallel_for(threads, tasks, [&](int64_t task, int) {
      const int64_t begin = task * kUnitRows, end = std::min(begin + kUnitRows, n);
      for (int64_t c = begin; c < end; ++c) panel.put(c, tokens.row(rows[size_t(c)]));
    });
    columns = panel.view();
  }
  parallel_for(threads, tasks, [&](int64_t task, int) {
    const int64_t begin = (tasks - 1 - task) * kUnitRows;  // the longest rows first
    const int count = int(std::min<int64_t>(kUnitRows, n - begin));
    alignas(64) float dots[kUnitRows * kUnitColumns];
    const void* pointers[kUnitRows];
    for (int i = 0; i < count; ++i) pointers[i] = tokens.row(rows[size_t(begin + i)]);
    for (int64_t c0 = 0; c0 < begin + count; c0 += kUnitColumns) {
      const int64_t c1 = std::min<int64_t>(c0 + kUnitColumns, begin + count);
      kernel.dots(tokens.dtype, pointers, count, columns, c0, c1, dots, kUnitColumns, nullptr, 0);
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
