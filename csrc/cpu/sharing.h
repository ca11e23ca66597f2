// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace zspa::cpu {

// One image cut into crops: the valid tokens in their order, the first crops a token larger.
struct Crops {
  const float* attention;  // [N]
  const float* scores;     // [N], by which the tokens of a crop are chosen
  const uint8_t* valid;    // [N], 0 = no token; attention and scores of the others are finite
  int64_t N;
  int64_t count;     // of crops
  double sharpness;  // power of the mean attention that a crop weighs
};

// The k tokens of the largest scores, so many of each crop as its mean attention is worth (HoloV,
// arXiv 2510.02912), ties by lowest index. out [k]: by falling score or by index, then -1.
void best_of_crops(const Crops& crops, int64_t k, bool ascending, int64_t* out);

// `total` tokens of `free` [N], divided evenly among the first `live` of P pivots, the first ones
// getting one more. In their order each takes the tokens least similar to it, ties by lowest index;
// similar [P, N] (DART, arXiv 2502.11494). out [total]: turn after turn, by index within, then -1.
void in_turns(const double* similar, int64_t N, int64_t live, const uint8_t* free, int64_t total,
              int64_t* out);

}  // namespace zspa::cpu
