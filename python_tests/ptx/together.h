// SPDX-License-Identifier: Apache-2.0
// Instructions of a whole warp, and matrix products of four warps.
#pragma once

#include <array>

#include "memory.h"
#include "units.h"

namespace ptx {

inline void whole(uint32_t lanes) {
  if (lanes != kAll) throw Fault("only a part of a warp reaches an instruction of all of it");
}

inline void meet_in_warp(Machine& m, Warp& w, const Instruction&, uint32_t lanes) {
  if (lanes == kAll) m.meet({&w});
}

enum class Shuffle { bfly, up, idx, down };

template <Shuffle MODE>
void shuffle(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]), *c = w.at(i.args[3]);
  std::array<uint64_t, kLanes> from;
  std::copy(a, a + kLanes, from.begin());
  for (int l = 0; l < kLanes; ++l) {
    const int by = int(b[l] & 31), clamp = int(c[l] & 31), segment = int(c[l] >> 8 & 31);
    const int low = l & segment, end = low | (clamp & ~segment);
    int source = MODE == Shuffle::bfly  ? l ^ by
                 : MODE == Shuffle::up  ? l - by
                 : MODE == Shuffle::idx ? low | (by & ~segment)
                                        : l + by;
    if (MODE == Shuffle::up ? source < end : source > end) source = l;
    d[l] = from[size_t(source)] & kAll;
  }
}

template <class T, T (*F)(T, T)>
void reduce(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]);
  T value = as<T>(a[0]);
  for (int l = 1; l < kLanes; ++l) value = F(value, as<T>(a[l]));
  std::fill_n(d, kLanes, bits(value));
}

// N matrices of 8 rows of 16 bytes; lane 8 k + r has the address of row r of matrix k.
template <int N>
void load_matrices(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  uint32_t rows[N * 8][4];
  for (int r = 0; r < N * 8; ++r) {
    const uint64_t address = shared_address(w, i, N, r);
    std::memcpy(rows[r], m.shared(w, address, 16), 16);
    m.read(w, kTogether, m.shared_shadow(w), address, 16, m.now);
  }
  for (int k = 0; k < N; ++k)
    for (int l = 0; l < kLanes; ++l) w.at(i.args[k])[l] = rows[8 * k + l / 4][l % 4];
}

template <int N>
void store_matrices(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  for (int r = 0; r < N * 8; ++r) {
    uint32_t row[4];
    for (int c = 0; c < 4; ++c) row[c] = uint32_t(w.at(i.args[1 + r / 8])[4 * (r % 8) + c]);
    const uint64_t address = shared_address(w, i, 0, r);
    char* to = m.shared(w, address, 16);
    const bool changes = std::memcmp(to, row, 16) != 0;
    std::memcpy(to, row, 16);
    m.write(w, kTogether, m.shared_shadow(w), address, 16, m.now, changes);
  }
}

// 16 rows of 16 numbers as a warp holds them: four registers of two numbers.
template <float (*F)(uint16_t)>
std::array<std::array<float, 16>, 16> fragment(Warp& w, const int64_t* slots) {
  std::array<std::array<float, 16>, 16> a;
  for (int part = 0; part < 4; ++part)
    for (int l = 0; l < kLanes; ++l)
      for (int half = 0; half < 2; ++half)
        a[size_t(l / 4 + 8 * (part % 2))][size_t(2 * (l % 4) + half + 8 * (part / 2))] =
            F(uint16_t(w.at(slots[part])[l] >> (16 * half)));
  return a;
}

// Sums of a warp, 16 rows and 8 columns in four registers: element (row, column) += products.
template <int PRODUCTS, int BITS, class Product>
void accumulate(Warp& w, const int64_t* into, const int64_t* before, const Product& product) {
  for (int part = 0; part < 4; ++part)
    for (int l = 0; l < kLanes; ++l) {
      const int row = l / 4 + 8 * (part / 2), column = 2 * (l % 4) + part % 2;
      const float old = before ? as<float>(w.at(before[part])[l]) : 0.0f;
      const float sum =
          add_products<PRODUCTS, BITS>(old, [&](int k) { return product(row, column, k); });
      w.at(into[part])[l] = bits(sum);
    }
}

