// SPDX-License-Identifier: Apache-2.0
// centred, distinctiveness: tokens around the mean of their image, and how unlike the others they are
// (Cen-Prune, arXiv 2608.30263).
// Algorithm   : one sum of all tokens; the mean cosine to all others follows from one with the mean of
//               directions.
// Work        : a few N D, three reads of the tokens and one write.
// Mapping     : 512 channels a task for the sum, 64 rows a task for the rest.
// Numerics    : the mean in double in the order of rows, rounded once; differences in float32.
// Deterministic: yes, for any number of threads.
#include "centred.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "relevance_topk.h"

namespace zspa::cpu {
namespace {

constexpr int64_t kRows = 64, kChannels = 512;  // of a task

// The mean [D] of the tokens that count.
std::vector<float> mean_of(const Tokens& tokens, const std::vector<float>& inv, int threads) {
  std::vector<float> mean(size_t(tokens.D));
  const int64_t size = size_of(tokens.dtype);
  parallel_for(threads, (tokens.D + kChannels - 1) / kChannels, [&](int64_t task, int) {
    const int64_t first = task * kChannels, width = std::min(kChannels, tokens.D - first);
    double sums[kChannels] = {};
    float part[kChannels];
    int64_t count = 0;
    for (int64_t i = 0; i < tokens.N; ++i) {
      if (inv[size_t(i)] == kMaskedOut) continue;
      ++count;
      std::fill(part, part + width, 0.0f);
      const char* row = static_cast<const char*>(tokens.row(i)) + first * size;
      kernels().fold(Fold::sum, tokens.dtype, row, 1.0f, 0, width, part);
      for (int64_t d = 0; d < width; ++d) sums[d] += double(part[d]);
    }
    const double scale = double(std::max<int64_t>(count, 1));
    for (int64_t d = 0; d < width; ++d) mean[size_t(first + d)] = float(sums[d] / scale);
  });
  return mean;
}

float length_of(DType dtype, const void* row, int64_t D) {
  return std::sqrt(squared_length(dtype, row, D));
}

// row(i) for all of them.
template <class Row>
void for_rows(const Tokens& tokens, int threads, const Row& row) {
  threads = threads_for(tokens.N * tokens.D * 4, usable_threads(threads));
  parallel_for(threads, (tokens.N + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < std::min(tokens.N, (task + 1) * kRows); ++i) row(i);
  });
}

}  // namespace

void centred(const Tokens& tokens, const uint8_t* mask, int threads, float* out) {
  const int64_t D = tokens.D;
  threads = usable_threads(threads);
  std::vector<float> inv(size_t(tokens.N));
  inverse_norms(tokens, mask, threads, inv.data());
  threads = threads_for(tokens.N * D * 8, threads);
  const std::vector<float> mean = mean_of(tokens, inv, threads);
  // What is left of a token that is the mean is the rounding of a subtraction.
  const float noise = 0x1p-23f * length_of(DType::f32, mean.data(), D);
  parallel_for(threads, (tokens.N + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < std::min(tokens.N, (task + 1) * kRows); ++i) {
      float* row = out + i * D;
      if (inv[size_t(i)] == kMaskedOut) {
        std::fill(row, row + D, std::numeric_limits<float>::quiet_NaN());
        continue;
      }
      std::fill(row, row + D, 0.0f);
      kernels().fold(Fold::sum, tokens.dtype, tokens.row(i), 1.0f, 0, D, row);
      for (int64_t d = 0; d < D; ++d) row[d] -= mean[size_t(d)];
      if (length_of(DType::f32, row, D) <= noise) std::fill(row, row + D, 0.0f);
    }
  });
}

void distinctiveness(const Tokens& tokens, const uint8_t* mask, int threads, float* out) {
  const Prompt all{tokens.data, tokens.dtype, tokens.N, tokens.D, tokens.row_bytes, mask};
  std::vector<float> inv(size_t(tokens.N));
  relevance(tokens, mask, all, Pooling::none_mean, usable_threads(threads), inv.data(), out);
  const auto valid = tokens.N - std::count(inv.begin(), inv.end(), kMaskedOut);
  const float others = float(std::max<int64_t>(valid - 1, 1));
  for (int64_t i = 0; i < tokens.N; ++i) {
    float mean = std::min(std::max((out[i] * float(valid) - 1.0f) / others, -1.0f), 1.0f);
    if (inv[size_t(i)] == kNoDirection) mean = 1.0f;
    if (valid == 1) mean = 0.0f;
    out[i] = inv[size_t(i)] == kMaskedOut ? std::numeric_limits<float>::quiet_NaN() : -mean;
  }
}

void lengths(const Tokens& tokens, int threads, float* out) {
  for_rows(tokens, threads,
           [&](int64_t i) { out[i] = length_of(tokens.dtype, tokens.row(i), tokens.D); });
}

void valid_rows(const Tokens& tokens, const uint8_t* mask, int threads, uint8_t* out) {
  for_rows(tokens, threads, [&](int64_t i) {
    out[i] =
        (!mask || mask[i]) && squared_length(tokens.dtype, tokens.row(i), tokens.D) <= kHugeRow;
  });
}

}  // namespace zspa::cpu
