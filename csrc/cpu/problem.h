// SPDX-License-Identifier: Apache-2.0
// A call: where the segments (images) of a padded batch or of packed tokens are, and what to do.
#pragma once

#include "diversity.h"
#include "dpp.h"
#include "facility_location.h"
#include "min_sum.h"
#include "relevance_topk.h"
#include "soft_suppress.h"
#include "suppress.h"

namespace zspa::cpu {

// Columns of a ragged batch's table, as in zspa_kernels/_segments.py.
enum TableColumn : int { kFirstRow, kLength, kCore, kDiverse, kFirstSlot, kTableColumns };

struct Problem {
  // Visual tokens. Padded: S rows of a batch, N tokens each. Ragged: `table` says where.
  const char* visual;
  DType dtype;
  int64_t S, N, D;
  int64_t batch_bytes, row_bytes;
  const int64_t* table;        // [S, kTableColumns] or null
  const uint8_t* visual_mask;  // [S, N] or null; padded only
  // Prompt; `prompt` null = none.
  const char* prompt;
  DType prompt_dtype;
  int64_t M;
  int64_t prompt_batch_bytes, prompt_row_bytes;
  const int64_t* spans;        // [S, 2] into the packed prompt; ragged only
  const uint8_t* prompt_mask;  // [S, M] or null; padded only
  Pooling pooling;
  // Diversity.
  const int64_t* seeds;  // [S, num_seeds] or null; padded only
  int64_t num_seeds;
  const float* weights;  // like the tokens without channels, or null
  // Facility location.
  const float* benefits;  // padded [S, M, N], ragged [M, T], or null
  int64_t benefit_rows;
  int64_t benefit_batch_stride, benefit_row_stride;  // in elements
  float temperature, scale;
  // Suppression; padded only. What belongs to a segment is filled in for each.
  const double* ratings;    // [S, N]
  const double* positions;  // [S, N, 2] or null
  SuppressRequest hard;
  SoftSuppressRequest soft;
  // Counts; ragged segments have their own in the table.
  int64_t k_core, k_diverse;
  int64_t total_slots;  // of `indices`
  bool sorted;
  int threads;
  // Results.
  int64_t* indices;
  float* scores;  // [S, N]; relevance_topk only
  Stats stats;
};

void select(Problem& problem);
void relevance_topk(Problem& problem);
void diversity(Problem& problem);
void dpp(Problem& problem);
void facility_location(Problem& problem);
void min_sum(Problem& problem);
void suppress(Problem& problem);
void soft_suppress(Problem& problem);

}  // namespace zspa::cpu
