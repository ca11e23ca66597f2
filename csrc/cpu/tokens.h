// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../common/dtype.h"
#include "panel.h"
#include "parallel.h"

namespace zspa::cpu {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Squared norms outside [kZeroRow, kHugeRow] have no usable direction: below, a zero row; above (or
// NaN), a token that counts as masked out. Inside, no product of three of them over- or underflows.
constexpr float kZeroRow = 0x1p-80f;
constexpr float kHugeRow = 0x1p80f;

// What `inverse_norm` says of a token without a direction.
constexpr float kNoDirection = 0.0f;  // zero row
constexpr float kMaskedOut = -1.0f;

inline float inverse_norm(float squares) {
  if (!(squares <= kHugeRow)) return kMaskedOut;
  if (squares < kZeroRow) return kNoDirection;
  return 1.0f / std::sqrt(squares);
}

// Tokens of one segment: N rows of D channels, channels contiguous.
struct Tokens {
  const char* data;
  DType dtype;
  int64_t N;
  int64_t D;
  int64_t row_bytes;

  const void* row(int64_t i) const { return data + i * row_bytes; }
};

// A row [D] as floats, exactly.
inline std::vector<float> widened(DType dtype, const void* row, int64_t D) {
  std::vector<float> wide(size_t(D), 0.0f);
  kernels().fold(Fold::sum, dtype, row, 1.0f, 0, D, wide.data());
  return wide;
}

// Rows [begin, end) of a list, at most kUnitRows, all to be multiplied with the columns from `first` on.
struct Unit {
  int begin;
  int end;
  int64_t first;
};

// Calls visit(thread, rows, count, c0, c1, dots) for tiles that cover every unit's rows times its
// columns [unit.first, last): dots[i * kUnitColumns + (c - c0)] = dot(token rows[i], column c).
//
// A task walks its rows once per chunk of columns; its rows and a chunk stay in L2. The first walk
// fetches them there, a unit ahead; in later ones that would only take time.
template <class Visit>
void for_each_tile(const Tokens& tokens, const std::vector<int>& rows,
                   const std::vector<Unit>& units, const Panel& panel, int64_t last, int threads,
                   const Visit& visit) {
  constexpr int64_t kUnitsPerTask = 4;  // 64 rows: 512 KB of bf16 at D = 4096
  const int64_t count = int64_t(units.size());
  int64_t dots_wanted = 0;
  for (const Unit& unit : units) dots_wanted += (unit.end - unit.begin) * (last - unit.first);
  threads = threads_for(dots_wanted * tokens.D, threads);
  const int64_t per_task =
      std::max<int64_t>(1, std::min(kUnitsPerTask, count / (int64_t(threads) * 4)));
  const Kernels& kernel = kernels();
  parallel_for(threads, (count + per_task - 1) / per_task, [&](int64_t task, int thread) {
    alignas(64) float dots[kUnitRows * kUnitColumns];
    const void* pointers[2][kUnitRows];  // of this unit and of the next
    auto point_to = [&](int64_t u) {
      const int* ids = rows.data() + units[u].begin;
      const int tall = units[u].end - units[u].begin;
      for (int i = 0; i < tall; ++i) pointers[u % 2][i] = tokens.row(ids[i]);
      return tall;
    };
    const int64_t begin = task * per_task, end = std::min(count, begin + per_task);
    int64_t from = last;
    for (int64_t u = begin; u < end; ++u) from = std::min(from, units[u].first);
    for (int64_t c = from; c < last; c += kUnitColumns) {
      const int64_t c1 = std::min<int64_t>(c + kUnitColumns, last);
      int tall = point_to(begin);
      for (int64_t u = begin; u < end; ++u) {
        const int count_next = u + 1 < end ? point_to(u + 1) : 0;
        const int64_t c0 = std::max(c, units[u].first);
        if (c0 < c1) {
          kernel.dots(tokens.dtype, pointers[u % 2], tall, panel.view(), c0, c1, dots, kUnitColumns,
                      pointers[(u + 1) % 2], c == from ? count_next : 0);
          visit(thread, rows.data() + units[u].begin, tall, c0, c1, dots);
        }
        tall = count_next;
      }
    }
  });
}

// Units over the whole list, all from column 0.
inline void split_units(int64_t rows, std::vector<Unit>& units) {
  units.clear();
  for (int64_t i = 0; i < rows; i += kUnitRows)
    units.push_back({int(i), int(std::min<int64_t>(i + kUnitRows, rows)), 0});
}

// Tokens (ascending) as columns of a product without a copy, for columns that are used once. Without
// `data` where that cannot be: they do not lie one after another, or the kernels want columns of this
// dtype in another form than rows.
PanelView rows_as_columns(const Tokens& tokens, const int* ids, int64_t count);

// cosines[a * n + b] of all pairs of the listed rows: the lower triangle is computed and mirrored,
// the diagonal is left alone. `panel` is scratch.
void gram(const Tokens& tokens, const std::vector<int>& rows, const float* inv, int threads,
          Panel& panel, float* cosines);

}  // namespace zspa::cpu
