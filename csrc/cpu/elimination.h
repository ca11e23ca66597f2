// SPDX-License-Identifier: Apache-2.0
// Forward substitution, written once; microkernel.h includes this file into the anonymous namespace
// of each instruction set.
//
// Operation   : columns of a Cholesky factor of kUnitRows rows, from their entries of the matrix.
// Mapping     : rows lie along the vector lanes; up to eight columns are summed at once.
// Numerics    : float32. The sum of an element is one chain over the columns before it, in their
//               order, so its bits depend neither on the tile nor on how many columns a call makes.

#ifndef ZSPA_ISA_DEFINED
#error "include elimination.h from microkernel.h only"
#endif

// Columns [first, first + COLUMNS) of a tile [columns][kUnitRows].
template <int COLUMNS>
void eliminate_columns(float* tile, int64_t first, const float* const* pivots,
                       const float* scales) {
  for (int lane = 0; lane < kUnitRows; lane += L) {
    typename Isa::Vec sum[COLUMNS];  // of products, minus the entry of the matrix
    float* own = tile + first * kUnitRows + lane;
    unrolled<COLUMNS>([&](auto c) ZSPA_INLINE {
      sum[c] = Isa::zero() - Isa::load(own + c * kUnitRows);  // [kLanes]
    });
    for (int64_t s = 0; s < first; ++s) {
      const typename Isa::Vec before = Isa::load(tile + s * kUnitRows + lane);  // [kLanes]
      unrolled<COLUMNS>([&](auto c) ZSPA_INLINE {
        sum[c] = Isa::fma(pivots[c][s] - Isa::zero(), before, sum[c]);
      });
    }
    for (int c = 0; c < COLUMNS; ++c) {
      for (int s = 0; s < c; ++s) {
        const typename Isa::Vec before = Isa::load(own + s * kUnitRows);
        sum[c] = Isa::fma(pivots[c][first + s] - Isa::zero(), before, sum[c]);
      }
      Isa::store(own + c * kUnitRows, sum[c] * -scales[c]);
    }
  }
}

void eliminate(float* tile, int64_t first, int64_t last, const float* const* pivots,
               const float* scales) {
  int64_t c = first;
  for (; c + 8 <= last; c += 8) eliminate_columns<8>(tile, c, pivots + c, scales + c);
  for (; c < last; ++c) eliminate_columns<1>(tile, c, pivots + c, scales + c);
}
