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

}  // namespace zspa::cpu
