// SPDX-License-Identifier: Apache-2.0
// Inner loops, written once. Each kernels_<isa>.cpp defines `struct Isa` (vector type and a dozen
// operations) in an anonymous namespace and then includes this file into it, so that code compiled
// for one instruction set is never shared with another.
//
// Operation   : dots of a few rows with a packed panel of columns; norms and relevance of a row.
// Inputs      : rows [D] of float32, float16 or bfloat16; panel as in kernels.h.
// Work        : 2 D flops a dot; a row is converted once per kNR columns, a column once, when packed.
// Mapping     : channels lie along the vector lanes; a tile of kMR rows x kNR columns lives in registers.
// Numerics    : float32 accumulation, 2 * kLanes partial sums a dot where the row is converted, a
//               fixed tree at the end. The order depends on D and the dtype only, never on the tile.
// Limits      : count <= kUnitRows rows and kUnitColumns columns a call.

#ifndef ZSPA_ISA_DEFINED
#error "include microkernel.h from a kernels_<isa>.cpp only"
#endif

constexpr int L = Isa::kLanes;

// How rows of T meet a panel when both sides are multiplied as floats.
template <class T>
struct Converted {
  using Packed = float;
  using Operand = typename Isa::Vec;
  static constexpr int64_t kStep = 2 * L;
  static constexpr int kHalves = 2;
  static Operand load_row(const T* p, int half) { return Isa::load_half(p, half); }
  static Operand load_column(const float* p, int half) { return Isa::load(p + half * L); }
  static typename Isa::Vec mul_add(Operand a, Operand b, typename Isa::Vec c) {
    return Isa::fma(a, b, c);
  }
  static void pack_step(const T* from, float* to) {
    Isa::store(to, Isa::load_half(from, 0));
    Isa::store(to + L, Isa::load_half(from, 1));
  }
};

template <class T>
struct Product {
  using type = Converted<T>;
};
#ifdef ZSPA_ISA_NATIVE_BF16
template <>
struct Product<BFloat16> {
  using type = NativeBf16;
};
#endif

constexpr int64_t kStep = 2 * L;  // of every product of this instruction set

// body(0), ..., body(COUNT - 1) with compile-time indices. A plain loop over a tile is unrolled too late
// for GCC to keep the tile's sums in registers.
template <class Body, int... I>
[[gnu::always_inline]] inline void unrolled(const Body& body, std::integer_sequence<int, I...>) {
  (body(std::integral_constant<int, I>{}), ...);
}
template <int COUNT, class Body>
[[gnu::always_inline]] inline void unrolled(const Body& body) {
  unrolled(body, std::make_integer_sequence<int, COUNT>{});
}

#define ZSPA_INLINE __attribute__((always_inline))

// `fresh` starts the sums; otherwise they go on from `acc`.
template <class P, class T, int MR, int NR>
void tile(const T* const* rows, int64_t at, const typename P::Packed* columns,
          int64_t column_stride, int64_t depth, float* acc, int64_t acc_stride, bool fresh) {
  typename Isa::Vec c[MR][NR];
  unrolled<MR>([&](auto i) ZSPA_INLINE {
    unrolled<NR>([&](auto j) ZSPA_INLINE {
      c[i][j] = fresh ? Isa::zero() : Isa::load(acc + i * acc_stride + j * L);
    });
  });
  const T* row[MR];
  unrolled<MR>([&](auto i) ZSPA_INLINE { row[i] = rows[i] + at; });
  for (int64_t k = 0; k < depth; k += P::kStep) {
    unrolled<P::kHalves>([&](auto half) ZSPA_INLINE {
      typename P::Operand a[MR];  // [kLanes] of each row
      unrolled<MR>([&](auto i) ZSPA_INLINE { a[i] = P::load_row(row[i] + k, half); });
      unrolled<NR>([&](auto j) ZSPA_INLINE {
        const typename P::Operand b = P::load_column(columns + j * column_stride + k, half);
        unrolled<MR>([&](auto i) ZSPA_INLINE { c[i][j] = P::mul_add(a[i], b, c[i][j]); });
      });
    });
  }
  unrolled<MR>([&](auto i) ZSPA_INLINE {
    unrolled<NR>([&](auto j) ZSPA_INLINE { Isa::store(acc + i * acc_stride + j * L, c[i][j]); });
  });
}

