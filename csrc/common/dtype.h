// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

namespace zspa {

// The numbers are part of the interface with zspa_kernels/backends/cpp/_arguments.py.
enum class DType : int { f32 = 0, f16 = 1, bf16 = 2 };

static constexpr int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

static inline float to_float(float x) { return x; }

static inline float to_float(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
static inline BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {uint16_t(x == x ? rounded : 0x7fc0u)};
}

// Exact for every half, subnormals, infinities and NaN included; needs no hardware support. Nothing on
// the way is subnormal, which a process may have the CPU take for 0 (torch.set_flush_denormal). Masks
// instead of conditions: GCC makes branches of these, and then vectorises no loop that converts.
static inline float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7fffu;
  uint32_t bits = (rest << 13) + (112u << 23);  // moves the exponent bias from 15 to 127
  bits += (0u - uint32_t(rest >= 0x7c00u)) & (112u << 23);  // infinity, NaN
  const float subnormal = float(int(rest)) * 0x1p-24f;
  uint32_t small;
  std::memcpy(&small, &subnormal, sizeof small);
  const uint32_t is_small = 0u - uint32_t(rest < 0x0400u);
  bits = (small & is_small) | (bits & ~is_small) | sign;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

}  // namespace zspa
