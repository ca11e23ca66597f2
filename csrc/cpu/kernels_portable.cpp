// SPDX-License-Identifier: Apache-2.0
// Any CPU: the compiler's generic vectors of four floats, no instruction set assumed.
#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels.h"

namespace zspa::cpu {
namespace {

struct Isa {
  static constexpr const char* kName = "portable";
  static constexpr int kLanes = 4, kMR = 4, kNR = 4;
  typedef float Vec __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));

  static Vec zero() { return Vec{}; }
  static Vec all(float x) { return Vec{x, x, x, x}; }
  static Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

  // Sums of kLanes vectors that lie one after another, each in the same order.
  static void sums(const float* p, float* out) {
    for (int i = 0; i < kLanes; ++i) out[i] = sum(load(p + i * kLanes));
  }

  static Vec load_half(const float* p, int half) { return load(p + half * kLanes); }
  static Vec load_half(const Half* p, int half) {
    uint16_t __attribute__((vector_size(8))) x;
    std::memcpy(&x, p + half * kLanes, sizeof x);
    const Bits wide = __builtin_convertvector(x, Bits);
    // As `to_float` does it, whose loops GCC does not vectorise here.
    const Bits sign = (wide & 0x8000u) << 16, rest = wide & 0x7fffu;
    const Bits special = Bits(rest >= 0x7c00u) & (112u << 23), is_small = Bits(rest < 0x0400u);
    const Bits bits = (rest << 13) + (112u << 23) + special;
    const Bits small = Bits(__builtin_convertvector(Ints(rest), Vec) * 0x1p-24f);
    return Vec((small & is_small) | (bits & ~is_small) | sign);
  }
  static Vec load_half(const BFloat16* p, int half) {
    constexpr int kLow = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 1;  // of a pair
    Bits x;
    std::memcpy(&x, p, sizeof x);
    return Vec(half == kLow ? x << 16 : x & 0xffff0000u);
  }

  // The same where only `rest` elements are left, less than two vectors of floats; 0 behind them.
  template <class T>
  static Vec load_half(const T* p, int half, int rest) {
    return some(p, half * kLanes, 1, rest);
  }
  static Vec load_half(const BFloat16* p, int half, int rest) { return some(p, half, 2, rest); }
  template <class T>
  static Vec some(const T* p, int from, int step, int rest) {
    Vec v{};
    for (int x = 0; x < kLanes; ++x)
      if (from + x * step < rest) v[x] = to_float(p[from + x * step]);
    return v;
  }
};

#define ZSPA_ISA_DEFINED
#define ZSPA_ISA_MR 4
#define ZSPA_ISA_NR 4
#include "microkernel.h"

}  // namespace

const Kernels& portable_kernels() { return table; }

}  // namespace zspa::cpu
