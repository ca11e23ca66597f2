// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tokens.h"

namespace zspa::cpu {

// The numbers are part of the interface with zspa_kernels/backends/cpp/_arguments.py.
enum class Pooling : int { mean = 0, max = 1, none_mean = 2, none_max = 3 };

struct Prompt {
  const char* data;
  DType dtype;
  int64_t M;
  int64_t D;
  int64_t row_bytes;
  const uint8_t* mask;  // [M], 0 = padding; null = all real

  const void* row(int64_t m) const { return data + m * row_bytes; }
};

// inv[i] = 1 / norm of token i, kNoDirection or kMaskedOut. `mask` as in Prompt.
void inverse_norms(const Tokens& tokens, const uint8_t* mask, int threads, float* inv);

// Inverse norms and cosines with the pooled prompt in one read of the tokens. scores[i] is -inf for
// masked out tokens and -1 for zero rows. False when the prompt has no valid token (scores are 0).
bool relevance(const Tokens& tokens, const uint8_t* mask, const Prompt& prompt, Pooling pooling,
               int threads, float* inv, float* scores);

// Cosines with each word of the prompt by itself, `cosines` [M, N]: 0 where either has no direction,
// -inf for masked out tokens. `valid` [N] and `real` [M] say which tokens and words are not masked out;
// the cosines of other words are 0.
void word_cosines(const Tokens& tokens, const uint8_t* mask, const Prompt& prompt, int threads,
                  float* cosines, uint8_t* valid, uint8_t* real);

}  // namespace zspa::cpu