template <class P, class T, int MR>
void tile_columns(int columns_left, const T* const* rows, int64_t at,
                  const typename P::Packed* columns, int64_t column_stride, int64_t depth,
                  float* acc, int64_t acc_stride, bool fresh) {
#define ZSPA_TILE(NR) \
  tile<P, T, MR, NR>(rows, at, columns, column_stride, depth, acc, acc_stride, fresh)
  switch (columns_left) {
    case 1: return ZSPA_TILE(1);
    case 2: return ZSPA_TILE(2);
    case 3: return ZSPA_TILE(3);
#if ZSPA_ISA_NR == 4
    default: return ZSPA_TILE(4);
#else
    case 4: return ZSPA_TILE(4);
    case 5: return ZSPA_TILE(5);
    default: return ZSPA_TILE(6);
#endif
  }
#undef ZSPA_TILE
}

template <class P, class T>
void tile_any(int rows_left, int columns_left, const T* const* rows, int64_t at,
              const typename P::Packed* columns, int64_t column_stride, int64_t depth, float* acc,
              int64_t acc_stride, bool fresh) {
#define ZSPA_ROWS(MR)                                                                            \
  tile_columns<P, T, MR>(columns_left, rows, at, columns, column_stride, depth, acc, acc_stride, \
                         fresh)
  switch (rows_left) {
    case 1: return ZSPA_ROWS(1);
    case 2: return ZSPA_ROWS(2);
#if ZSPA_ISA_MR == 3
    default: return ZSPA_ROWS(3);
#else
    case 3: return ZSPA_ROWS(3);
    default: return ZSPA_ROWS(4);
#endif
  }
#undef ZSPA_ROWS
}

// Fetches whole rows in equal portions, one portion a call of `some`.
class Prefetch {
 public:
  Prefetch(const void* const* rows, int count, int64_t row_bytes, int64_t portions)
      : rows_(rows),
        row_bytes_(row_bytes),
        lines_a_row_((row_bytes + kLine - 1) / kLine),
        portion_(((rows ? count : 0) * lines_a_row_ + portions - 1) / portions),
        left_((rows ? count : 0) * lines_a_row_) {}

