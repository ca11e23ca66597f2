// SPDX-License-Identifier: Apache-2.0
// Cosines in double, for what float32 cannot decide.
#pragma once

#include <algorithm>
#include <cmath>

#include "tokens.h"

namespace zspa::cpu {

// Coarser than the error of double, so that equal cosines of different rows are equal.
constexpr double kGrid = 0x1p40;  // steps of 1

inline double on_grid(double x) { return std::nearbyint(x * kGrid) / kGrid; }

// How far a float32 cosine may be from the exact one: four times the bound that the tests hold the
// kernels to (zspa_kernels/testing/bounds.py).
inline double cosine_slack(int64_t D) { return 4e-6 * std::max(1.0, std::sqrt(double(D) / 4096)); }

// The exact cosines of tokens; lengths are computed when they are asked for.
class ExactCosines {
 public:
  explicit ExactCosines(const Tokens& tokens) : tokens_(tokens) {}

  // Must have been called for a token, by one thread, before `cosine` is.
  void know(int64_t i) {
    if (lengths_.empty()) lengths_.assign(size_t(tokens_.N), 0.0);
    if (lengths_[size_t(i)] == 0.0) lengths_[size_t(i)] = std::sqrt(dot(i, i));
  }

  double cosine(int64_t a, int64_t b) const {
    return on_grid(dot(a, b) / (lengths_[size_t(a)] * lengths_[size_t(b)]));
  }

 private:
  double dot(int64_t a, int64_t b) const {
    return kernels().wide_dot(tokens_.dtype, tokens_.row(a), tokens_.row(b), tokens_.D);
  }

  const Tokens& tokens_;
  std::vector<double> lengths_;  // [N]; 0: not known
};

}  // namespace zspa::cpu
