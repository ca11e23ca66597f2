// SPDX-License-Identifier: Apache-2.0
// best_of_crops: tokens of an image of which several parts take a share.
// Algorithm   : shares from means on a grid; each crop takes its first tokens by a partition.
// Work        : N. A sort of the k, only for the order of scores.
// Numerics    : means are exact sums, rounded once and divided; shares are on a grid of 2^-40, which is
//               coarser than their error, so that one that is whole stays whole; comparisons are exact.
#include "sharing.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "exact.h"

namespace zspa::cpu {
namespace {

using Places = std::vector<int64_t>;

constexpr double kUnit = 0x1p31;  // of the upper and the lower half of a sum

// Mean attention of each crop, in units of a power of two. The upper halves are whole numbers, and so
// are the lower ones of what is not below 2^-38 of the largest: their sums are exact.
std::vector<double> attended(const Crops& crops, const Places& tokens, const Places& starts) {
  double top = 0.0;
  for (const int64_t i : tokens) top = std::max(top, double(crops.attention[i]));
  std::vector<double> means(size_t(crops.count), 0.0);
  if (top == 0.0) return means;
  const double unit = std::ldexp(kUnit, -std::ilogb(top));
  for (size_t c = 0; c < means.size(); ++c) {
    double upper = 0.0, lower = 0.0;
    for (int64_t t = starts[c]; t < starts[c + 1]; ++t) {
      const double a = std::max(double(crops.attention[tokens[size_t(t)]]), 0.0) * unit;
      upper += std::floor(a);
      lower += (a - std::floor(a)) * kUnit;
    }
    means[c] = (upper * kUnit + lower) / double(std::max<int64_t>(starts[c + 1] - starts[c], 1));
  }
  return means;
}

// How many of k tokens each crop gets; more than it has, perhaps.
Places shares_of(const Crops& crops, const Places& tokens, int64_t k, const Places& starts) {
  std::vector<double> weights = attended(crops, tokens, starts);
  const double most = *std::max_element(weights.begin(), weights.end());
  double sum = 0.0;
  for (double& weight : weights)
    sum += weight = std::pow(most > 0.0 ? weight / most : 1.0, crops.sharpness);
  int64_t left = k;
  Places shares(weights.size()), order(weights.size());
  for (size_t c = 0; c < weights.size(); ++c) {
    weights[c] = on_grid(double(k) * weights[c] / sum);
    shares[c] = int64_t(weights[c]);
    left -= shares[c];
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&weights](int64_t a, int64_t b) {
    return weights[size_t(a)] > weights[size_t(b)];
  });
  for (int64_t c = 0; c < left; ++c) ++shares[size_t(order[size_t(c)])];
  return shares;
}

// Brings the first `count` of [first, last) in the order of `before` to its front.
template <class Before>
int64_t* partition(int64_t* first, int64_t* last, int64_t count, const Before& before) {
  if (count >= last - first) return last;
  std::nth_element(first, first + count, last, before);
  return first + count;
}

}  // namespace

void best_of_crops(const Crops& crops, int64_t k, bool ascending, int64_t* out) {
  Places tokens;
  for (int64_t i = 0; i < crops.N; ++i)
    if (crops.valid[i]) tokens.push_back(i);
  const int64_t V = int64_t(tokens.size()), size = V / crops.count, larger = V % crops.count;
  Places starts(size_t(crops.count) + 1, 0);
  for (int64_t c = 0; c < crops.count; ++c)
    starts[size_t(c) + 1] = starts[size_t(c)] + size + (c < larger);
  const Places shares = shares_of(crops, tokens, k, starts);
  const auto better = [&crops](int64_t a, int64_t b) {
    return crops.scores[a] != crops.scores[b] ? crops.scores[a] > crops.scores[b] : a < b;
  };
  Places rest;
  int64_t* end = out;
  for (int64_t c = 0; c < crops.count; ++c) {
    int64_t *first = tokens.data() + starts[size_t(c)],
            *last = tokens.data() + starts[size_t(c) + 1];
    int64_t* behind = partition(first, last, shares[size_t(c)], better);
    end = std::copy(first, behind, end);
    rest.insert(rest.end(), behind, last);
  }
  const int64_t missing = std::min(k - (end - out), int64_t(rest.size()));
  partition(rest.data(), rest.data() + rest.size(), missing, better);
  end = std::copy(rest.data(), rest.data() + missing, end);
  if (ascending)
    std::sort(out, end);
  else
    std::sort(out, end, better);
  std::fill(end, out + k, int64_t(-1));
}

}  // namespace zspa::cpu
