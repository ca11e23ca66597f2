// SPDX-License-Identifier: Apache-2.0
// alignment: mean squared distances of all tokens to the text (TrimTokenator, arXiv 2509.00320).
// Algorithm   : the mean of squared distances is that to the mean, plus the mean square of the words
//               around it: a constant, and with 2 mean - x only one product a channel.
// Work        : 2 N D double multiply-adds, two reads of the tokens.
// Mapping     : 64 rows a task; channels along the lanes.
// Numerics    : double, see nearness.h. A row's result depends on that row and the words alone.
#include "alignment.h"

#include <algorithm>

namespace zspa::cpu {
namespace {

struct Point {
  std::vector<double> twice;  // the mean of the words, doubled
  double square = 0.0;        // the mean of their squared lengths
  bool exists = false;
};

Point mean_word(const Prompt& prompt) {
  const Tokens words{prompt.data, prompt.dtype, prompt.M, prompt.D, prompt.row_bytes};
  std::vector<float> inv(size_t(words.N)), row(size_t(words.D));
  inverse_norms(words, prompt.mask, 1, inv.data());
  Point point{std::vector<double>(size_t(words.D), 0.0)};
  int64_t count = 0;
  for (int64_t m = 0; m < words.N; ++m) {
    if (inv[size_t(m)] == kMaskedOut) continue;
    ++count;
    std::fill(row.begin(), row.end(), 0.0f);
    kernels().fold(Fold::sum, words.dtype, words.row(m), 1.0f, 0, words.D, row.data());
    for (size_t d = 0; d < row.size(); ++d) point.twice[d] += double(row[d]);
    point.square += kernels().wide_dot(words.dtype, words.row(m), words.row(m), words.D);
  }
  point.exists = count > 0;
  if (!point.exists) return point;
  for (double& x : point.twice) x = 2.0 * (x / double(count));
  point.square /= double(count);
  return point;
}

}  // namespace

void alignment(const Tokens& tokens, const uint8_t* mask, const Prompt& prompt, int threads,
               double* out) {
  constexpr int64_t kRows = 64;
  const Point point = mean_word(prompt);
  threads = usable_threads(threads);
  std::vector<float> inv(size_t(tokens.N));
  inverse_norms(tokens, mask, threads, inv.data());
  // A multiply-add in double and a conversion cost several of a product's.
  threads = threads_for(tokens.N * tokens.D * 8, threads);
  parallel_for(threads, (tokens.N + kRows - 1) / kRows, [&](int64_t task, int) {
    for (int64_t i = task * kRows; i < std::min(tokens.N, (task + 1) * kRows); ++i) {
      if (inv[size_t(i)] == kMaskedOut)
        out[i] = -std::numeric_limits<double>::infinity();
      else if (!point.exists)
        out[i] = 0.0;
      else
        out[i] = kernels().nearness(tokens.dtype, tokens.row(i), tokens.D, point.twice.data()) -
                 point.square;
    }
  });
}

}  // namespace zspa::cpu
