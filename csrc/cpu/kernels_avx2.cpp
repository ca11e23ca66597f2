// SPDX-License-Identifier: Apache-2.0
// AVX2 + FMA + F16C: 3 x 4 tiles fill the sixteen registers.
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels.h"

namespace zspa::cpu {
namespace {

struct Isa {
  static constexpr const char* kName = "avx2";
  static constexpr int kLanes = 8, kMR = 3, kNR = 4;
  using Vec = __m256;

  static Vec zero() { return _mm256_setzero_ps(); }
  static Vec all(float x) { return _mm256_set1_ps(x); }
  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(Vec v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  // Sums of kLanes vectors that lie one after another, each in the same order: a transposition with
  // an addition at every step.
  static void sums(const float* p, float* out) {
    Vec four[2];  // of four vectors: [4] sums of each half
    for (int i = 0; i < 2; ++i, p += 4 * kLanes) {
      const Vec a = load(p), b = load(p + 8), c = load(p + 16), d = load(p + 24);
      const Vec ab = add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
      const Vec cd = add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
      four[i] = add(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    }
    store(out, add(_mm256_permute2f128_ps(four[0], four[1], 0x20),
                   _mm256_permute2f128_ps(four[0], four[1], 0x31)));
  }

  static Vec load_half(const float* p, int half) { return load(p + half * kLanes); }
  static Vec load_half(const Half* p, int half) {
    const void* at = p + half * kLanes;
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(at)));
  }
  static Vec load_half(const BFloat16* p, int half) {
    return channels(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), half);
  }
  static Vec channels(__m256i x, int half) {
    const __m256i high = _mm256_set1_epi32(int(0xffff0000u));
    return _mm256_castsi256_ps(half ? _mm256_and_si256(x, high) : _mm256_slli_epi32(x, 16));
  }

  // The same where only `rest` elements are left, less than two vectors of floats; 0 behind them.
  static Vec load_half(const float* p, int half, int rest) {
    return _mm256_maskload_ps(p + half * kLanes, below(rest - half * kLanes));
  }
  static Vec load_half(const Half* p, int half, int rest) {
    const __m256i x = load_some(p, rest);
    return _mm256_cvtph_ps(half ? _mm256_extracti128_si256(x, 1) : _mm256_castsi256_si128(x));
  }
  static Vec load_half(const BFloat16* p, int half, int rest) {
    return channels(load_some(p, rest), half);
  }
  // Lanes of 32 bits that lie before `count`: all ones.
  static __m256i below(int count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
  }
  // Elements of 16 bits: masks know pairs of them, so an odd last one is put behind its own.
  template <class T>
  static __m256i load_some(const T* p, int rest) {
    const __m256i pairs = below(rest / 2);
    const __m256i x = _mm256_maskload_epi32(reinterpret_cast<const int*>(p), pairs);
    if (rest % 2 == 0) return x;
    const __m256i last = _mm256_set1_epi32(p[rest - 1].bits);
    return _mm256_or_si256(x,
                           _mm256_and_si256(last, _mm256_andnot_si256(pairs, below(rest / 2 + 1))));
  }
};

#define ZSPA_ISA_DEFINED
#define ZSPA_ISA_MR 3
#define ZSPA_ISA_NR 4
#include "microkernel.h"

}  // namespace

const Kernels& avx2_kernels() { return table; }

}  // namespace zspa::cpu
