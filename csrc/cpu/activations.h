// SPDX-License-Identifier: Apache-2.0
// Inner loops over activations, written once; microkernel.h includes this file into the anonymous
// namespace of each instruction set. The vectors are GCC's, so the arithmetic is written plainly.
//
// Operation   : act'(a); the odd part of act around a; the central difference of act over a step.
// Numerics    : float32. Absolute error of a gate about 2e-7: Phi by a rational approximation
//               (Abramowitz and Stegun 7.1.26), exp by Cody and Waite's reduction and a polynomial.
//               NaN in, NaN out.
// Limits      : |a| is cut at kEnd: beyond, every derivative is 0 or 1 in float32, and the
//               polynomials inside the gates would overflow.

#ifndef ZSPA_ISA_DEFINED
#error "include activations.h from microkernel.h only"
#endif

using Vec = typename Isa::Vec;
typedef int32_t IntVec __attribute__((vector_size(sizeof(float) * L)));

constexpr float kEnd = 80.0f;
constexpr int64_t kPiece = 256;  // elements a step: a few buffers of them stay in L1

ZSPA_INLINE inline Vec splat(float x) { return Vec{} + x; }
ZSPA_INLINE inline Vec magnitude(Vec x) { return (Vec)((IntVec)x & 0x7fffffff); }

// exp(x) for x <= 0; results below 1e-38 become 1e-38.
ZSPA_INLINE inline Vec exp_negative(Vec x) {
  const Vec magic = splat(0x1.8p23f);  // adding it rounds to an integer, into the lowest bits
  x = x < -87.0f ? splat(-87.0f) : x;
  Vec n = Isa::fma(x, splat(1.44269504f), magic);
  const IntVec scale = ((IntVec)n + (127 - 0x4b400000)) << 23;
  n = n - magic;
  const Vec r = Isa::fma(n, splat(2.12194440e-4f), Isa::fma(n, splat(-0.693359375f), x));
  Vec p = splat(1.9875691500e-4f);
  p = Isa::fma(p, r, splat(1.3981999507e-3f));
  p = Isa::fma(p, r, splat(8.3334519073e-3f));
  p = Isa::fma(p, r, splat(4.1665795894e-2f));
  p = Isa::fma(p, r, splat(1.6666665459e-1f));
  p = Isa::fma(p, r, splat(5.0000001201e-1f));
  p = Isa::fma(p * r, r, r) + 1.0f;
  return p * (Vec)scale;
}

// act(a + d) - act(a - d) = 2 d (first + third d^2 + O(d^4)); first is the derivative.
struct Odd {
  Vec first;
  Vec third;
};

// act(x) = x gate(x). With the derivatives of the gate:
//   act' = gate + x gate',  act''' = 3 gate'' + x gate'''.
struct Gate {
  Vec value, d1, d2, d3;
};

ZSPA_INLINE inline Odd odd_part(Vec x, const Gate& gate) {
  return {Isa::fma(x, gate.d1, gate.value), Isa::fma(x, gate.d3, gate.d2 * 3.0f) * (1.0f / 6.0f)};
}

// The logistic function and its derivatives.
ZSPA_INLINE inline Gate logistic(Vec x) {
  const Vec e = exp_negative(-magnitude(x));
  const Vec near_one = 1.0f / (1.0f + e);
  const Vec near_zero = e * near_one;
  const Vec s = x < 0.0f ? near_zero : near_one;
  const Vec d1 = near_zero * near_one;
  const Vec d2 = d1 * (1.0f - 2.0f * s);
  return {s, d1, d2, d1 * (1.0f - 6.0f * d1)};
}

struct Gelu {
  static ZSPA_INLINE Gate gate(Vec x) {
    const Vec z = magnitude(x);
    const Vec e = exp_negative(x * x * -0.5f);
    const Vec t = 1.0f / Isa::fma(z, splat(0.3275911f * 0.70710678f), splat(1.0f));
    Vec p = splat(1.061405429f);
    p = Isa::fma(p, t, splat(-1.453152027f));
    p = Isa::fma(p, t, splat(1.421413741f));
    p = Isa::fma(p, t, splat(-0.284496736f));
    p = Isa::fma(p, t, splat(0.254829592f));
    const Vec tail = p * t * e * 0.5f;  // Phi(-|x|)
    const Vec density = e * 0.39894228f;
    return {x < 0.0f ? tail : 1.0f - tail, density, -x * density, (x * x - 1.0f) * density};
  }
};

