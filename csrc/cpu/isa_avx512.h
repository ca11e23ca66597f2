// SPDX-License-Identifier: Apache-2.0
// Vector operations of the two AVX-512 tables; included inside their anonymous namespaces.
// 4 x 6 tiles: 24 sums, 4 rows and a column fit into the 32 registers.

struct Avx512 {
  static constexpr int kLanes = 16, kMR = 4, kNR = 6;
  using Vec = __m512;

  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec all(float x) { return _mm512_set1_ps(x); }
  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(Vec v) { return _mm512_reduce_add_ps(v); }

  // Sums of kLanes vectors that lie one after another, each in the same order: a transposition with
  // an addition at every step.
  static void sums(const float* p, float* out) {
    Vec four[4];  // of four vectors: [4] sums of each quarter
    for (int i = 0; i < 4; ++i, p += 4 * kLanes) {
      const Vec a = load(p), b = load(p + 16), c = load(p + 32), d = load(p + 48);
      const Vec ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
      const Vec cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
      four[i] = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    }
    const Vec low = halves(four[0], four[1]), high = halves(four[2], four[3]);
    store(out, halves(low, high));
  }
  // Quarters 0 + 1 and 2 + 3 of a, then of b.
  static Vec halves(Vec a, Vec b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }

  static Vec load_half(const float* p, int half) { return load(p + half * kLanes); }
  static Vec load_half(const Half* p, int half) {
    const void* at = p + half * kLanes;
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(at)));
  }
  static Vec load_half(const BFloat16* p, int half) {
    return channels(_mm512_loadu_si512(p), half);
  }
  static Vec channels(__m512i x, int half) {
    const __m512i high = _mm512_set1_epi32(int(0xffff0000u));
    return _mm512_castsi512_ps(half ? _mm512_and_si512(x, high) : _mm512_slli_epi32(x, 16));
  }

  // The same where only `rest` elements are left, less than two vectors of floats; 0 behind them.
  static Vec load_half(const float* p, int half, int rest) {
    return _mm512_maskz_loadu_ps(__mmask16(first(rest) >> (half * kLanes)), p + half * kLanes);
  }
  static Vec load_half(const Half* p, int half, int rest) {
    const __mmask16 mask = __mmask16(first(rest) >> (half * kLanes));
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p + half * kLanes));
  }
  static Vec load_half(const BFloat16* p, int half, int rest) {
    return channels(_mm512_maskz_loadu_epi16(first(rest), p), half);
  }
  static __mmask32 first(int rest) { return (__mmask32(1) << rest) - 1; }
};
