// SPDX-License-Identifier: Apache-2.0
// Instructions that each lane does for itself, without memory.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "machine.h"

namespace ptx {

#define EACH_LANE(l)               \
  for (int l = 0; l < kLanes; ++l) \
    if (lanes >> l & 1)

template <class Out, class In, Out (*F)(In)>
void unary(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]);
  EACH_LANE(l) d[l] = bits<Out>(F(as<In>(a[l])));
}

template <class Out, class In, Out (*F)(In, In)>
void binary(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]);
  EACH_LANE(l) d[l] = bits<Out>(F(as<In>(a[l]), as<In>(b[l])));
}

template <class Out, class In, Out (*F)(In, In, Out)>
void ternary(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]), *c = w.at(i.args[3]);
  EACH_LANE(l) d[l] = bits<Out>(F(as<In>(a[l]), as<In>(b[l]), as<Out>(c[l])));
}

// Of two numbers in one register.
template <float (*F)(float, float)>
void binary_pair(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]);
  EACH_LANE(l)
  d[l] = bits(F(as<float>(a[l]), as<float>(b[l]))) |
         bits(F(as<float>(a[l] >> 32), as<float>(b[l] >> 32))) << 32;
}

template <float (*F)(float, float, float)>
void ternary_pair(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]), *c = w.at(i.args[3]);
  EACH_LANE(l)
  d[l] = bits(F(as<float>(a[l]), as<float>(b[l]), as<float>(c[l]))) |
         bits(F(as<float>(a[l] >> 32), as<float>(b[l] >> 32), as<float>(c[l] >> 32))) << 32;
}

template <class T>
T add(T a, T b) {
  return T(a + b);
}
template <class T>
T sub(T a, T b) {
  return T(a - b);
}
template <class T>
T mul(T a, T b) {
  return T(a * b);
}
template <class T>
T quotient(T a, T b) {
  return b == 0 ? T(-1) : T(a / b);
}
template <class T>
T remainder_of(T a, T b) {
  return b == 0 ? a : T(a % b);
}
template <class T>
T divided(T a, T b) {
  return a / b;
}
template <class T>
T both(T a, T b) {
  return T(a & b);
}
template <class T>
T either(T a, T b) {
  return T(a | b);
}
template <class T>
T differ(T a, T b) {
  return T(a ^ b);
}
template <class T>
T negative(T a) {
  return T(-a);
}
template <class T>
T inverted(T a) {
  return T(~a);
}
inline bool inverted_bool(bool a) { return !a; }
template <class T>
T least(T a, T b) {
  return std::min(a, b);
}
template <class T>
T most(T a, T b) {
  return std::max(a, b);
}
inline int32_t least_positive(int32_t a, int32_t b) { return std::max(std::min(a, b), 0); }
template <class T>
T absolute(T a) {
  return T(std::abs(a));
}
template <class T>
T same(T a) {
  return a;
}
template <class T>
T root(T a) {
  return std::sqrt(a);
}
// Of a NaN and a number the number; -0 is below +0.
template <class T>
T fleast(T a, T b) {
  if (a == 0 && b == 0) return std::signbit(a) ? a : b;
  return std::fmin(a, b);
}
template <class T>
T fmost(T a, T b) {
  if (a == 0 && b == 0) return std::signbit(a) ? b : a;
  return std::fmax(a, b);
}
inline float largest_size(float a, float b) { return fmost(std::fabs(a), std::fabs(b)); }
template <float (*F)(float, float)>
float of_three(float a, float b, float c) {
  return F(F(a, b), c);
}
inline float flushed(float a) {
  return std::fpclassify(a) == FP_SUBNORMAL ? std::copysign(0.0f, a) : a;
}
inline float flushed_abs(float a) { return std::abs(flushed(a)); }
inline float exp2_flushed(float a) { return flushed(std::exp2(flushed(a))); }
inline float exp2_plain(float a) { return std::exp2(a); }
inline double rough_inverse(double a) { return as<double>(bits(1.0 / a) & 0xffffffff00000000ull); }
template <class T>
T fused(T a, T b, T c) {
  return std::fma(a, b, c);
}
inline float fused_flushed(float a, float b, float c) {
  return flushed(std::fma(flushed(a), flushed(b), flushed(c)));
}
template <class Out, class In>
Out wide_mul(In a, In b) {
  return Out(a) * Out(b);
}
template <class Out, class In>
Out wide_mad(In a, In b, Out c) {
  using U = std::make_unsigned_t<Out>;
  return Out(U(Out(a)) * U(Out(b)) + U(c));
}
template <class T, T (*F)(T, T)>
void shift(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]);
  constexpr uint32_t width = sizeof(T) * 8;
  EACH_LANE(l) {
    const uint32_t by = std::min(uint32_t(b[l]), width);
    d[l] = bits<T>(F(as<T>(a[l]), T(by)));
  }
}
template <class T>
T left(T a, T by) {
  return uint32_t(by) >= sizeof(T) * 8 ? T(0) : T(a << by);
}
template <class T>
T right(T a, T by) {
  if (uint32_t(by) >= sizeof(T) * 8) return std::is_signed_v<T> && a < 0 ? T(-1) : T(0);
  return T(a >> by);
}
template <class T>
int32_t ones(T a) {
  return __builtin_popcountll(a);
}
template <class T>
void field(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {  // bfe
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]), *c = w.at(i.args[3]);
  EACH_LANE(l) {
    const uint32_t from = b[l] & 255, width = c[l] & 255;
    const int64_t value =
        std::is_signed_v<T> ? int64_t(as<int32_t>(a[l])) : int64_t(as<uint32_t>(a[l]));
    int64_t part = width == 0 ? 0 : value >> std::min(from, 63u);
    if (width > 0 && width < 64) {
      part &= (int64_t(1) << width) - 1;
      if (std::is_signed_v<T> && (part >> (width - 1) & 1)) part |= -(int64_t(1) << width);
    }
    d[l] = bits<T>(T(part));
  }
}
inline void permute(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {  // prmt
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]), *c = w.at(i.args[3]);
  EACH_LANE(l) {
    const uint64_t from = (b[l] & kAll) << 32 | (a[l] & kAll);
    uint32_t out = 0;
    for (int k = 0; k < 4; ++k) {
      const uint32_t pick = c[l] >> (4 * k) & 15;
      uint32_t byte = from >> (8 * (pick & 7)) & 255;
      if (pick & 8) byte = byte & 128 ? 255 : 0;
      out |= byte << (8 * k);
    }
    d[l] = out;
  }
}

