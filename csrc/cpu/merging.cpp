// SPDX-License-Identifier: Apache-2.0
// assign, match, merge: which tokens become part of which, and their sums (ToMe, arXiv 2210.09461;
// VisionZip, 2412.04467).
// Algorithm   : one product of all queries with all targets, of which only the largest cosine of a row
//               and the one behind it are kept. Rows where these lie closer than the error of float32
//               are compared again, in double, with the targets that are near.
// Inputs      : rows [N, D]; kept [K] or k      Outputs: owner [N], heads [k] or merged rows [k, D]
// Work        : N K D or, for match, N^2 D / 4 in the first round and a quarter of that in each further
//               one; no matrix of cosines.
// Numerics    : decides as cosines in double on a grid of 2^-40 do, which is coarser than their error;
//               ties to the lowest place. Sums of rows in float32 in the order of rows; of rounds, double.
// Deterministic: yes, for any number of threads.
#include "merging.h"

#include <algorithm>
#include <cmath>

#include "compared.h"

namespace zspa::cpu {
namespace {

constexpr double kShortest = 0x1p-40;  // of a row that has a direction
constexpr int64_t kNarrow = 256;       // channels: wider rows are multiplied as they are

struct Nearest {
  std::vector<int> place;     // of each query among the targets
  std::vector<float> cosine;  // -1 without direction
};

// Calls keep(query, target, cosine, next) for places of `queries`: the target of the largest cosine, that
// cosine and the next one. Both largest ones may be off by the error of float32.
template <class Keep>
void two_largest(const Compared& rows, const std::vector<int>& queries,
                 const std::vector<int>& targets, int threads, const Keep& keep) {
  struct Largest {
    int64_t target = 0;
    float cosine = kNoCosine, next = kNoCosine;
  };
  std::vector<Largest> found(queries.size());
  for_cosines(rows, queries, targets, threads,
              [&](int64_t query, int64_t first, const float* cosines, int64_t count) {
                Largest own = found[size_t(query)];
                if (largest(cosines, count) <= own.next) return;
                for (int64_t c = 0; c < count; ++c) {
                  if (cosines[c] > own.cosine)
                    own = {first + c, cosines[c], own.cosine};
                  else if (cosines[c] > own.next)
                    own.next = cosines[c];
                }
                found[size_t(query)] = own;
              });
  for (size_t q = 0; q < found.size(); ++q)
    keep(int64_t(q), found[q].target, found[q].cosine, found[q].next);
}

// The same where rows are narrow, with one call for some rows and all targets.
template <class Keep>
void two_largest_narrow(const Compared& rows, const std::vector<int>& queries,
                        const std::vector<int>& targets, int threads, const Keep& keep) {
  const Kernels& kernel = kernels();
  const Tokens& tokens = rows.tokens;
  const int64_t D = tokens.D, Q = int64_t(queries.size()), T = int64_t(targets.size());
  const int64_t wide = kernel.near_columns, tall = kernel.near_rows;
  const int64_t groups = (T + wide - 1) / wide;
  const auto direction = [&](int i, float* out) {  // [D]
    std::fill(out, out + D, 0.0f);
    kernel.fold(Fold::sum, tokens.dtype, tokens.row(i), rows.inv[size_t(i)], 0, D, out);
  };
  std::vector<float> columns(size_t(groups * D * wide)), bias(size_t(groups * wide), kNoCosine);
  std::fill(bias.begin(), bias.begin() + T, 0.0f);
  threads = threads_for(Q * T * D, threads);
  parallel_for(threads, groups, [&](int64_t group, int) {
    std::vector<float> column(static_cast<size_t>(D));
    for (int64_t c = group * wide; c < std::min(T, (group + 1) * wide); ++c) {
      direction(targets[size_t(c)], column.data());
      float* to = columns.data() + group * D * wide + c % wide;
      for (int64_t d = 0; d < D; ++d) to[d * wide] = column[size_t(d)];
    }
  });
  parallel_for(threads, (Q + tall - 1) / tall, [&](int64_t block, int) {
    std::vector<float> asking(size_t(tall * D));
    std::vector<float> best(static_cast<size_t>(tall)), next(best);
    std::vector<int32_t> place(static_cast<size_t>(tall));
    const int64_t first = block * tall, count = std::min(tall, Q - first);
    for (int64_t i = 0; i < count; ++i)
      direction(queries[size_t(first + i)], asking.data() + i * D);
    kernel.nearest(asking.data(), D, columns.data(), bias.data(), groups, best.data(), next.data(),
                   place.data());
    for (int64_t i = 0; i < count; ++i)
      keep(first + i, place[size_t(i)], best[size_t(i)], next[size_t(i)]);
  });
}

// The most similar target of each query, the first of equal ones; a target without direction is the
// most similar one only where there is no other, and to a query without direction it is the first.
Nearest nearest(const Compared& rows, const std::vector<int>& queries,
                const std::vector<int>& targets, int threads) {
  const size_t Q = queries.size();
  Nearest result{std::vector<int>(Q, 0), std::vector<float>(Q, -2.0f)};
  std::vector<float> second(Q, -2.0f);
  std::vector<int> at, asking, asked;  // places of targets, then queries and their places
  std::vector<int> pointed;
  for (size_t t = 0; t < targets.size(); ++t)
    if (rows.directed(targets[t])) at.push_back(int(t)), pointed.push_back(targets[t]);
  for (size_t q = 0; q < Q; ++q)
    if (rows.directed(queries[q])) asked.push_back(int(q)), asking.push_back(queries[q]);
  const auto keep = [&](int64_t asker, int64_t target, float best, float next) {
    const size_t q = size_t(asked[size_t(asker)]);
    result.place[q] = at[size_t(target)];
    result.cosine[q] = best;
    second[q] = next;
  };
  if (pointed.empty())
    asked.clear();
  else if (rows.tokens.D <= kNarrow)
    two_largest_narrow(rows, asking, pointed, threads, keep);
  else
    two_largest(rows, asking, pointed, threads, keep);
  std::vector<int> rivals, rival_of;  // rows whose two best are too close, and their queries
  for (size_t a = 0; a < asked.size(); ++a) {
    const size_t q = size_t(asked[a]);
    if (second[q] < result.cosine[q] - 2 * rows.slack) continue;
    rivals.push_back(asking[a]);
    rival_of.push_back(int(q));
  }
  std::vector<std::vector<int>> near(rivals.size());
  for_cosines(rows, rivals, pointed, threads,
              [&](int64_t place, int64_t first, const float* cosines, int64_t count) {
                const float best = result.cosine[size_t(rival_of[size_t(place)])];
                for (int64_t c = 0; c < count; ++c)
                  if (cosines[c] >= best - 2 * rows.slack)
                    near[size_t(place)].push_back(int(first + c));
              });
  parallel_for(threads, int64_t(rivals.size()), [&](int64_t r, int) {
    const int query = rivals[size_t(r)];
    double best = -2.0;
    int winner = -1;
    for (int t : near[size_t(r)]) {
      if (winner >= 0 && rows.same(pointed[size_t(t)], pointed[size_t(winner)])) continue;
      const double cosine = rows.cosine(query, pointed[size_t(t)]);
      if (cosine > best) best = cosine, winner = t;
    }
    result.place[size_t(rival_of[size_t(r)])] = at[size_t(winner)];
  });
  for (float& cosine : result.cosine) cosine = std::max(cosine, -1.0f);
  return result;
}

// The `count` pairs (even place, its nearest odd one) that are most similar, ties by place: for each
// even place of `line` the odd one it goes into, or -1.
std::vector<int> pairs(const Compared& rows, const std::vector<int>& line, int64_t count,
                       int threads) {
  std::vector<int> even, odd;
  for (size_t i = 0; i < line.size(); ++i) (i % 2 ? odd : even).push_back(line[i]);
  const Nearest found = nearest(rows, even, odd, threads);
  std::vector<float> order(found.cosine);
  std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), std::greater<>());
  const double last = order[size_t(count - 1)];
  // Only those about as similar as the last pair that merges need better than float32.
  std::vector<std::pair<double, int>> keys(even.size());
  for (size_t e = 0; e < even.size(); ++e) {
    const int target = odd[size_t(found.place[e])];
    double key = found.cosine[e] > last ? 4.0 : -4.0;
    if (!rows.directed(even[e]) || !rows.directed(target))
      key = -8.0;
    else if (std::abs(found.cosine[e] - last) <= 2 * rows.slack)
      key = rows.cosine(even[e], target);
    keys[e] = {-key, int(e)};
  }
  std::nth_element(keys.begin(), keys.begin() + (count - 1), keys.end());
  std::vector<int> into(even.size(), -1);
  for (int64_t i = 0; i < count; ++i) {
    const size_t e = size_t(keys[size_t(i)].second);
    into[e] = 2 * found.place[e] + 1;
  }
  return into;
}

