// SPDX-License-Identifier: Apache-2.0
// How matrix units add, which PTX leaves open. As python_tests/matrix_units.py, which says why.
#pragma once

#include <cmath>
#include <cstdint>

namespace ptx {

// `sum` and 16 products, PRODUCTS at a time. All are brought to the exponent of the largest, and what
// lies more than BITS below float32's last place is cut off, as are bits that the sum has too many of.
template <int PRODUCTS, int BITS, class Product>
float add_products(float sum, const Product& product) {
  for (int first = 0; first < 16; first += PRODUCTS) {
    double terms[PRODUCTS + 1], largest = 0.0, plain = 0.0;
    for (int k = 0; k <= PRODUCTS; ++k) {
      terms[k] = k < PRODUCTS ? product(first + k) : double(sum);
      largest = std::fmax(largest, std::fabs(terms[k]));
      plain += terms[k];
    }
    if (largest == 0.0 || !std::isfinite(plain)) {
      sum = float(plain);
      continue;
    }
    int exponent;
    std::frexp(largest, &exponent);
    // Exact: powers of two, and no more bits than a double has.
    const double finer = std::ldexp(1.0, 24 + BITS - exponent);
    int64_t units = 0;
    for (const double term : terms) units += int64_t(term * finer);
    const double exact = double(units) / finer;
    sum = float(exact);
    if (std::fabs(double(sum)) > std::fabs(exact)) sum = std::nextafterf(sum, 0.0f);
  }
  return sum;
}

}  // namespace ptx