struct QuickGelu {
  static constexpr float kScale = 1.702f;
  static ZSPA_INLINE Gate gate(Vec x) {
    const Gate s = logistic(x * kScale);
    return {s.value, s.d1 * kScale, s.d2 * (kScale * kScale), s.d3 * (kScale * kScale * kScale)};
  }
};

struct Silu {
  static ZSPA_INLINE Gate gate(Vec x) { return logistic(x); }
};

struct GeluTanh {  // x logistic(w(x)), w(x) = 2 sqrt(2 / pi) (x + 0.044715 x^3)
  static constexpr float kTwice = 1.59576912f, kCube = 0.044715f;
  static ZSPA_INLINE Gate gate(Vec x) {
    const Vec w1 = Isa::fma(x * x, splat(3.0f * kCube * kTwice), splat(kTwice));
    const Vec w2 = x * (6.0f * kCube * kTwice);
    constexpr float w3 = 6.0f * kCube * kTwice;
    const Gate s = logistic(x * Isa::fma(x * x, splat(kCube * kTwice), splat(kTwice)));
    return {s.value, s.d1 * w1, s.d2 * w1 * w1 + s.d1 * w2,
            s.d3 * w1 * w1 * w1 + 3.0f * s.d2 * w1 * w2 + s.d1 * w3};
  }
};

template <class G>
struct Smooth {
  static ZSPA_INLINE Vec cut(Vec x) {
    x = x < -kEnd ? splat(-kEnd) : x;
    return x > kEnd ? splat(kEnd) : x;
  }
  static ZSPA_INLINE Vec value(Vec x) { return x * G::gate(cut(x)).value; }
  static ZSPA_INLINE Odd odd(Vec x) {
    x = cut(x);
    return odd_part(x, G::gate(x));
  }
  // `wide`: steps beyond kSeriesStep occur, where the series ends too early and nothing cancels.
  static ZSPA_INLINE Vec quotient(Vec a, Odd at, Vec shift, float radius, bool wide) {
    const Vec step = shift * radius;
    const Vec series = shift * Isa::fma(step * step, at.third, at.first);
    if (!wide) return series;
    const Vec direct = (value(a + step) - value(a - step)) * (shift / (2.0f * step));
    return magnitude(step) > kSeriesStep ? direct : series;
  }
};

struct Relu {
  static ZSPA_INLINE Odd odd(Vec x) {
    const Vec one = x > 0.0f ? splat(1.0f) : splat(0.0f);
    return {one + x * 0.0f, Vec{}};  // x * 0 keeps NaN
  }
  // Exact for every step: the part of [a - step, a + step] that lies above 0.
  static ZSPA_INLINE Vec quotient(Vec a, Odd at, Vec shift, float radius, bool) {
    const Vec step = magnitude(shift * radius);
    Vec part = (a + step) / (2.0f * step);
    part = part < 0.0f ? Vec{} : part;
    part = part > 1.0f ? splat(1.0f) : part;
    return shift * (step > 0.0f ? part : at.first);
  }
};

struct Identity {
  static ZSPA_INLINE Odd odd(Vec x) { return {1.0f + x * 0.0f, Vec{}}; }
  static ZSPA_INLINE Vec quotient(Vec, Odd at, Vec shift, float, bool) { return shift * at.first; }
};

// One switch a call from the number of the activation to the loop compiled for it.
#define ZSPA_BY_ACTIVATION(CALL)   \
  switch (activation) {            \
    case Activation::gelu: {       \
      using A = Smooth<Gelu>;      \
      CALL;                        \
    } break;                       \
    case Activation::gelu_tanh: {  \
      using A = Smooth<GeluTanh>;  \
      CALL;                        \
    } break;                       \
    case Activation::quick_gelu: { \
      using A = Smooth<QuickGelu>; \
      CALL;                        \
    } break;                       \
    case Activation::silu: {       \
      using A = Smooth<Silu>;      \
      CALL;                        \
    } break;                       \
    case Activation::relu: {       \
      using A = Relu;              \
      CALL;                        \
    } break;                       \
    case Activation::identity: {   \
      using A = Identity;          \
      CALL;                        \
    } break;                       \
  }