// What is left after a round as rows of their own: the sum of each group points where its mean does.
void sum_groups(const Tokens& tokens, const std::vector<int>& valid, const std::vector<int>& group,
                int64_t groups, Compared& rows, std::vector<float>& memory) {
  const int64_t D = tokens.D;
  rows.wide.assign(size_t(groups * D), 0.0);
  std::vector<float> row(static_cast<size_t>(D));
  for (size_t v = 0; v < valid.size(); ++v) {
    double* sum = rows.wide.data() + group[v] * D;
    std::fill(row.begin(), row.end(), 0.0f);
    kernels().fold(Fold::sum, tokens.dtype, tokens.row(valid[v]), 1.0f, 0, D, row.data());
    for (int64_t d = 0; d < D; ++d) sum[d] += double(row[size_t(d)]);
  }
  memory.assign(size_t(groups * D), 0.0f);
  rows.inv.assign(size_t(groups), kNoDirection);
  for (int64_t g = 0; g < groups; ++g) {
    const double* sum = rows.wide.data() + g * D;
    double square = 0.0;
    for (int64_t d = 0; d < D; ++d) square += sum[d] * sum[d];
    const double length = std::sqrt(square);
    if (!(length >= kShortest)) continue;
    for (int64_t d = 0; d < D; ++d) memory[size_t(g * D + d)] = float(sum[d] / length);
    rows.inv[size_t(g)] = 1.0f;
  }
  rows.tokens = {reinterpret_cast<const char*>(memory.data()), DType::f32, groups, D, 4 * D};
}

}  // namespace

