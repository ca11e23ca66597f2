// SPDX-License-Identifier: Apache-2.0
// Block sizes of the greedy and of the seed search. They change the work, never a pick.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blocks.h"

namespace zspa::cpu {

// Larger blocks mean fewer passes but a Gram matrix that grows with the square of `candidates`.
// Passes of one pick are possible (similarities all alike in the wrong way).
inline BlockSizes block_sizes(int64_t N) {
  constexpr int64_t kFewest = 8, kPoor = 8, kRich = 2;
  if (N <= 1500) return {256, 64, kFewest, kPoor, kRich};
  if (N <= 8192) return {512, 128, kFewest, kPoor, kRich};
  return {1024, 256, kFewest, kPoor, kRich};
}

// Seed search. The dots these cost are held to recorded numbers in python_tests/test_bench.py.
constexpr int64_t kNeighbours = 8;   // block of consecutive tokens compared with each other first
constexpr int64_t kFinish = 4;       // most promising rows compared with everything at once
constexpr int64_t kFewOpen = 12;     // so few open rows are finished, all of them
constexpr int64_t kEnoughOpen = 64;  // fewer open rows are cheaper to compare with witnesses
constexpr int64_t kBlocksPerTask = 16;  // neighbouring blocks share rows, by way of L2
constexpr int64_t kOffsets = 2;     // raster offsets tried, each worth kNeighbours N dots at most
constexpr int64_t kWitnesses = 24;  // tokens every open row is compared with, per round

// How many of the most promising rows are finished after a round. A smaller value to beat drops
// more, and later rounds know better which rows are promising. On independent tokens, of which most
// stay open for long, that saves a quarter of the dots; where few are open there is little to save.
inline int64_t finished_after(int64_t round, int64_t open) {
  return std::max(kFinish, std::min(4 * round, open / 48));
}

// Rows spread over the image that are finished first, and how many of them must agree on a raster
// offset. On large images a few would rarely agree; on small ones each is a good part of the work.
struct SpreadRows {
  int64_t count, votes;
};

inline SpreadRows spread_rows(int64_t N) {
  if (N <= 1500) return {4, 2};
  return {12, 3};
}

}  // namespace zspa::cpu