  void some() {
    int64_t todo = portion_ < left_ ? portion_ : left_;
    left_ -= todo;
    for (; todo > 0; --todo) {
      __builtin_prefetch(static_cast<const char*>(*rows_) + at_, 0, 2);
      at_ += kLine;
      if (at_ >= row_bytes_) {
        at_ = 0;
        ++rows_;
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const void* const* rows_;
  int64_t row_bytes_, lines_a_row_, portion_, left_;
  int64_t at_ = 0;  // in *rows_
};

template <class T>
void dots_of(const T* const* rows, int count, const PanelView& panel, int64_t first, int64_t last,
             float* out, int64_t out_stride, const void* const* ahead, int ahead_count) {
  using P = typename Product<T>::type;
  using Packed = typename P::Packed;
  const int columns = int(last - first);
  const int64_t acc_stride = int64_t(columns) * L;  // of a row
  // The sums of the last columns are read in a full group: L more than there are.
  alignas(64) float acc[(kUnitRows * kUnitColumns + L) * L];
  // The last channels of each row, zero padded to a whole step: rows are never read past D.
  alignas(64) T tails[kUnitRows][kStep];
  const T* tail_rows[kUnitRows];
  const int64_t whole = panel.D / kStep * kStep;
  if (whole < panel.D) {
    for (int i = 0; i < count; ++i) {
      std::memset(tails[i], 0, sizeof tails[i]);
      std::memcpy(tails[i], rows[i] + whole, size_t(panel.D - whole) * sizeof(T));
      tail_rows[i] = tails[i];
    }
  }
  const int64_t groups = (last - first + Isa::kNR - 1) / Isa::kNR;
  Prefetch prefetch(ahead, ahead_count, panel.D * int64_t(sizeof(T)), panel.blocks * groups);
  for (int64_t block = 0; block < panel.blocks; ++block) {
    const int64_t at = block * panel.depth;
    const int64_t depth = std::min(panel.depth, whole - at);
    for (int64_t c = first; c < last; c += Isa::kNR) {
      prefetch.some();
      const char* base = panel.data + block * panel.block_bytes + c * panel.column_bytes;
      const Packed* group = reinterpret_cast<const Packed*>(base);
      const int64_t stride = panel.column_bytes / int64_t(sizeof(Packed));
      const int wide = int(std::min<int64_t>(Isa::kNR, last - c));
      for (int i = 0; i < count; i += Isa::kMR) {
        float* sums = acc + i * acc_stride + (c - first) * L;
        const int tall = std::min(Isa::kMR, count - i);
        tile_any<P, T>(tall, wide, rows + i, at, group, stride, depth, sums, acc_stride,
                       block == 0);
        if (block == panel.blocks - 1 && whole < panel.D)
          tile_any<P, T>(tall, wide, tail_rows + i, 0, group + std::max<int64_t>(depth, 0), stride,
                         kStep, sums, acc_stride, false);
      }
    }
  }
  // The sums lie one after another, [count * columns][kLanes]; kLanes of them are added up at once.
  int64_t i = 0, c = 0;
  for (int64_t done = 0; done < int64_t(count) * columns; done += L) {
    float values[L];
    Isa::sums(acc + done * L, values);
    for (int x = 0; x < L && i < count; ++x) {
      out[i * out_stride + c] = values[x];
      if (++c == columns) {
        c = 0;
        ++i;
      }
    }
  }
}

template <class T>
void pack_of(const T* row, const PanelView& panel, int64_t column) {
  using P = typename Product<T>::type;
  for (int64_t block = 0; block < panel.blocks; ++block) {
    char* base = panel.data + block * panel.block_bytes + column * panel.column_bytes;
    auto* to = reinterpret_cast<typename P::Packed*>(base);
    for (int64_t k = 0; k < panel.depth; k += kStep) {
      const int64_t at = block * panel.depth + k;
      const int64_t rest = panel.D - at;
      if (rest >= kStep) {
        P::pack_step(row + at, to + k);
      } else {
        alignas(64) T padded[kStep] = {};
        if (rest > 0) std::memcpy(padded, row + at, size_t(rest) * sizeof(T));
        P::pack_step(padded, to + k);
      }
    }
  }
}

template <class T, int COUNT>
void row_pass_of(const T* row, int64_t D, const float* const* vectors, float* squares,
                 float* dots) {
  typename Isa::Vec q[2] = {Isa::zero(), Isa::zero()};
  typename Isa::Vec s[COUNT + 1][2];
  for (int v = 0; v < COUNT; ++v) s[v][0] = s[v][1] = Isa::zero();
  auto step = [&](int64_t k, auto... rest) ZSPA_INLINE {
    unrolled<2>([&](auto half) ZSPA_INLINE {
      const typename Isa::Vec x = Isa::load_half(row + k, half, rest...);  // [kLanes]
      q[half] = Isa::fma(x, x, q[half]);
      unrolled<COUNT>([&](auto v) ZSPA_INLINE {
        s[v][half] = Isa::fma(x, Isa::load(vectors[v] + k + half * L), s[v][half]);
      });
    });
  };
  int64_t k = 0;
  for (; k + kStep <= D; k += kStep) step(k);
  if (k < D) step(k, int(D - k));
  *squares = Isa::sum(Isa::add(q[0], q[1]));
  for (int v = 0; v < COUNT; ++v) dots[v] = Isa::sum(Isa::add(s[v][0], s[v][1]));
}

template <class T>
void row_pass_any(const T* row, int64_t D, const float* const* vectors, int count, float* squares,
                  float* dots) {
  switch (count) {
    case 0: return row_pass_of<T, 0>(row, D, vectors, squares, dots);
    case 1: return row_pass_of<T, 1>(row, D, vectors, squares, dots);
    default: break;
  }
  int v = 0;
  for (; v + 4 <= count; v += 4) row_pass_of<T, 4>(row, D, vectors + v, squares, dots + v);
  for (; v < count; ++v) row_pass_of<T, 1>(row, D, vectors + v, squares, dots + v);
}

// One switch a call from the type the caller names to the type the loops are compiled for.
#define ZSPA_BY_DTYPE(CALL) \
  switch (dtype) {          \
    case DType::f32: {      \
      using T = float;      \
      CALL;                 \
    } break;                \
    case DType::f16: {      \
      using T = Half;       \
      CALL;                 \
    } break;                \
    case DType::bf16: {     \
      using T = BFloat16;   \
      CALL;                 \
    } break;                \
  }

int64_t packed_size(DType dtype) {
  int64_t size = 0;
  ZSPA_BY_DTYPE(size = sizeof(typename Product<T>::type::Packed))
  return size;
}

void pack(DType dtype, const void* row, const PanelView& panel, int64_t column) {
  ZSPA_BY_DTYPE(pack_of(static_cast<const T*>(row), panel, column))
}

void dots(DType dtype, const void* const* rows, int count, const PanelView& panel, int64_t first,
          int64_t last, float* out, int64_t out_stride, const void* const* ahead, int ahead_count) {
  ZSPA_BY_DTYPE(dots_of(reinterpret_cast<const T* const*>(rows), count, panel, first, last, out,
                        out_stride, ahead, ahead_count))
}

// Rows of bfloat16 are read as even and odd channels (two cheap operations a load, no shuffle).
void order(DType dtype, const float* vector, int64_t D, float* ordered) {
  alignas(64) float step[kStep];
  for (int64_t k = 0; k < D; k += kStep) {
    const float* from = vector + k;
    if (D - k < kStep) {
      std::fill(step, step + kStep, 0.0f);
      std::copy(from, vector + D, step);
      from = step;
    }
    for (int64_t x = 0; x < L; ++x) {
      ordered[k + x] = dtype == DType::bf16 ? from[2 * x] : from[x];
      ordered[k + L + x] = dtype == DType::bf16 ? from[2 * x + 1] : from[L + x];
    }
  }
}

void row_pass(DType dtype, const void* row, int64_t D, const float* const* vectors, int count,
              float* squares, float* dots) {
  ZSPA_BY_DTYPE(row_pass_any(static_cast<const T*>(row), D, vectors, count, squares, dots))
}

// The compiler vectorises these loops; they are here to be compiled for each instruction set.
template <class T>
void fold_of(Fold fold, const T* __restrict row, float scale, int64_t begin, int64_t end,
             float* __restrict pooled) {
  if (fold == Fold::sum) {
    for (int64_t d = begin; d < end; ++d) pooled[d] += to_float(row[d]) * scale;
  } else {
    for (int64_t d = begin; d < end; ++d) {
      const float x = to_float(row[d]);
      pooled[d] = x > pooled[d] ? x : pooled[d];
    }
  }
}

void fold(Fold fold, DType dtype, const void* row, float scale, int64_t begin, int64_t end,
          float* pooled) {
  ZSPA_BY_DTYPE(fold_of(fold, static_cast<const T*>(row), scale, begin, end, pooled))
}

#include "activations.h"
#include "coverage.h"
#include "elimination.h"
#include "nearest.h"
#include "nearness.h"
#include "wide.h"

#undef ZSPA_BY_DTYPE

const Kernels table = {Isa::kName,   kStep,     packed_size, pack,         dots,
                       order,        row_pass,  fold,        slope,        expand,
                       quotient,     eliminate, covered,     nearness,     wide_dot,
                       absolute_sum, weights,   kNearRows,   kNearColumns, nearest};
