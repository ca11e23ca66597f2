// SPDX-License-Identifier: Apache-2.0
// min_sum: exact greedy max-sum dispersion: each pick has the smallest sum of cosines to those before.
// Algorithm   : a sum can fall as well as rise, so no stale sum is a bound: every pick needs its column
//               of cosines, and every sum is brought up to date at every pick. What can be saved is
//               columns of tokens that are not picked, and products of one column. Per pass:
//               1. candidates = the smallest sums, with their own Gram matrix;
//               2. forecast = the picks of the greedy among the candidates alone;
//               3. the columns of the forecast, as one product with all other rows;
//               4. pick as long as the smallest of all sums has its column: a token that is no
//                  candidate may have overtaken the forecast. Columns left over are kept.
//               Without seeds the first pick has the smallest sum over all tokens, one dot with the sum
//               of all directions.
// Inputs      : tokens [N, D], inverse norms [N], seeds [S]      Outputs: picks [k] int64
// Work        : N k dots and 0 to 70 % more at D = 4096; up to 5 N k where forecasts fail (D = 8 to 64).
// Memory      : 2 * 48 columns of N floats and the Gram matrix of 96 tokens; no N x N matrix.
// Mapping     : products of 16-row units with packed columns over all threads; picks on one.
// Numerics    : float32 cosines, the same bits for a pair on every path; sums in double, in the order
//               of selection, so that they are as exact as their cosines.
// Deterministic: yes, for any number of threads.
#include "min_sum.h"

#include <algorithm>
#include <memory>

#include "lazy.h"
#include "min_sum_config.h"

namespace zspa::cpu {
namespace {

constexpr double kClosed = std::numeric_limits<double>::infinity();
constexpr double kZeroRowSum = std::numeric_limits<double>::max();  // behind every sum
constexpr int64_t kLanes = 8;                                       // sums are padded to a multiple

// The smallest of `n` sums, a multiple of kLanes.
double smallest(const double* sums, int64_t n) {
  double low[kLanes];
  std::fill(low, low + kLanes, kClosed);
  for (int64_t i = 0; i < n; i += kLanes)
    for (int64_t x = 0; x < kLanes; ++x) low[x] = sums[i + x] < low[x] ? sums[i + x] : low[x];
  return *std::min_element(low, low + kLanes);
}

class Greedy {
 public:
  Greedy(const Tokens& tokens, const MinSumRequest& request, int threads, Workspace& workspace,
         Stats& stats, int64_t* out)
      : tokens_(tokens),
        request_(request),
        sizes_(min_sum_sizes(tokens.N)),
        threads_(threads),
        workspace_(workspace),
        stats_(stats),
        out_(out),
        stride_(round_up(tokens.N, kLanes)),
        sums_(size_t(stride_), kClosed),
        slot_(size_t(tokens.N), -1) {}

  void run() {
    if (request_.k > 0) start();
    int64_t forecast = kFirstForecast;
    while (taken_ < request_.k) {
      const int64_t before = taken_;
      const int64_t token = best();
      if (sums_[size_t(token)] == kClosed) break;
      // The last pick needs no column, nor does a zero row.
      if (taken_ + 1 == request_.k || request_.inv[token] == kNoDirection) {
        take(token);
        continue;
      }
      const int64_t foreseen = pass(token, std::min(forecast, request_.k - taken_ - 1));
      const int64_t accepted = taken_ - before;
      if (3 * accepted < foreseen) forecast = std::max(kShortestForecast, forecast / 2);
      if (4 * accepted >= 3 * foreseen) forecast = std::min(sizes_.columns, forecast * 2);
    }
    std::fill(out_ + taken_, out_ + request_.k, int64_t(-1));
  }

 private:
  bool open(int64_t i) const { return sums_[size_t(i)] < kClosed; }
  bool directed(int64_t i) const { return sums_[size_t(i)] < kZeroRowSum; }  // and open

