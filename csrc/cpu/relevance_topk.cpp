// SPDX-License-Identifier: Apache-2.0
// relevance_topk: cosine of every visual token with the pooled prompt, and the k most relevant.
// Algorithm   : pool the prompt in float32 (ZSPAPrune, arXiv 2510.17197, eq. 4), one pass over the
//               tokens for norms and dots (eq. 5); the choice (eq. 6) is topk.cpp's.
// Work        : 4 N D flops, one read of the tokens (pooling none_max: one per 16 prompt tokens).
// Mapping     : 64 rows a task; channels along the lanes.
// Numerics    : float32; a row's result depends on that row and the prompt alone.
#include "relevance_topk.h"

#include <algorithm>
#include <cmath>

#include "../common/keys.h"

namespace zspa::cpu {
namespace {

constexpr int64_t kRowsPerTask = 64;     // a quarter beside many vectors: few tokens are work then
constexpr int64_t kVectorsPerPass = 16;  // prompt vectors beside a row in L1 and L2

// Prompt tokens that count, and their inverse norms.
struct ValidPrompt {
  std::vector<int64_t> rows;
  std::vector<float> inv;
};

ValidPrompt valid_tokens(const Prompt& prompt) {
  ValidPrompt valid;
  for (int64_t m = 0; m < prompt.M; ++m) {
    if (prompt.mask && !prompt.mask[m]) continue;
    const float inv = inverse_norm(squared_length(prompt.dtype, prompt.row(m), prompt.D));
    if (inv == kMaskedOut) continue;
    valid.rows.push_back(m);
    valid.inv.push_back(inv);
  }
  return valid;
}

// The pooled prompt [D]: mean or maximum of the raw tokens, or the mean of the unit tokens.
std::vector<float> pool(const Prompt& prompt, const ValidPrompt& valid, Pooling pooling,
                        int threads) {
  constexpr int64_t kChannels = 512;  // of one task; every channel is summed in token order
  std::vector<float> pooled(size_t(prompt.D), pooling == Pooling::max ? -kInf : 0.0f);
  const float scale = 1.0f / float(valid.rows.size());
  const int64_t tasks = (prompt.D + kChannels - 1) / kChannels;
  const Fold fold = pooling == Pooling::max ? Fold::largest : Fold::sum;
  parallel_for(
      threads_for(int64_t(valid.rows.size()) * prompt.D, threads), tasks, [&](int64_t task, int) {
        const int64_t begin = task * kChannels, end = std::min(begin + kChannels, prompt.D);
        for (size_t v = 0; v < valid.rows.size(); ++v)
          kernels().fold(fold, prompt.dtype, prompt.row(valid.rows[v]),
                         pooling == Pooling::none_mean ? valid.inv[v] : 1.0f, begin, end,
                         pooled.data());
        if (pooling != Pooling::max)
          for (int64_t d = begin; d < end; ++d) pooled[d] *= scale;
      });
  return pooled;
}

float norm_scale(const std::vector<float>& vector) {
  const float squares = squared_length(DType::f32, vector.data(), int64_t(vector.size()));
  return squares < kZeroRow ? 0.0f : 1.0f / std::sqrt(squares);
}

// Norms of all tokens, and write(i, dots) with the products of token i and the given vectors.
template <class Write>
void token_pass(const Tokens& tokens, const uint8_t* mask,
                const std::vector<std::vector<float>>& vectors, int threads, float* inv,
                const Write& write) {
  const Kernels& kernel = kernels();
  const int count = int(vectors.size());
  std::vector<std::vector<float>> ordered(vectors.size());
  const float* pointers[kVectorsPerPass];
  for (int v = 0; v < count; ++v) {
    ordered[v].resize(size_t(round_up(tokens.D, kernel.step)));
    kernel.order(tokens.dtype, vectors[v].data(), tokens.D, ordered[v].data());
    pointers[v] = ordered[v].data();
  }
  const int64_t rows = count > 4 ? kRowsPerTask / 4 : kRowsPerTask;
  const int64_t tasks = (tokens.N + rows - 1) / rows;
  // A pass over the tokens waits for memory: a multiply-add costs several times that of a product.
  const int64_t work = tokens.N * tokens.D * (count + 1) * 4;
  parallel_for(threads_for(work, threads), tasks, [&](int64_t task, int) {
    const int64_t begin = task * rows, end = std::min(begin + rows, tokens.N);
    for (int64_t i = begin; i < end; ++i) {
      float squares, dots[kVectorsPerPass];
      kernel.row_pass(tokens.dtype, tokens.row(i), tokens.D, pointers, count, &squares, dots);
      inv[i] = mask && !mask[i] ? kMaskedOut : inverse_norm(squares);
      write(i, dots);
    }
  });
}

// The same with scores = max over the vectors v of dot(token, v) * (inv * scale[v]), folded into
// `scores`.
void score_pass(const Tokens& tokens, const uint8_t* mask,
                const std::vector<std::vector<float>>& vectors, const std::vector<float>& scale,
                int threads, float* inv, float* scores) {
  token_pass(tokens, mask, vectors, threads, inv, [&](int64_t i, const float* dots) {
    for (size_t v = 0; v < vectors.size(); ++v)
      scores[i] = std::max(scores[i], dots[v] * (inv[i] * scale[v]));
    if (inv[i] == kMaskedOut) scores[i] = -kInf;
    if (inv[i] == kNoDirection) scores[i] = -1.0f;
  });
}

}  // namespace

void inverse_norms(const Tokens& tokens, const uint8_t* mask, int threads, float* inv) {
  token_pass(tokens, mask, {}, threads, inv, [](int64_t, const float*) {});
}

bool relevance(const Tokens& tokens, const uint8_t* mask, const Prompt& prompt, Pooling pooling,
               int threads, float* inv, float* scores) {
  const ValidPrompt valid = valid_tokens(prompt);
  if (valid.rows.empty()) {
    std::fill(scores, scores + tokens.N, 0.0f);
    score_pass(tokens, mask, {}, {}, threads, inv, scores);
    return false;
  }
  std::fill(scores, scores + tokens.N, -kInf);
  if (pooling != Pooling::none_max) {
    const std::vector<float> pooled = pool(prompt, valid, pooling, threads);
    const float scale = pooling == Pooling::none_mean ? 1.0f : norm_scale(pooled);
    score_pass(tokens, mask, {pooled}, {scale}, threads, inv, scores);
    return true;
  }
  const int64_t M = int64_t(valid.rows.size());
  for (int64_t first = 0; first < M; first += kVectorsPerPass) {
    const int64_t last = std::min(first + kVectorsPerPass, M);
    std::vector<std::vector<float>> vectors;
    for (int64_t v = first; v < last; ++v)
      vectors.push_back(widened(prompt.dtype, prompt.row(valid.rows[size_t(v)]), prompt.D));
    const std::vector<float> scale(valid.inv.begin() + first, valid.inv.begin() + last);
    score_pass(tokens, mask, vectors, scale, threads, inv, scores);
  }
  return true;
}

void word_cosines(const Tokens& tokens, const uint8_t* mask, const Prompt& prompt, int threads,
                  float* cosines, uint8_t* valid, uint8_t* real) {
  threads = usable_threads(threads);
  const ValidPrompt words = valid_tokens(prompt);
  const int64_t N = tokens.N, M = int64_t(words.rows.size());
  std::vector<float> inv(static_cast<size_t>(N));
  std::fill(real, real + prompt.M, uint8_t(0));
  std::fill(cosines, cosines + prompt.M * N, 0.0f);
  int64_t first = 0;
  do {  // once without words, too: which tokens are valid is asked for
    const int64_t last = std::min(first + kVectorsPerPass, M);
    std::vector<std::vector<float>> vectors;
    std::vector<float> scale;
    for (int64_t v = first; v < last; ++v) {
      const int64_t m = words.rows[size_t(v)];
      real[m] = 1;
      vectors.push_back(widened(prompt.dtype, prompt.row(m), prompt.D));
      scale.push_back(norm_scale(vectors.back()));
    }
    token_pass(tokens, mask, vectors, threads, inv.data(), [&](int64_t i, const float* dots) {
      const bool out = inv[size_t(i)] == kMaskedOut;
      for (int64_t v = first; v < last; ++v)
        cosines[words.rows[size_t(v)] * N + i] =
            out ? -kInf : dots[v - first] * (inv[size_t(i)] * scale[size_t(v - first)]);
      valid[i] = !out;
    });
    first = last;
  } while (first < M);
}

}  // namespace zspa::cpu
