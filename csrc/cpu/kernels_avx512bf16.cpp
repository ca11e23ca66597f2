// SPDX-License-Identifier: Apache-2.0
// AVX-512 with VDPBF16PS: bfloat16 rows are multiplied as they are, two channels a lane and step;
// float32 and float16 as in kernels_avx512.cpp.
// GCC 12 sees its own intrinsics' undefined sources as uninitialised variables (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels.h"

namespace zspa::cpu {
namespace {

#include "isa_avx512.h"

struct Isa : Avx512 {
  static constexpr const char* kName = "avx512bf16";
};

struct NativeBf16 {
  using Packed = BFloat16;
  using Operand = __m512bh;
  static constexpr int64_t kStep = 32;
  static constexpr int kHalves = 1;
  static Operand load_row(const BFloat16* p, int) { return (__m512bh)_mm512_loadu_si512(p); }
  static Operand load_column(const BFloat16* p, int) { return (__m512bh)_mm512_loadu_si512(p); }
  static __m512 mul_add(Operand a, Operand b, __m512 c) { return _mm512_dpbf16_ps(c, a, b); }
  static void pack_step(const BFloat16* from, BFloat16* to) {
    _mm512_storeu_si512(to, _mm512_loadu_si512(from));
  }
};

#define ZSPA_ISA_DEFINED
#define ZSPA_ISA_NATIVE_BF16
#define ZSPA_ISA_MR 4
#define ZSPA_ISA_NR 6
#include "microkernel.h"

}  // namespace

const Kernels& avx512bf16_kernels() { return table; }

}  // namespace zspa::cpu
