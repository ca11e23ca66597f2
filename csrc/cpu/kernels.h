// SPDX-License-Identifier: Apache-2.0
// The seam between the algorithms (one copy, no instruction set) and the inner loops (one copy per
// instruction set). Everything hot is behind `Kernels`; the best table the CPU can run is chosen once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../common/dtype.h"

namespace zspa::cpu {

// Rows and columns of one product call at most. The columns of a call (400 KB at D = 4096) stay in L2
// while rows stream past them.
constexpr int kUnitRows = 16;
constexpr int kUnitColumns = 24;

// Depth of one block of a panel, in bytes of a packed column: a column group of a block and the rows
// of a tile beside it fit into L1. Shallower blocks load and store the sums of a tile more often. The
// block size does not change the order of a sum: accumulators live across blocks.
constexpr int64_t kBlockBytes = 4096;

// Columns of a product, packed for the inner loop: [block][column][depth of a block], zero padded.
// An element is a float, or a bfloat16 where the instruction set multiplies those directly.
struct PanelView {
  char* data;
  int64_t D;             // channels
  int64_t blocks;        // ceil(D / kBlockDepth), evened out
  int64_t depth;         // elements of a block, a multiple of the kernel's step
  int64_t column_bytes;  // distance of two columns inside a block
  int64_t block_bytes;   // distance of two blocks
};

// The numbers are part of the interface with zspa_kernels/backends/cpp/sensitivity.py.
enum class Activation : int { gelu = 0, gelu_tanh, quick_gelu, silu, relu, identity };

// Up to this step, act(a + d) - act(a - d) is 2 d (act'(a) + act'''(a) d^2 / 6) to float32's
// precision: the next term is at most 4e-7. Beyond, the difference itself loses no more than that.
constexpr float kSeriesStep = 0x1p-4f;

// Less than every cosine.
constexpr float kNoCosine = -4.0f;

// What `fold` does with x = row[d] * scale: adds it to the sum, or keeps the larger (scale unused).
enum class Fold : int { sum, largest };

struct Kernels {
  const char* name;
  int64_t step;  // elements of a row that one iteration of the inner loop consumes

  int64_t (*packed_size)(DType dtype);  // bytes of a packed element

  // Row -> column `column` of the panel.
  void (*pack)(DType dtype, const void* row, const PanelView& panel, int64_t column);

  // out[i * out_stride + (c - first)] = dot(rows[i], column c) for first <= c < last, i < count.
  // Every dot is summed in one order that depends on D and the dtype alone, and is symmetric:
  // dot(a, b) and dot(b, a) have the same bits, whatever the tile they fall into.
  // Needs count <= kUnitRows and last - first <= kUnitColumns. `ahead` (null, or `ahead_count` rows)
  // is what the caller multiplies next: it is fetched into L2 meanwhile. Rows lie anywhere in memory
  // and are read in pieces of a block, too short for the hardware to see them coming.
  void (*dots)(DType dtype, const void* const* rows, int count, const PanelView& panel,
               int64_t first, int64_t last, float* out, int64_t out_stride,
               const void* const* ahead, int ahead_count);

  // Float vector -> the element order in which `row_pass` reads rows of this dtype, zero padded to
  // a multiple of `step` (ordered_size elements).
  void (*order)(DType dtype, const float* vector, int64_t D, float* ordered);

  // One read of a row: its sum of squares and its dots with `count` ordered vectors.
  void (*row_pass)(DType dtype, const void* row, int64_t D, const float* const* vectors, int count,
                   float* squares, float* dots);

  // Folds the channels [begin, end) of a row into `pooled`, in their natural order.
  void (*fold)(Fold fold, DType dtype, const void* row, float scale, int64_t begin, int64_t end,
               float* pooled);

  // out[i] = act'(x[i] + bias[i]), as floats or bfloat16; `out` may be `x`. A null bias is zero.
  // Returns sum(diagonal[i] act'^2), 0 for a null diagonal.
  float (*slope)(Activation activation, DType dtype, const void* x, const float* bias, int64_t n,
                 const float* diagonal, DType to, void* out);