  // Who may be picked, the seeds, and the sums that decide the first pick.
  void start() {
    bool seeded = false;
    for (int64_t i = 0; i < tokens_.N; ++i) {
      if (request_.inv[i] == kMaskedOut) continue;
      sums_[size_t(i)] = request_.inv[i] == kNoDirection ? kZeroRowSum : 0.0;
    }
    std::vector<int> seeds;
    for (int64_t s = 0; s < request_.num_seeds; ++s) {
      const int64_t seed = request_.seeds[s];
      if (seed < 0 || seed >= tokens_.N || request_.inv[seed] == kMaskedOut) continue;
      seeded = true;
      if (directed(seed)) seeds.push_back(int(seed));
      sums_[size_t(seed)] = kClosed;
    }
    const int64_t slots = std::min(tokens_.N, kPassesKept * sizes_.columns);
    columns_.reset(new float[size_t(slots * stride_)]());
    owner_.assign(size_t(slots), -1);
    used_.assign(size_t(slots), -1);
    if (seeded)
      add_seeds(seeds);
    else
      sum_over_all();
  }

  float* column(int64_t slot) { return columns_.get() + slot * stride_; }

  void list_directed() {
    workspace_.rows.clear();
    for (int64_t i = 0; i < tokens_.N; ++i)
      if (directed(i)) workspace_.rows.push_back(int(i));
  }

  void add_seeds(const std::vector<int>& seeds) {
    list_directed();
    for (size_t first = 0; first < seeds.size(); first += owner_.size()) {
      const size_t last = std::min(seeds.size(), first + owner_.size());
      missing_.assign(seeds.begin() + int64_t(first), seeds.begin() + int64_t(last));
      to_.clear();
      while (to_.size() < missing_.size()) to_.push_back(int(to_.size()));
      compute();
      for (int slot : to_) add(column(slot));
    }
  }

  // sums_ = dots with the sum of all directions. `fresh_` until a token is picked by these.
  void sum_over_all() {
    fresh_ = true;
    list_directed();
    const std::vector<int>& rows = workspace_.rows;
    const int64_t V = int64_t(rows.size()), D = tokens_.D;
    const Kernels& kernel = kernels();
    std::vector<float> total(size_t(D), 0.0f);
    constexpr int64_t kChannels = 512;  // of a task
    const int threads = threads_for(V * D * 4, threads_);
    parallel_for(threads, (D + kChannels - 1) / kChannels, [&](int64_t task, int) {
      const int64_t begin = task * kChannels, end = std::min(begin + kChannels, D);
      std::vector<double> sum(size_t(end - begin), 0.0);
      for (int64_t first = 0; first < V; first += kRowsPerSum) {
        std::fill(total.begin() + begin, total.begin() + end, 0.0f);
        for (int64_t r = first; r < std::min(V, first + kRowsPerSum); ++r)
          kernel.fold(Fold::sum, tokens_.dtype, tokens_.row(rows[size_t(r)]),
                      request_.inv[rows[size_t(r)]], begin, end, total.data());
        for (int64_t d = begin; d < end; ++d) sum[size_t(d - begin)] += total[size_t(d)];
      }
      for (int64_t d = begin; d < end; ++d) total[size_t(d)] = float(sum[size_t(d - begin)]);
    });
    std::vector<float> ordered(size_t(round_up(D, kernel.step)));
    kernel.order(tokens_.dtype, total.data(), D, ordered.data());
    const float* vector = ordered.data();
    parallel_for(threads, (V + kRowsPerSum - 1) / kRowsPerSum, [&](int64_t task, int) {
      for (int64_t r = task * kRowsPerSum; r < std::min(V, (task + 1) * kRowsPerSum); ++r) {
        const int i = rows[size_t(r)];
        float squares, dot;
        kernel.row_pass(tokens_.dtype, tokens_.row(i), D, &vector, 1, &squares, &dot);
        sums_[size_t(i)] = dot * request_.inv[i];
      }
    });
  }

