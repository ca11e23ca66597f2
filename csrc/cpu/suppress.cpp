// SPDX-License-Identifier: Apache-2.0
// suppress: tokens by falling score, without those too similar to one taken before (GreedyPrune,
// arXiv 2506.13166).
// Algorithm   : a scan of the order in blocks. Per block:
//               1. compare it with the tokens taken, some at a time; drop what one of them suppresses;
//               2. compare what is left with each other, and take from it one after the other.
//               It ends with the k-th token.
// Inputs      : tokens [N, D], inverse norms [N], scores [N]          Outputs: picks [k] int64
// Work        : a token that is left out is compared up to the tokens that suppress it, others with
//               all taken before: at most N k dots. No N x N matrix.
// Mapping     : products of 16-row units with packed columns, over all threads.
// Numerics    : float32; within its error of the threshold double decides, on a grid of 2^-40.
// Deterministic: yes, for any number of threads.
#include "suppress.h"

#include <algorithm>
#include <utility>

#include "exact.h"
#include "suppress_config.h"

namespace zspa::cpu {
namespace {

class Scan {
 public:
  Scan(const Tokens& tokens, const SuppressRequest& request, int threads, Workspace& workspace,
       Stats& stats, int64_t* out)
      : tokens_(tokens),
        request_(request),
        threads_(threads),
        workspace_(workspace),
        stats_(stats),
        out_(out),
        slack_(cosine_slack(tokens.D)),
        exact_(tokens),
        suppressed_(size_t(tokens.N), 0) {}

  void run() {
    std::vector<std::pair<double, int>> order;
    for (int64_t i = 0; i < tokens_.N; ++i)
      if (request_.inv[i] != kMaskedOut && std::isfinite(request_.scores[i]))
        order.emplace_back(-request_.scores[i], int(i));
    std::sort(order.begin(), order.end());
    const int64_t V = int64_t(order.size());
    workspace_.picks.reset(tokens_.dtype, tokens_.D, std::min(V, request_.k));
    near_.resize(kScan);
    std::vector<int> block;
    for (int64_t first = 0; first < V && taken_ < request_.k; first += kScan) {
      block.clear();
      for (int64_t i = first; i < std::min(V, first + kScan); ++i)
        block.push_back(order[size_t(i)].second);
      compare_with_taken(block);
      take_from(block);
      ++stats_.passes;
    }
    for (size_t i = 0; request_.fill && i < left_.size() && taken_ < request_.k; ++i)
      out_[taken_++] = left_[i];
    std::fill(out_ + taken_, out_ + request_.k, int64_t(-1));
  }

 private:
  int64_t columns() const { return int64_t(columns_.size()); }
  bool directed(int i) const { return request_.inv[i] != kNoDirection; }

  // Marks the tokens of the block that one taken before suppresses.
  void compare_with_taken(const std::vector<int>& block) {
    std::vector<int>& rows = workspace_.rows;
    rows.clear();
    for (int i : block)
      if (directed(i)) rows.push_back(i);
    for (int64_t c = 0; c < columns() && !rows.empty(); c += kScanColumns) {
      compare(rows, c, std::min(columns(), c + kScanColumns));
      rows.erase(std::remove_if(rows.begin(), rows.end(),
                                [&](int i) { return suppressed_[size_t(i)] != 0; }),
                 rows.end());
    }
  }

  void compare(const std::vector<int>& rows, int64_t first, int64_t last) {
    split_units(int64_t(rows.size()), workspace_.units);
    for (Unit& unit : workspace_.units) unit.first = first;
    stats_.dots += int64_t(rows.size()) * (last - first);
    for_each_tile(tokens_, rows, workspace_.units, workspace_.picks, last, threads_,
                  [&](int, const int* ids, int count, int64_t c0, int64_t c1, const float* dots) {
                    for (int i = 0; i < count; ++i) {
                      const float* row = dots + i * kUnitColumns;
                      const float inv = request_.inv[ids[i]];
                      std::vector<int>& near = near_[size_t(ids + i - rows.data())];
                      for (int64_t c = c0; c < c1; ++c) {
                        const int column = columns_[size_t(c)];
                        const double cosine = row[c - c0] * (inv * request_.inv[column]);
                        if (cosine > request_.threshold + slack_)
                          suppressed_[size_t(ids[i])] = 1;
                        else if (cosine >= request_.threshold - slack_)
                          near.push_back(column);
                      }
                    }
                  });
    settle(rows);
  }

  // Compares rows in double with the columns that are near the threshold.
  void settle(const std::vector<int>& rows) {
    int64_t pairs = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      if (suppressed_[size_t(rows[r])]) near_[r].clear();
      if (!near_[r].empty()) exact_.know(rows[r]);
      for (int column : near_[r]) exact_.know(column);
      pairs += int64_t(near_[r].size());
    }
    if (pairs == 0) return;
    parallel_for(threads_for(pairs * tokens_.D * 4, threads_), int64_t(rows.size()),
                 [&](int64_t r, int) {
                   char& suppressed = suppressed_[size_t(rows[size_t(r)])];
                   for (int column : near_[size_t(r)])
                     suppressed |= exact_.cosine(rows[size_t(r)], column) > request_.threshold;
                   near_[size_t(r)].clear();
                 });
  }

  // Takes what is left of the block, token by token.
  void take_from(const std::vector<int>& block) {
    std::vector<int>& rows = workspace_.rows;  // those left that have a direction
    const int64_t n = int64_t(rows.size());
    std::sort(rows.begin(), rows.end());
    if (n > 1) {
      workspace_.gram.resize(size_t(n * n));
      gram(tokens_, rows, request_.inv, threads_, workspace_.candidates, workspace_.gram.data());
      stats_.dots += n * (n - 1) / 2;
    }
    std::vector<int64_t> alive;  // places in rows of those taken
    for (int i : block) {
      if (taken_ == request_.k) return;
      const int64_t at = std::lower_bound(rows.begin(), rows.end(), i) - rows.begin();
      const float* cosines = workspace_.gram.data() + at * n;
      for (size_t x = 0; directed(i) && x < alive.size() && !suppressed_[size_t(i)]; ++x)
        suppressed_[size_t(i)] = above(cosines[alive[x]], i, rows[size_t(alive[x])]);
      if (suppressed_[size_t(i)]) {
        left_.push_back(i);
        continue;
      }
      out_[taken_++] = i;
      if (!directed(i)) continue;
      alive.push_back(at);
      workspace_.picks.put(columns(), tokens_.row(i));
      columns_.push_back(i);
    }
  }

  bool above(double cosine, int a, int b) {
    if (std::abs(cosine - request_.threshold) > slack_) return cosine > request_.threshold;
    exact_.know(a);
    exact_.know(b);
    return exact_.cosine(a, b) > request_.threshold;
  }

  const Tokens& tokens_;
  const SuppressRequest& request_;
  const int threads_;
  Workspace& workspace_;
  Stats& stats_;
  int64_t* out_;
  int64_t taken_ = 0;
  const double slack_;
  ExactCosines exact_;
  std::vector<char> suppressed_;        // [N]
  std::vector<int> columns_;            // tokens taken that have a direction
  std::vector<int> left_;               // those left out, by falling score
  std::vector<std::vector<int>> near_;  // of each row of a block: tokens at the threshold
};

}  // namespace

void suppress(const Tokens& tokens, const SuppressRequest& request, int threads,
              Workspace& workspace, Stats& stats, int64_t* out) {
  Scan(tokens, request, threads, workspace, stats, out).run();
}

}  // namespace zspa::cpu
