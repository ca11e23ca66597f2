// SPDX-License-Identifier: Apache-2.0
// DivPrune's seed: argmin_j max_{i != j} cos(i, j), exactly, without the N x N matrix.
// Algorithm   : branch and bound. The largest cosine of row j to any subset is a lower bound of its
//               value. A row is open while (bound, index) is below the best finished row.
//               1. blocks of neighbours in raster order: most tokens resemble the next one;
//               2. the most promising rows are finished (compared with everything), which gives a
//                  first value to beat;
//               3. open rows are compared with rounds of witnesses spread over the image, and now
//                  and then the most promising are finished; what cannot win is dropped.
// Work        : N^2/2 dots at worst on random tokens, a few percent of that on images.
// Numerics    : the cosines of diversity.cpp, bit for bit.
// Deterministic: yes, for any number of threads.
#include <algorithm>

#include "../common/keys.h"
#include "diversity.h"
#include "diversity_config.h"

namespace zspa::cpu {
namespace {

class SeedSearch {
 public:
  SeedSearch(const Tokens& tokens, const float* inv, int threads, Workspace& workspace, Stats& stats)
      : tokens_(tokens),
        inv_(inv),
        threads_(threads),
        workspace_(workspace),
        stats_(stats),
        closest_(size_t(tokens.N), -1.0f),
        met_(size_t(tokens.N), 0) {
    for (int64_t i = 0; i < tokens.N; ++i) {
      if (inv[i] == kNoDirection) best_ = std::min(best_, make_key(1.0f, i));
      if (inv[i] > 0.0f) open_.push_back(int(i));
    }
    all_ = open_;
  }

  int64_t run() {
    if (int64_t(all_.size()) <= kGramRows) {
      compare_all(all_);
      for (int i : all_) best_ = std::min(best_, key(i));
      return best_ == kNoKey ? -1 : index_of(best_);
    }
    compare_neighbours();
    finish(most_promising(kFinish));
    for (int64_t round = 1; !open_.empty(); ++round) {
      if (int64_t(open_.size()) <= kFinish) {
        finish(open_);
        break;
      }
      meet_witnesses();
      const bool power_of_two = (round & (round - 1)) == 0;
      if (power_of_two && !open_.empty()) finish(most_promising(kFinish / 2));
    }
    return index_of(best_);
  }

 private:
  static constexpr int64_t kGramRows = 128;  // up to here all pairs are one small product

  Key key(int i) const { return make_key(closest_[size_t(i)], i); }

  void raise(int i, float cosine) {
    if (cosine > closest_[size_t(i)]) closest_[size_t(i)] = cosine;
  }

  // All pairs of a short list.
  void compare_all(const std::vector<int>& rows) {
    const int64_t n = int64_t(rows.size());
    std::vector<float> cosines(size_t(n * n));
    gram(tokens_, rows, inv_, threads_, workspace_.candidates, cosines.data());
    fold_pairs(rows, cosines.data());
    count(n * (n - 1) / 2);
  }

  void fold_pairs(const std::vector<int>& rows, const float* cosines) {
    const int64_t n = int64_t(rows.size());
    for (int64_t a = 0; a < n; ++a)
      for (int64_t b = 0; b < n; ++b)
        if (a != b) raise(rows[size_t(a)], cosines[a * n + b]);
  }

  void count(int64_t dots) {
    stats_.dots += dots;
    stats_.seed_dots += dots;
  }

  void compare_neighbours() {
    std::vector<Panel> panels{size_t(threads_)};
    const int64_t n = int64_t(all_.size());
    parallel_for(threads_, (n + kNeighbours - 1) / kNeighbours, [&](int64_t block, int thread) {
      const int64_t begin = block * kNeighbours, end = std::min(begin + kNeighbours, n);
      const std::vector<int> rows(all_.begin() + begin, all_.begin() + end);
      float cosines[kNeighbours * kNeighbours];
      gram(tokens_, rows, inv_, 1, panels[size_t(thread)], cosines);
      fold_pairs(rows, cosines);
    });
    count(n * (kNeighbours - 1) / 2);
  }

  std::vector<int> most_promising(int64_t count) {
    std::vector<Key>& keys = workspace_.keys;
    keys.clear();
    for (int i : open_) keys.push_back(key(i));
    if (count < int64_t(keys.size())) {
      std::nth_element(keys.begin(), keys.begin() + count, keys.end());
      keys.resize(size_t(count));
    }
    std::vector<int> rows;
    for (Key k : keys) rows.push_back(int(index_of(k)));
    return rows;
  }