  // The open token of the smallest sum, the first of equal ones.
  int64_t best() const {
    const double low = smallest(sums_.data(), stride_);
    return std::find(sums_.begin(), sums_.end(), low) - sums_.begin();
  }

  void take(int64_t token) {
    out_[taken_++] = token;
    sums_[size_t(token)] = kClosed;
    if (!fresh_) return;
    fresh_ = false;  // what has decided the first pick is no part of the sums
    for (double& sum : sums_) sum = sum < kZeroRowSum ? 0.0 : sum;
  }

  void add(const float* column) {
    for (int64_t i = 0; i < stride_; ++i) sums_[size_t(i)] += double(column[i]);
  }

  // One pass, whose first pick is `first`. Returns how many picks were foreseen.
  int64_t pass(int64_t first, int64_t forecast) {
    ++stats_.passes;
    const bool everyone = list_candidates(first);
    foresee(first, everyone ? request_.k - taken_ - 1 : forecast);
    fetch();
    while (taken_ + 1 < request_.k) {
      const int64_t token = best();
      if (!directed(token) || slot_[size_t(token)] < 0) break;
      const float* cosines = column(slot_[size_t(token)]);
      take(token);
      add(cosines);
    }
    return int64_t(foreseen_.size());
  }

  // candidates_: the smallest sums, among them `first`, ascending by index. True if these are all.
  bool list_candidates(int64_t first) {
    std::vector<Key>& keys = workspace_.keys;
    keys.clear();
    for (int64_t i = 0; i < tokens_.N; ++i)
      if (directed(i) && i != first) keys.push_back(make_key(float(sums_[size_t(i)]), i));
    const bool everyone = keep_smallest(keys, sizes_.candidates - 1) == kNoKey;
    candidates_.assign(1, int(first));
    for (Key key : keys) candidates_.push_back(int(index_of(key)));
    std::sort(candidates_.begin(), candidates_.end());
    return everyone;
  }

  // foreseen_: places in candidates_ of the next picks, if only candidates could be picked.
  void foresee(int64_t first, int64_t picks) {
    const int64_t n = int64_t(candidates_.size());
    workspace_.gram.resize(size_t(n * n));
    gram(tokens_, candidates_, request_.inv, threads_, workspace_.candidates,
         workspace_.gram.data());
    for (int64_t i = 0; i < n; ++i) workspace_.gram[size_t(i * n + i)] = 1.0f;
    stats_.dots += n * (n - 1) / 2;
    std::vector<double> sums(static_cast<size_t>(n));
    for (int64_t c = 0; c < n; ++c)
      sums[size_t(c)] = fresh_ ? 0.0 : sums_[size_t(candidates_[size_t(c)])];
    int64_t next =
        std::lower_bound(candidates_.begin(), candidates_.end(), int(first)) - candidates_.begin();
    foreseen_.clear();
    while (true) {
      foreseen_.push_back(int(next));
      if (int64_t(foreseen_.size()) == std::min(n, picks)) return;
      sums[size_t(next)] = kClosed;
      const float* cosines = workspace_.gram.data() + next * n;
      for (int64_t c = 0; c < n; ++c) sums[size_t(c)] += double(cosines[c]);
      next = std::min_element(sums.begin(), sums.end()) - sums.begin();
    }
  }

  // The columns of what is foreseen.
  void fetch() {
    missing_.clear();
    places_.clear();
    for (int place : foreseen_) {
      const int slot = slot_[size_t(candidates_[size_t(place)])];
      if (slot >= 0) used_[size_t(slot)] = stats_.passes;
      if (slot >= 0) continue;
      missing_.push_back(candidates_[size_t(place)]);
      places_.push_back(place);
    }
    to_.clear();
    for (int token : missing_) to_.push_back(free_slot(token));
    std::vector<int>& rows = workspace_.rows;
    rows.clear();
    auto candidate = candidates_.begin();
    for (int64_t i = 0; i < tokens_.N; ++i) {
      if (candidate != candidates_.end() && *candidate == i)
        ++candidate;
      else if (directed(i))
        rows.push_back(int(i));
    }
    compute();
    const int64_t n = int64_t(candidates_.size());
    for (size_t m = 0; m < missing_.size(); ++m) {
      const float* cosines = workspace_.gram.data() + places_[m] * n;
      float* to = column(to_[m]);
      for (int64_t c = 0; c < n; ++c) to[candidates_[size_t(c)]] = cosines[c];
    }
  }