// ---- conversions --------------------------------------------------------------------------------

inline float from_bf16(uint16_t a) { return as<float>(uint64_t(a) << 16); }
inline uint16_t to_bf16(float a) {
  const uint32_t x = uint32_t(bits(a));
  if (std::isnan(a)) return 0x7fff;
  return uint16_t((x + 0x7fff + (x >> 16 & 1)) >> 16);
}
inline float from_half(uint16_t a) { return float(as<_Float16>(a)); }
inline uint16_t to_half(float a) { return uint16_t(bits(_Float16(a))); }
template <float (*F)(uint16_t)>
double widened(uint16_t a) {
  return double(F(a));
}
template <float (*F)(uint16_t)>
float fused_mixed(uint16_t a, uint16_t b, float c) {
  return std::fma(F(a), F(b), c);
}
template <float (*F)(uint16_t), int SIGN>
void add_mixed(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *c = w.at(i.args[2]);
  EACH_LANE(l) d[l] = bits(F(as<uint16_t>(a[l])) + float(SIGN) * as<float>(c[l]));
}
template <class Out, class In>
Out cast(In a) {
  return Out(a);
}
template <class Out>
Out truncated(float a) {
  if (std::isnan(a)) return 0;
  constexpr auto low = std::numeric_limits<Out>::min(), high = std::numeric_limits<Out>::max();
  if (a <= float(low)) return low;
  return a >= float(high) ? high : Out(a);
}
template <uint16_t (*F)(float)>
void pair_of(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]);
  EACH_LANE(l) d[l] = uint64_t(F(as<float>(a[l]))) << 16 | F(as<float>(b[l]));
}
template <int BITS>
void pack(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]);
  constexpr uint64_t mask = (uint64_t(1) << BITS) - 1;
  EACH_LANE(l) d[l] = (b[l] & mask) << BITS | (a[l] & mask);
}
template <int BITS>
void unpack(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t *d = w.at(i.args[0]), *e = w.at(i.args[1]), *a = w.at(i.args[2]);
  constexpr uint64_t mask = (uint64_t(1) << BITS) - 1;
  EACH_LANE(l) {
    const uint64_t x = a[l];
    d[l] = x & mask;
    e[l] = x >> BITS & mask;
  }
}

// ---- comparisons --------------------------------------------------------------------------------

template <class T>
bool eq(T a, T b) {
  return a == b;
}
template <class T>
bool ne(T a, T b) {
  return a < b || a > b;
}
template <class T>
bool lt(T a, T b) {
  return a < b;
}
template <class T>
bool le(T a, T b) {
  return a <= b;
}
template <class T>
bool gt(T a, T b) {
  return a > b;
}
template <class T>
bool ge(T a, T b) {
  return a >= b;
}
template <class T, bool (*F)(T, T)>
bool or_nan(T a, T b) {
  return a != a || b != b || F(a, b);
}
template <class T>
bool any_nan(T a, T b) {
  return a != a || b != b;
}
template <class T>
bool no_nan(T a, T b) {
  return a == a && b == b;
}

template <class T>
void choose(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {  // selp
  uint64_t *d = w.at(i.args[0]), *a = w.at(i.args[1]), *b = w.at(i.args[2]), *p = w.at(i.args[3]);
  EACH_LANE(l) d[l] = bits<T>(as<T>(p[l] ? a[l] : b[l]));
}

}  // namespace ptx