// The elements [begin, begin + count) as floats, plus a bias, zero padded to whole vectors.
template <class T>
void load_piece(const T* from, const float* bias, int64_t begin, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[begin + i]);
  if (bias)
    for (int64_t i = 0; i < count; ++i) to[i] += bias[begin + i];
  for (int64_t i = count; i < round_up(count, L); ++i) to[i] = 0.0f;
}

void store_piece(DType dtype, const float* from, void* to, int64_t begin, int64_t count) {
  if (dtype == DType::f32) {
    std::memcpy(static_cast<float*>(to) + begin, from, size_t(count) * sizeof(float));
    return;
  }
  auto* out = static_cast<BFloat16*>(to) + begin;
  for (int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(from[i]);
}

template <class A, class T>
float slope_of(const T* x, const float* bias, int64_t n, const float* diagonal, DType to,
               void* out) {
  alignas(64) float piece[kPiece], weights[kPiece];
  float form = 0.0f;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t count = std::min(kPiece, n - begin);
    load_piece(x, bias, begin, count, piece);
    for (int64_t i = 0; i < count; i += L)
      Isa::store(piece + i, A::odd(Isa::load(piece + i)).first);
    if (diagonal) {
      load_piece(diagonal, nullptr, begin, count, weights);
      Vec sum = Isa::zero();
      for (int64_t i = 0; i < count; i += L) {
        const Vec g = Isa::load(piece + i);
        sum = Isa::fma(Isa::load(weights + i) * g, g, sum);
      }
      form += Isa::sum(sum);
    }
    store_piece(to, piece, out, begin, count);
  }
  return form;
}

template <class A, class T>
void expand_of(const T* x, const float* bias, int64_t n, float* at, float* first, float* third) {
  alignas(64) float piece[3][kPiece];
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t count = std::min(kPiece, n - begin);
    load_piece(x, bias, begin, count, piece[0]);
    for (int64_t i = 0; i < count; i += L) {
      const Odd odd = A::odd(Isa::load(piece[0] + i));
      Isa::store(piece[1] + i, odd.first);
      Isa::store(piece[2] + i, odd.third);
    }
    float* const outs[] = {at, first, third};
    for (int k = 0; k < 3; ++k) store_piece(DType::f32, piece[k], outs[k], begin, count);
  }
}

// `at`, `first` and `third` are padded to whole vectors; `shifts` and `out` are not.
template <class A>
void quotient_of(const float* at, const float* first, const float* third, const float* shifts,
                 float radius, bool wide, int64_t n, DType to, void* out) {
  alignas(64) float piece[kPiece];
  auto at_vector = [&](int64_t i, Vec shift) ZSPA_INLINE {
    const Odd odd = {Isa::load(first + i), Isa::load(third + i)};
    return A::quotient(Isa::load(at + i), odd, shift, radius, wide);
  };
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, n), whole = begin + (end - begin) / L * L;
    for (int64_t i = begin; i < whole; i += L)
      Isa::store(piece + (i - begin), at_vector(i, Isa::load(shifts + i)));
    if (whole < end) {
      alignas(64) float rest[L] = {};
      std::memcpy(rest, shifts + whole, size_t(end - whole) * sizeof(float));
      Isa::store(piece + (whole - begin), at_vector(whole, Isa::load(rest)));
    }
    store_piece(to, piece, out, begin, end - begin);
  }
}

float slope(Activation activation, DType dtype, const void* x, const float* bias, int64_t n,
            const float* diagonal, DType to, void* out) {
  float form = 0.0f;
  ZSPA_BY_ACTIVATION(
      ZSPA_BY_DTYPE((form = slope_of<A, T>(static_cast<const T*>(x), bias, n, diagonal, to, out))))
  return form;
}

void expand(Activation activation, DType dtype, const void* x, const float* bias, int64_t n,
            float* at, float* first, float* third) {
  ZSPA_BY_ACTIVATION(
      ZSPA_BY_DTYPE((expand_of<A, T>(static_cast<const T*>(x), bias, n, at, first, third))))
}

void quotient(Activation activation, const float* at, const float* first, const float* third,
              const float* shifts, float radius, bool wide, int64_t n, DType to, void* out) {
  ZSPA_BY_ACTIVATION(quotient_of<A>(at, first, third, shifts, radius, wide, n, to, out))
}

#undef ZSPA_BY_ACTIVATION