  // Compares the chosen open rows with every token they have not met. That makes their values exact,
  // and everybody has met them.
  void finish(const std::vector<int>& chosen) {
    std::vector<int> rest;
    for (int i : all_)
      if (!met_[size_t(i)]) rest.push_back(i);
    // Columns are the chosen rows, so that the long list streams; each thread keeps column maxima.
    const std::vector<int> columns = chosen;
    std::vector<std::vector<float>> largest(size_t(threads_),
                                            std::vector<float>(columns.size(), -1.0f));
    compare(rest, columns, [&](int thread, int row, int64_t column, float cosine) {
      raise(row, cosine);
      float& top = largest[size_t(thread)][size_t(column)];
      if (cosine > top) top = cosine;
    });
    for (size_t c = 0; c < columns.size(); ++c) {
      for (const auto& of_thread : largest) raise(columns[c], of_thread[c]);
      met_[size_t(columns[c])] = 1;
      best_ = std::min(best_, key(columns[c]));
    }
    drop();
  }

  // One round of witnesses: tokens nobody has met yet, far apart in the raster.
  void meet_witnesses() {
    const int64_t n = int64_t(all_.size());
    std::vector<int> witnesses;
    while (stride_ < n && int64_t(witnesses.size()) < kWitnesses) {
      const int i = all_[size_t(visit_order(stride_++, n))];
      if (!met_[size_t(i)]) witnesses.push_back(i);
    }
    compare(open_, witnesses, [&](int, int row, int64_t, float cosine) { raise(row, cosine); });
    for (int i : witnesses) met_[size_t(i)] = 1;
    if (stride_ == n)  // everybody has met everybody: the values of all open rows are exact
      for (int i : open_) best_ = std::min(best_, key(i));
    drop();
  }

  // The step-th of n positions in an order that spreads evenly: multiples of about 0.618 n, mod n.
  int64_t visit_order(int64_t step, int64_t n) {
    if (!spread_) {
      spread_ = std::max<int64_t>(1, int64_t(double(n) * 0.6180339887498949));
      while (gcd(spread_, n) != 1) ++spread_;
    }
    return int64_t((uint64_t(step) * uint64_t(spread_)) % uint64_t(n));
  }

  static int64_t gcd(int64_t a, int64_t b) { return b == 0 ? a : gcd(b, a % b); }

  void drop() {
    open_.erase(std::remove_if(open_.begin(), open_.end(), [&](int i) { return key(i) >= best_; }),
                open_.end());
  }

  // use(thread, row, column, cosine) for every row and column but a token with itself.
  template <class Use>
  void compare(const std::vector<int>& rows, const std::vector<int>& columns, const Use& use) {
    Panel& panel = workspace_.candidates;
    panel.reset(tokens_.dtype, tokens_.D, int64_t(columns.size()));
    for (size_t c = 0; c < columns.size(); ++c)
      panel.put(int64_t(c), tokens_.row(columns[c]));
    split_units(int64_t(rows.size()), workspace_.units);
    for_each_tile(tokens_, rows, workspace_.units, panel, int64_t(columns.size()), threads_,
                  [&](int thread, const int* ids, int tall, int64_t c0, int64_t c1,
                      const float* dots) {
                    for (int i = 0; i < tall; ++i) {
                      for (int64_t c = c0; c < c1; ++c) {
                        const int column = columns[size_t(c)];
                        if (column == ids[i]) continue;
                        const float scale = inv_[ids[i]] * inv_[column];
                        use(thread, ids[i], c, dots[i * kUnitColumns + (c - c0)] * scale);
                      }
                    }
                  });
    count(int64_t(rows.size()) * int64_t(columns.size()));
  }

  const Tokens& tokens_;
  const float* inv_;
  const int threads_;
  Workspace& workspace_;
  Stats& stats_;
  std::vector<float> closest_;  // largest cosine found so far: a lower bound of the row's value
  std::vector<char> met_;       // compared with every row that is still open
  std::vector<int> all_;        // tokens with a direction
  std::vector<int> open_;       // of them, those that may still win
  Key best_ = kNoKey;           // smallest finished key
  int64_t stride_ = 0;
  int64_t spread_ = 0;
};

}  // namespace

int64_t divprune_seed(const Tokens& tokens, const float* inv, int threads, Workspace& workspace,
                      Stats& stats) {
  return SeedSearch(tokens, inv, threads, workspace, stats).run();
}

}  // namespace zspa::cpu