  // A slot for the column of `token`: one of a picked token, or else the one used longest ago.
  int free_slot(int token) {
    size_t slot = 0;
    for (size_t s = 0; s < owner_.size(); ++s) {
      if (owner_[s] >= 0 && !open(owner_[s])) used_[s] = -1;
      if (used_[s] < used_[slot]) slot = s;
    }
    if (owner_[slot] >= 0) slot_[size_t(owner_[slot])] = -1;
    owner_[slot] = token;
    used_[slot] = stats_.passes;
    slot_[size_t(token)] = int(slot);
    return int(slot);
  }

  // Cosines of the rows workspace_.rows with the tokens missing_ -> columns to_. Other entries keep
  // what they had, 0 or an old cosine; they belong to tokens that cannot be picked.
  void compute() {
    const std::vector<int>& rows = workspace_.rows;
    const int64_t count = int64_t(missing_.size());
    if (rows.empty() || count == 0) return;
    workspace_.picks.reset(tokens_.dtype, tokens_.D, count);
    parallel_for(threads_for(count * tokens_.D, threads_), (count + kUnitRows - 1) / kUnitRows,
                 [&](int64_t task, int) {
                   const int64_t begin = task * kUnitRows;
                   for (int64_t c = begin; c < std::min(count, begin + kUnitRows); ++c)
                     workspace_.picks.put(c, tokens_.row(missing_[size_t(c)]));
                 });
    split_units(int64_t(rows.size()), workspace_.units);
    stats_.dots += int64_t(rows.size()) * count;
    for_each_tile(tokens_, rows, workspace_.units, workspace_.picks, count, threads_,
                  [&](int, const int* ids, int tall, int64_t c0, int64_t c1, const float* dots) {
                    for (int64_t c = c0; c < c1; ++c) {
                      const float inv = request_.inv[missing_[size_t(c)]];
                      float* to = column(to_[size_t(c)]);
                      for (int i = 0; i < tall; ++i)
                        to[ids[i]] =
                            dots[i * kUnitColumns + (c - c0)] * (request_.inv[ids[i]] * inv);
                    }
                  });
  }

  const Tokens& tokens_;
  const MinSumRequest& request_;
  const MinSumSizes sizes_;
  const int threads_;
  Workspace& workspace_;
  Stats& stats_;
  int64_t* out_;
  int64_t taken_ = 0;
  bool fresh_ = false;    // nothing is selected: the sums are over all tokens
  const int64_t stride_;  // N rounded up
  std::vector<double>
      sums_;  // [stride_], of cosines to what is selected; kClosed: not to be picked
  std::vector<int> candidates_;
  std::vector<int> foreseen_;               // their places in candidates_, in the order of picking
  std::unique_ptr<float[]> columns_;        // [slots][stride_]
  std::vector<int> slot_;                   // [N]: where the column of a token is, -1: nowhere
  std::vector<int> owner_;                  // [slots]: whose column it is, -1: nobody's
  std::vector<int64_t> used_;               // [slots]: the last pass that wanted it, -1: free
  std::vector<int> missing_, places_, to_;  // tokens whose columns are computed, places, slots
};

}  // namespace

void min_sum(const Tokens& tokens, const MinSumRequest& request, int threads, Workspace& workspace,
             Stats& stats, int64_t* out) {
  Greedy(tokens, request, threads, workspace, stats, out).run();
}

}  // namespace zspa::cpu