void assign(const Tokens& tokens, const uint8_t* mask, const int64_t* kept, int64_t K, int threads,
            int64_t* owner) {
  threads = usable_threads(threads);
  std::fill(owner, owner + tokens.N, int64_t(-1));
  const Compared rows = compared(tokens, mask, threads);
  std::vector<int> queries, targets, slots;
  for (int64_t s = K - 1; s >= 0; --s) {
    if (kept[s] < 0 || kept[s] >= tokens.N || rows.inv[size_t(kept[s])] == kMaskedOut) continue;
    targets.push_back(int(kept[s]));
    slots.push_back(int(s));
    owner[kept[s]] = s;  // the lowest of its slots: they come from behind
  }
  std::reverse(targets.begin(), targets.end());
  std::reverse(slots.begin(), slots.end());
  if (targets.empty()) return;
  for (int64_t i = 0; i < tokens.N; ++i)
    if (rows.inv[size_t(i)] != kMaskedOut && owner[i] < 0) queries.push_back(int(i));
  const Nearest found = nearest(rows, queries, targets, threads);
  for (size_t q = 0; q < queries.size(); ++q) owner[queries[q]] = slots[size_t(found.place[q])];
}

void groups(const Tokens& tokens, const uint8_t* mask, const int64_t* indices, const uint8_t* core,
            int64_t K, int threads, int64_t* owner, float* weights) {
  std::vector<uint8_t> asking(size_t(tokens.N), 1);
  if (mask) asking.assign(mask, mask + tokens.N);
  std::vector<int64_t> targets(indices, indices + K);
  for (int64_t s = 0; s < K; ++s) {
    if (!core[s] || indices[s] < 0) continue;
    asking[size_t(indices[s])] = 0;
    targets[size_t(s)] = -1;
  }
  assign(tokens, asking.data(), targets.data(), K, threads, owner);
  for (int64_t s = 0; s < K; ++s)
    if (indices[s] >= 0) owner[indices[s]] = -1;
  std::vector<float> counts(size_t(K), 0.0f);
  for (int64_t i = 0; i < tokens.N; ++i)
    if (owner[i] >= 0) counts[size_t(owner[i])] += 1.0f;
  for (int64_t i = 0; i < tokens.N; ++i)
    weights[i] = owner[i] >= 0 ? 1.0f / counts[size_t(owner[i])] : 0.0f;
  for (int64_t s = 0; s < K; ++s) {
    if (indices[s] < 0) continue;
    owner[indices[s]] = s;
    weights[indices[s]] = 1.0f;
  }
}