// d [16, 8] = a [16, 16] b [16, 8] + c
template <float (*F)(uint16_t)>
void multiply(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  const auto a = fragment<F>(w, i.args + 4);
  float b[16][8];
  for (int part = 0; part < 2; ++part)
    for (int l = 0; l < kLanes; ++l)
      for (int half = 0; half < 2; ++half)
        b[2 * (l % 4) + half + 8 * part][l / 4] =
            F(uint16_t(w.at(i.args[8 + part])[l] >> (16 * half)));
  accumulate<8, 1>(w, i.args, i.args + 10, [&](int row, int column, int k) {
    return double(a[size_t(row)][size_t(k)]) * double(b[k][column]);
  });
}

// A matrix in shared memory as matrix units see it: rows of K, groups of 8 rows, places swizzled.
struct Described {
  uint64_t start, group, row, swizzle;

  // `wide`: 128, 64 or 32 bytes of a row, one after another.
  Described(uint64_t descriptor, uint64_t wide)
      : start((descriptor & 0x3fff) << 4),
        group((descriptor >> 32 & 0x3fff) << 4),
        row(wide),
        swizzle(wide / 16 - 1) {
    if (wide == 0 || (descriptor >> 49 & 7)) throw Fault("a matrix has an unknown layout");
  }
  uint64_t address(int r, int k) const {
    const uint64_t plain =
        start + uint64_t(r / 8) * group + uint64_t(r % 8) * row + 2 * uint64_t(k);
    return plain ^ ((plain >> 7 & swizzle) << 4);
  }
};

// As wgmma describes it.
inline Described described(uint64_t descriptor) {
  const uint64_t mode = descriptor >> 62;
  return {descriptor, mode == 0 ? 0 : 256u >> mode};
}

template <float (*F)(uint16_t)>
float element(Machine& m, const Warp& w, const Described& from, int r, int k, int64_t where) {
  const uint64_t address = from.address(r, k);
  uint16_t value;
  std::memcpy(&value, m.shared(w, address, 2), 2);
  m.read(w, kTogether, m.shared_shadow(w), address, 2, where);
  return F(value);
}

// d [64, N] = a [64, 16] b [16, N] (+ d), of which a warp has 16 rows. `a` lies in shared memory or
// in registers. Read and written when it is waited for.
template <float (*F)(uint16_t), int N, bool IN_REGISTERS>
void multiply_async(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  const int64_t* a = i.args + N / 2;
  const int64_t* b = a + (IN_REGISTERS ? 4 : 1);
  for (const int64_t* option = b + 2; option < i.end; ++option) {
    const bool scale = option < b + 4;
    if (w.at(*option)[0] != (scale ? 1u : 0u)) throw Fault("a product with an unknown option");
  }
  const int64_t where = m.now;
  std::array<std::array<float, 16>, 16> held{};
  if (IN_REGISTERS) held = fragment<F>(w, a);
  const uint64_t a_bits = w.at(a[0])[0], b_bits = w.at(b[0])[0];
  const bool adds = as<bool>(w.at(b[1])[0]);
  const int64_t* sums = i.args;
  w.products.open.push_back([=, &m](Warp& warp) {
    auto rows = held;
    if (!IN_REGISTERS) {
      const Described from = described(a_bits);
      const int first = warp.rank % 4 * 16;
      for (int r = 0; r < 16; ++r)
        for (int k = 0; k < 16; ++k)
          rows[size_t(r)][size_t(k)] = element<F>(m, warp, from, first + r, k, where);
    }
    const Described from = described(b_bits);
    for (int n = 0; n < N; n += 8) {
      float columns[8][16];
      for (int c = 0; c < 8; ++c)
        for (int k = 0; k < 16; ++k) columns[c][k] = element<F>(m, warp, from, n + c, k, where);
      const int64_t* part = sums + n / 2;
      accumulate<16, 2>(warp, part, adds ? part : nullptr, [&](int r, int c, int k) {
        return double(rows[size_t(r)][size_t(k)]) * double(columns[c][k]);
      });
    }
  });
}

inline void commit_products(Machine&, Warp& w, const Instruction&, uint32_t lanes) {
  whole(lanes);
  w.products.commit();
}

inline void wait_products(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  w.products.wait(w, int64_t(w.at(i.args[0])[0]));
}

}  // namespace ptx
