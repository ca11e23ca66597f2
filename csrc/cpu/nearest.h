// SPDX-License-Identifier: Apache-2.0
// Which column is most similar to a narrow row; microkernel.h includes this file into the anonymous
// namespace of each instruction set.
//
// Operation   : the largest and the second largest cosine of a row with many columns, and the place of the
//               former. `dots` sums along the lanes, which for a few channels costs more than the products;
//               here columns lie along the lanes, and no cosine leaves the registers.
// Inputs      : rows [kNearRows][D] and columns [groups][D][kNearColumns], all of length 1; bias [columns]
//               is added to the cosines, which keeps columns that only fill a group from being chosen.
// Mapping     : a tile of kNearRows x kNearColumns in registers; what is best so far for each lane.
// Numerics    : float32, sums of kNearDepth channels one product at a time: partial sums are at most 1, so
//               the error is below kNearDepth * 2^-25, and a little more for each further sum.

#ifndef ZSPA_ISA_DEFINED
#error "include nearest.h from microkernel.h only"
#endif

typedef int32_t Places __attribute__((vector_size(L * sizeof(int32_t))));

constexpr int kNearRows = L == 16 ? 12 : 6;
constexpr int kNearHalves = 2;
constexpr int64_t kNearColumns = kNearHalves * L;
constexpr int64_t kNearDepth = 64;

struct BestOfLanes {
  typename Isa::Vec best, second;
  Places place;
};

// sums [kNearRows][kNearHalves] += the products of `depth` channels.
void add_products(const float* rows, const float* columns, int64_t depth, int64_t D,
                  typename Isa::Vec (&sums)[kNearRows][kNearHalves]) {
  typename Isa::Vec c[kNearRows][kNearHalves];
  unrolled<kNearRows>([&](auto i) ZSPA_INLINE {
    unrolled<kNearHalves>([&](auto half) ZSPA_INLINE { c[i][half] = Isa::zero(); });
  });
  for (int64_t d = 0; d < depth; ++d, columns += kNearColumns) {
    typename Isa::Vec column[kNearHalves];
    unrolled<kNearHalves>([&](auto half)
                              ZSPA_INLINE { column[half] = Isa::load(columns + half * L); });
    unrolled<kNearRows>([&](auto i) ZSPA_INLINE {
      const typename Isa::Vec x = Isa::all(rows[i * D + d]);
      unrolled<kNearHalves>(
          [&](auto half) ZSPA_INLINE { c[i][half] = Isa::fma(x, column[half], c[i][half]); });
    });
  }
  unrolled<kNearRows>([&](auto i) ZSPA_INLINE {
    unrolled<kNearHalves>([&](auto half)
                              ZSPA_INLINE { sums[i][half] = Isa::add(sums[i][half], c[i][half]); });
  });
}

// The best of all lanes, and the best of what is left.
void fold_lanes(const BestOfLanes& lanes, float& best, float& second, int32_t& place) {
  best = second = kNoCosine;
  place = 0;
  for (int x = 0; x < L; ++x) {
    const float first = lanes.best[x], next = lanes.second[x];
    if (first > best) {
      second = best > next ? best : next;
      best = first;
      place = lanes.place[x];
    } else if (first > second) {
      second = first;
    }
  }
}

void nearest(const float* rows, int64_t D, const float* columns, const float* bias, int64_t groups,
             float* best, float* second, int32_t* place) {
  BestOfLanes lanes[kNearRows];
  for (BestOfLanes& own : lanes) {
    own.best = own.second = Isa::all(kNoCosine);
    own.place = Places{};
  }
  Places places[kNearHalves];
  for (int x = 0; x < kNearColumns; ++x) places[x / L][x % L] = x;
  for (int64_t g = 0; g < groups; ++g) {
    typename Isa::Vec sums[kNearRows][kNearHalves];
    for (auto& row : sums)
      for (int half = 0; half < kNearHalves; ++half)
        row[half] = Isa::load(bias + g * kNearColumns + half * L);
    for (int64_t d = 0; d < D; d += kNearDepth)
      add_products(rows + d, columns + (g * D + d) * kNearColumns, std::min(kNearDepth, D - d), D,
                   sums);
    for (int i = 0; i < kNearRows; ++i) {
      BestOfLanes& own = lanes[i];
      for (int half = 0; half < kNearHalves; ++half) {
        const typename Isa::Vec x = sums[i][half];
        const typename Isa::Vec less = x < own.best ? x : own.best;
        own.second = less > own.second ? less : own.second;
        own.place = x > own.best ? places[half] : own.place;
        own.best = x > own.best ? x : own.best;
      }
    }
    for (Places& own : places) own += int32_t(kNearColumns);
  }
  for (int i = 0; i < kNearRows; ++i) fold_lanes(lanes[i], best[i], second[i], place[i]);
}