void match(const Tokens& tokens, const uint8_t* mask, int64_t k, int threads, int64_t* heads,
           int64_t* owner) {
  threads = usable_threads(threads);
  std::fill(heads, heads + k, int64_t(-1));
  std::fill(owner, owner + tokens.N, int64_t(-1));
  Compared rows = compared(tokens, mask, threads);
  std::vector<int> valid, group;  // valid tokens, and the group of each
  for (int64_t i = 0; i < tokens.N; ++i)
    if (rows.inv[size_t(i)] != kMaskedOut) valid.push_back(int(i));
  std::vector<int> left(valid), line(valid);  // a token for each group, and its row in `rows`
  for (size_t v = 0; v < valid.size(); ++v) group.push_back(int(v));
  std::vector<float> memory;
  const int64_t least = std::max<int64_t>(k, 1);
  while (int64_t(left.size()) > least) {
    const int64_t size = int64_t(left.size());
    const int64_t remove = std::min(size - least, size / 2);
    const std::vector<int> into = pairs(rows, line, remove, threads);
    std::vector<int> place(static_cast<size_t>(size)), next;
    for (int64_t i = 0; i < size; ++i) {
      if (i % 2 == 0 && into[size_t(i / 2)] >= 0) continue;
      place[size_t(i)] = int(next.size());
      next.push_back(left[size_t(i)]);
    }
    for (int64_t i = 0; i < size; i += 2)
      if (into[size_t(i / 2)] >= 0) place[size_t(i)] = place[size_t(into[size_t(i / 2)])];
    for (int& g : group) g = place[size_t(g)];
    left = std::move(next);
    if (int64_t(left.size()) <= least) break;
    sum_groups(tokens, valid, group, int64_t(left.size()), rows, memory);
    line.resize(left.size());
    for (size_t i = 0; i < line.size(); ++i) line[i] = int(i);
  }
  if (k == 0) return;
  for (size_t i = 0; i < left.size(); ++i) heads[i] = left[i];
  for (size_t v = 0; v < valid.size(); ++v) owner[valid[v]] = group[v];
}

int64_t until_novel(const Tokens& tokens, const int64_t* ranked, int64_t R, int64_t least,
                    double limit, int64_t patience, int threads) {
  constexpr int64_t kBlock = 48;  // rows compared at once: few are, as a rule, before the end
  threads = usable_threads(threads);
  Compared rows{tokens, std::vector<float>(size_t(tokens.N), kMaskedOut), {}, 0.0};
  rows.slack = cosine_slack(tokens.D);
  for (int64_t t = 0; t < R; ++t)
    rows.inv[size_t(ranked[t])] =
        inverse_norm(squared_length(tokens.dtype, tokens.row(ranked[t]), tokens.D));
  std::vector<int> core;
  for (int64_t t = 0; t < std::min(least, R); ++t)
    if (rows.directed(ranked[t])) core.push_back(int(ranked[t]));
  for (int64_t first = std::min(least, R); first < R; first += kBlock) {
    std::vector<int> block(ranked + first, ranked + std::min(R, first + kBlock));
    std::vector<uint8_t> near(block.size(), 0);
    for_cosines(rows, block, core, threads,
                [&](int64_t place, int64_t from, const float* cosines, int64_t count) {
                  const int row = block[size_t(place)];
                  for (int64_t c = 0; c < count && !near[size_t(place)]; ++c) {
                    double cosine = cosines[c];
                    if (std::abs(cosine - limit) <= rows.slack && rows.directed(row))
                      cosine = rows.cosine(row, core[size_t(from + c)]);
                    near[size_t(place)] = cosine >= limit;
                  }
                });
    for (size_t b = 0; b < block.size(); ++b) {
      patience -= !near[b] && rows.directed(block[b]);
      if (patience == 0) return first + int64_t(b) + 1;
    }
  }
  return R;
}

void merge(const Tokens& rows, const int64_t* owner, const float* weights, int64_t k, int threads,
           float* out) {
  std::vector<int64_t> first(size_t(k) + 1, 0), members;  // rows of slot s: members[first[s], ...)
  for (int64_t i = 0; i < rows.N; ++i)
    if (owner[i] >= 0 && owner[i] < k) ++first[size_t(owner[i]) + 1];
  for (int64_t s = 0; s < k; ++s) first[size_t(s) + 1] += first[size_t(s)];
  members.resize(size_t(first[size_t(k)]));
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  for (int64_t i = 0; i < rows.N; ++i)
    if (owner[i] >= 0 && owner[i] < k) members[size_t(next[size_t(owner[i])]++)] = i;
  constexpr int64_t kSlots = 8;  // of a task
  threads = threads_for(int64_t(members.size()) * rows.D * 4, usable_threads(threads));
  parallel_for(threads, (k + kSlots - 1) / kSlots, [&](int64_t task, int) {
    for (int64_t s = task * kSlots; s < std::min(k, (task + 1) * kSlots); ++s) {
      const int64_t begin = first[size_t(s)], end = first[size_t(s) + 1];
      float* sum = out + s * rows.D;
      std::fill(sum, sum + rows.D, 0.0f);
      for (int64_t m = begin; m < end; ++m) {
        const int64_t i = members[size_t(m)];
        const float weight = weights ? weights[i] : 1.0f / float(end - begin);
        kernels().fold(Fold::sum, rows.dtype, rows.row(i), weight, 0, rows.D, sum);
      }
    }
  });
}

}  // namespace zspa::cpu
