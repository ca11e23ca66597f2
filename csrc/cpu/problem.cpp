// SPDX-License-Identifier: Apache-2.0
// Each operation on one segment, and the loop over segments: in a batch each image has one thread; an
// image that is large compared with the others has all threads.
#include "problem.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "topk.h"

namespace zspa::cpu {
namespace {

struct Segment {
  Tokens tokens;
  const uint8_t* mask;
  bool has_prompt;
  Prompt prompt;
  const int64_t* seeds;
  const float* weights;
  const float* benefits;
  const double* ratings;
  const double* positions;
  float* scores;
  int64_t k_core, k_diverse;
  int64_t first_row;  // added to indices
  int64_t* out;       // k_core + k_diverse slots
};

Segment segment_of(const Problem& p, int64_t s) {
  Segment segment{};
  segment.tokens = {p.visual + s * p.batch_bytes, p.dtype, p.N, p.D, p.row_bytes};
  segment.k_core = p.k_core;
  segment.k_diverse = p.k_diverse;
  int64_t slot = s * (p.k_core + p.k_diverse);
  int64_t first_token = s * p.N;
  if (p.table) {
    const int64_t* row = p.table + s * kTableColumns;
    segment.first_row = first_token = row[kFirstRow];
    segment.tokens.data = p.visual + row[kFirstRow] * p.row_bytes;
    segment.tokens.N = row[kLength];
    segment.k_core = row[kCore];
    segment.k_diverse = row[kDiverse];
    slot = row[kFirstSlot];
  }
  segment.mask = p.visual_mask ? p.visual_mask + first_token : nullptr;
  segment.weights = p.weights ? p.weights + first_token : nullptr;
  if (p.benefits)
    segment.benefits = p.benefits + (p.table ? first_token : s * p.benefit_batch_stride);
  if (p.ratings) segment.ratings = p.ratings + first_token;
  if (p.positions) segment.positions = p.positions + 2 * first_token;
  segment.scores = p.scores ? p.scores + first_token : nullptr;
  segment.seeds = p.seeds ? p.seeds + s * p.num_seeds : nullptr;
  segment.out = p.indices + slot;
  segment.has_prompt = p.prompt != nullptr;
  if (segment.has_prompt) {
    const int64_t from = p.spans ? p.spans[2 * s] : 0;
    const int64_t to = p.spans ? std::max(from, p.spans[2 * s + 1]) : p.M;
    segment.prompt = {p.prompt + s * p.prompt_batch_bytes + from * p.prompt_row_bytes,
                      p.prompt_dtype,
                      to - from,
                      p.D,
                      p.prompt_row_bytes,
                      p.prompt_mask ? p.prompt_mask + s * p.M : nullptr};
  }
  return segment;
}

// Which segments get all threads, one after another, and which a single thread; large ones first, so
// that none is still running on one thread when the others are done.
struct Schedule {
  std::vector<int64_t> shared, single;
};

// A segment that is more than a thread's share of the remaining work would keep the others waiting.
Schedule schedule(const Problem& problem, int threads) {
  std::vector<std::pair<double, int64_t>> order;  // (-work, segment)
  double left = 0.0;
  for (int64_t s = 0; s < problem.S; ++s) {
    const Segment segment = segment_of(problem, s);
    const double work = double(segment.tokens.N) * double(segment.k_core + segment.k_diverse + 1);
    order.emplace_back(-work, s);
    left += work;
  }
  std::sort(order.begin(), order.end());
  Schedule schedule;
  for (const auto& [minus_work, s] : order) {
    const bool share = schedule.single.empty() && -minus_work * threads > left;
    (share ? schedule.shared : schedule.single).push_back(s);
    left += minus_work;
  }
  return schedule;
}

template <class Run>
void for_each_segment(Problem& problem, const Run& run) {
  // A table without segments has no memory, and so the address of an absent one.
  if (problem.table || problem.S == 0)
    std::fill(problem.indices, problem.indices + problem.total_slots, int64_t(-1));
  const int threads = usable_threads(problem.threads);
  const Schedule order = schedule(problem, threads);
  std::vector<Workspace> workspaces{size_t(threads)};
  std::vector<Stats> stats{size_t(threads)};
  for (int64_t s : order.shared) run(segment_of(problem, s), threads, workspaces[0], stats[0]);
  parallel_for(threads, int64_t(order.single.size()), [&](int64_t i, int thread) {
    const Segment segment = segment_of(problem, order.single[size_t(i)]);
    run(segment, 1, workspaces[size_t(thread)], stats[size_t(thread)]);
  });
  for (const Stats& part : stats) {
    problem.stats.passes += part.passes;
    problem.stats.dots += part.dots;
    problem.stats.seed_dots += part.seed_dots;
  }
}

void select_one(const Segment& segment, Pooling pooling, bool sorted, int threads,
                Workspace& workspace, Stats& stats) {
  const int64_t N = segment.tokens.N, K = segment.k_core + segment.k_diverse;
  if (K == 0) return;
  std::vector<float> inv(static_cast<size_t>(N));
  int64_t core = 0, k_diverse = segment.k_diverse;
  if (!segment.has_prompt) k_diverse = K;
  if (segment.has_prompt && segment.k_core > 0) {
    std::vector<float> scores(static_cast<size_t>(N));
    if (relevance(segment.tokens, segment.mask, segment.prompt, pooling, threads, inv.data(),
                  scores.data()))
      core = top_k(Rated<float>{scores.data(), N}, segment.k_core, false, segment.out);
    else
      k_diverse = K;  // nothing to be relevant to
  } else {
    inverse_norms(segment.tokens, segment.mask, threads, inv.data());
  }
  const std::vector<int64_t> seeds(segment.out, segment.out + core);
  std::fill(segment.out + core, segment.out + K, int64_t(-1));
  if (k_diverse > 0)
    diversity(segment.tokens, {inv.data(), nullptr, seeds.data(), core, std::min(k_diverse, N)},
              threads, workspace, stats, segment.out + core);
  int64_t* end = std::find(segment.out, segment.out + K, int64_t(-1));
  if (sorted) std::sort(segment.out, end);
  for (int64_t* index = segment.out; index < end; ++index) *index += segment.first_row;
}

// A greedy selection: pick(segment, inverse norms, k, threads, workspace, stats) writes the picks.
template <class Pick>
void pick_diverse(Problem& problem, const Pick& pick) {
  for_each_segment(problem,
                   [&](const Segment& segment, int threads, Workspace& workspace, Stats& stats) {
                     const int64_t K = segment.k_diverse, k = std::min(K, segment.tokens.N);
                     std::vector<float> inv(static_cast<size_t>(segment.tokens.N));
                     inverse_norms(segment.tokens, segment.mask, threads, inv.data());
                     pick(segment, inv.data(), k, threads, workspace, stats);
                     std::fill(segment.out + k, segment.out + K, int64_t(-1));
                     for (int64_t i = 0; i < k; ++i)
                       if (segment.out[i] >= 0) segment.out[i] += segment.first_row;
                   });
}

}  // namespace

void select(Problem& problem) {
  for_each_segment(
      problem, [&](const Segment& segment, int threads, Workspace& workspace, Stats& stats) {
        select_one(segment, problem.pooling, problem.sorted, threads, workspace, stats);
      });
}

void relevance_topk(Problem& problem) {
  for_each_segment(problem, [&](const Segment& segment, int threads, Workspace&, Stats&) {
    std::vector<float> inv(static_cast<size_t>(segment.tokens.N));
    if (relevance(segment.tokens, segment.mask, segment.prompt, problem.pooling, threads,
                  inv.data(), segment.scores))
      top_k(Rated<float>{segment.scores, segment.tokens.N}, segment.k_core, false, segment.out);
    else
      std::fill(segment.out, segment.out + segment.k_core, int64_t(-1));
  });
}

void diversity(Problem& problem) {
  pick_diverse(problem, [&](const Segment& segment, const float* inv, int64_t k, int threads,
                            Workspace& workspace, Stats& stats) {
    diversity(segment.tokens, {inv, segment.weights, segment.seeds, problem.num_seeds, k}, threads,
              workspace, stats, segment.out);
  });
}

void dpp(Problem& problem) {
  pick_diverse(problem, [](const Segment& segment, const float* inv, int64_t k, int threads,
                           Workspace& workspace, Stats& stats) {
    dpp(segment.tokens, {inv, segment.weights, k}, threads, workspace, stats, segment.out);
  });
}

void facility_location(Problem& problem) {
  pick_diverse(problem, [&](const Segment& segment, const float* inv, int64_t k, int threads,
                            Workspace& workspace, Stats& stats) {
    facility_location(segment.tokens,
                      {inv, segment.weights, segment.benefits, problem.benefit_rows,
                       problem.benefit_row_stride, problem.temperature, problem.scale, k},
                      threads, workspace, stats, segment.out);
  });
}

void min_sum(Problem& problem) {
  pick_diverse(problem, [&](const Segment& segment, const float* inv, int64_t k, int threads,
                            Workspace& workspace, Stats& stats) {
    min_sum(segment.tokens, {inv, segment.seeds, problem.num_seeds, k}, threads, workspace, stats,
            segment.out);
  });
}

void suppress(Problem& problem) {
  pick_diverse(problem, [&](const Segment& segment, const float* inv, int64_t k, int threads,
                            Workspace& workspace, Stats& stats) {
    SuppressRequest request = problem.hard;
    request.inv = inv;
    request.scores = segment.ratings;
    request.k = k;
    suppress(segment.tokens, request, threads, workspace, stats, segment.out);
  });
}

void soft_suppress(Problem& problem) {
  pick_diverse(problem, [&](const Segment& segment, const float* inv, int64_t k, int threads,
                            Workspace& workspace, Stats& stats) {
    SoftSuppressRequest request = problem.soft;
    request.inv = inv;
    request.scores = segment.ratings;
    request.positions = segment.positions;
    request.k = k;
    soft_suppress(segment.tokens, request, threads, workspace, stats, segment.out);
  });
}

}  // namespace zspa::cpu