  // What `quotient` needs to know of act around at[i] = x[i] + bias[i]: act' and act''' / 6.
  // The outputs hold n elements rounded up to a multiple of 16.
  void (*expand)(Activation activation, DType dtype, const void* x, const float* bias, int64_t n,
                 float* at, float* first, float* third);

  // out[i] = (act(at[i] + d) - act(at[i] - d)) / (2 radius), d = radius * shifts[i]; for radius 0
  // its limit. `wide`: some |d| may exceed kSeriesStep.
  void (*quotient)(Activation activation, const float* at, const float* first, const float* third,
                   const float* shifts, float radius, bool wide, int64_t n, DType to, void* out);

  // Columns [first, last) of the Cholesky factor of kUnitRows rows. tile: [last][kUnitRows], columns
  // below `first` done; the others hold the matrix, and the factor afterwards:
  //   tile[c][i] = (tile[c][i] - sum_{s < c} pivots[c][s] * tile[s][i]) * scales[c].
  // pivots[c]: row of the factor that belongs to column c; scales[c]: 1 / its diagonal entry.
  void (*eliminate)(float* tile, int64_t first, int64_t last, const float* const* pivots,
                    const float* scales);

  // sum_i max(0, column[i] * factors[i] - best[i]); n is a multiple of 16. Never more for a larger
  // `best`, bit for bit.
  float (*covered)(const float* column, const float* factors, const float* best, int64_t n,
                   const float* ahead);

  // sum_d (twice[d] - row[d]) row[d] in double: the squared length of a point, twice which is given,
  // less the squared distance of the row to it.
  double (*nearness)(DType dtype, const void* row, int64_t D, const double* twice);

  // The dot of two rows in double: the same bits on every instruction set.
  double (*wide_dot)(DType dtype, const void* a, const void* b, int64_t D);

  // The sum of absolute values of a row in double: the same bits on every instruction set.
  double (*absolute_sum)(DType dtype, const void* row, int64_t D);

  // least[i] <= exp(apart[i] - sharpness (1 - c)^2) <= most[i] for every c <= 1 within `slack` of
  // cosines[i]. Weights below e^-50 count as 0: so many of them as there are tokens change no score
  // by a step of its grid. apart: at most 0. n: a multiple of 8.
  void (*weights)(const float* cosines, const double* apart, int64_t n, double sharpness,
                  double slack, double* most, double* least);

  // The most similar ones of `groups` times `near_columns` columns to each of `near_rows` rows [D], all
  // of length 1: best and second largest cosine, place of the former; kNoCosine if there is none.
  // columns [groups][D][near_columns]; bias [groups][near_columns] is added to the cosines: kNoCosine
  // for what is no column. A cosine is within 2^-18 of the exact one for D up to 1024.
  int64_t near_rows, near_columns;
  void (*nearest)(const float* rows, int64_t D, const float* columns, const float* bias,
                  int64_t groups, float* best, float* second, int32_t* place);
};

static inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// The table in use: the best this CPU can run, or the one `use_isa` asked for.
const Kernels& kernels();

// The sum of squares of a row [D].
inline float squared_length(DType dtype, const void* row, int64_t D) {
  float squares;
  kernels().row_pass(dtype, row, D, nullptr, 0, &squares, nullptr);
  return squares;
}
std::vector<std::string> isas();        // what this build and this CPU can run, best first
void use_isa(const std::string& name);  // "auto" or one of isas(); for tests and benchmarks

const Kernels& portable_kernels();
#if ZSPA_HAVE_AVX2
const Kernels& avx2_kernels();
#endif
#if ZSPA_HAVE_AVX512
const Kernels& avx512_kernels();
#endif
#if ZSPA_HAVE_AVX512BF16
const Kernels& avx512bf16_kernels();
#endif

}  // namespace zspa::cpu
