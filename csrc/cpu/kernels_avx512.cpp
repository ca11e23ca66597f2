// SPDX-License-Identifier: Apache-2.0
// AVX-512 (F, BW, VL, DQ): everything is multiplied as floats.
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
  static constexpr const char* kName = "avx512";
};

#define ZSPA_ISA_DEFINED
#define ZSPA_ISA_MR 4
#define ZSPA_ISA_NR 6
#include "microkernel.h"

}  // namespace

const Kernels& avx512_kernels() { return table; }

}  // namespace zspa::cpu
