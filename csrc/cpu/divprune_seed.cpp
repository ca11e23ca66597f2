// SPDX-License-Identifier: Apache-2.0
// DivPrune's seed: argmin_j max_{i != j} cos(i, j), exactly, without the N x N matrix.
// Algorithm   : branch and bound. The largest cosine of row j to any subset is a lower bound of its
//               value. A row is open while (bound, index) is below the best finished row.
//               1. blocks of neighbours in raster order: most tokens resemble the next one;
//               2. a few rows spread over the image are finished (compared with everything). They
//                  are witnesses for all others, give a first value to beat, and tell how far away
//                  in the raster a typical token has its nearest one: if several agree (the row
//                  above, the same place of the next frame), rows are compared with the tokens
//                  around that offset. Outliers, which the most promising rows often are, would
//                  know nothing of that;
//               3. the most promising rows are finished: one of them is likely the answer;
//               4. open rows are compared with rounds of witnesses spread over the image, and now
//                  and then the most promising are finished; what cannot win is dropped.
// Work        : N^2/2 dots at worst on random tokens, a few percent of that on images.
// Numerics    : the cosines of diversity.cpp, bit for bit.
// Deterministic: yes, for any number of threads.
#include <algorithm>
#include <cstdlib>
#include <utility>

#include "../common/keys.h"
#include "diversity.h"
#include "diversity_config.h"

namespace zspa::cpu {
namespace {

// The largest cosine of a row, and to whom; of equals the lowest index, whatever the order of calls.
struct Nearest {
  float cosine = -1.0f;
  int row = -1;

  void meet(float other_cosine, int other) {
    if (other < 0 || other_cosine < cosine) return;
    if (other_cosine == cosine && row >= 0 && row < other) return;
    cosine = other_cosine;
    row = other;
  }
  void meet(const Nearest& other) { meet(other.cosine, other.row); }
};

class SeedSearch {
 public:
  SeedSearch(const Tokens& tokens, const float* inv, int threads, Workspace& workspace,
             Stats& stats)
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
    if (int64_t(all_.size()) <= kFewTokens) {
      compare_all();
      for (int i : all_) best_ = std::min(best_, key(i));
      return best_ == kNoKey ? -1 : index_of(best_);
    }
    compare_at(0);
    const SpreadRows spread = spread_rows(tokens_.N);
    finish(next_witnesses(spread.count));
    for (int64_t offset : common_offsets(spread.votes)) {
      if (int64_t(open_.size()) <= kEnoughOpen) break;
      compare_at(offset);
      drop();
    }
    if (!open_.empty()) finish(most_promising(kFinish));
    for (int64_t round = 1; !open_.empty(); ++round) {
      if (int64_t(open_.size()) <= kFewOpen) {
        finish(open_);
        break;
      }
      meet_witnesses();
      const bool power_of_two = (round & (round - 1)) == 0;
      if (power_of_two && !open_.empty())
        finish(most_promising(finished_after(round, int64_t(open_.size()))));
    }
    return index_of(best_);
  }

 private:
  Key key(int i) const { return make_key(closest_[size_t(i)], i); }

  void raise(int i, float cosine) {
    if (cosine > closest_[size_t(i)]) closest_[size_t(i)] = cosine;
  }

  void compare_all() {
    const int64_t n = int64_t(all_.size());
    workspace_.rows = all_;
    workspace_.gram.resize(size_t(n * n));
    gram(tokens_, all_, inv_, threads_, workspace_.candidates, workspace_.gram.data());
    fold_pairs(all_, workspace_.gram.data());
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

  // Compares the chosen rows with every token they have not met. That makes their values exact,
  // and everybody has met them.
  void finish(const std::vector<int>& chosen) {
    std::vector<int> rest;
    for (int i : all_)
      if (!met_[size_t(i)]) rest.push_back(i);
    // Columns are the chosen rows, so that the long list streams.
    const std::vector<int> columns = chosen;
    const std::vector<Nearest> nearest = compare(rest, columns);
    for (size_t c = 0; c < columns.size(); ++c) {
      if (nearest[c].row >= 0)
        offsets_.push_back(std::abs(position(nearest[c].row) - position(columns[c])));
      met_[size_t(columns[c])] = 1;
      best_ = std::min(best_, key(columns[c]));
    }
    drop();
  }

  // Distances in the raster at which several finished rows have their nearest token.
  std::vector<int64_t> common_offsets(int64_t enough) {
    std::vector<std::pair<int64_t, int64_t>> votes;  // (-count, offset)
    std::sort(offsets_.begin(), offsets_.end());
    for (size_t i = 0; i < offsets_.size();) {
      size_t end = i;
      while (end < offsets_.size() && offsets_[end] == offsets_[i]) ++end;
      if (int64_t(end - i) >= enough && offsets_[i] > kNeighbours / 2)
        votes.emplace_back(-int64_t(end - i), offsets_[i]);
      i = end;
    }
    std::sort(votes.begin(), votes.end());
    std::vector<int64_t> offsets;
    for (size_t i = 0; i < votes.size() && int64_t(i) < kOffsets; ++i)
      offsets.push_back(votes[i].second);
    return offsets;
  }

  // Blocks of consecutive tokens against the block `offset` further on (0: against themselves), where
  // either has an open row.
  void compare_at(int64_t offset) {
    const int64_t n = int64_t(all_.size()), rows = n - offset;
    std::vector<char> is_open(size_t(tokens_.N), 0);
    for (int i : open_) is_open[size_t(i)] = 1;
    auto any_open = [&](int64_t begin, int64_t count) {
      const auto first = all_.begin() + begin;
      return std::any_of(first, first + count, [&](int i) { return is_open[size_t(i)] != 0; });
    };
    std::vector<int64_t> blocks;  // where they begin
    for (int64_t begin = 0; begin < rows; begin += kNeighbours) {
      const int64_t tall = std::min(kNeighbours, rows - begin);
      if (!any_open(begin, tall) && !any_open(begin + offset, tall)) continue;
      blocks.push_back(begin);
      count(offset == 0 ? tall * (tall - 1) / 2 : tall * tall);
    }
    const int64_t total = int64_t(blocks.size());
    const int threads = threads_for(total * kNeighbours * kNeighbours * tokens_.D, threads_);
    const int64_t tasks = (total + kBlocksPerTask - 1) / kBlocksPerTask;
    std::vector<Panel> panels{size_t(threads)};
    // As rows the blocks are disjoint, and so they are as columns: tasks share nothing.
    std::vector<float> behind(size_t(n), -1.0f), ahead(size_t(n), -1.0f);
    parallel_for(threads, tasks, [&](int64_t task, int thread) {
      const int64_t end = std::min(total, (task + 1) * kBlocksPerTask);
      for (int64_t b = task * kBlocksPerTask; b < end; ++b) {
        const int64_t next = b + 1 < end ? blocks[size_t(b + 1)] : rows;
        multiply(blocks[size_t(b)], next, offset, panels[size_t(thread)], behind, ahead);
      }
    });
    for (int64_t a = 0; a < n; ++a)
      raise(all_[size_t(a)], std::max(behind[size_t(a)], ahead[size_t(a)]));
  }

  // The block at `begin` against the one `offset` further on; `next` is the block that follows.
  void multiply(int64_t begin, int64_t next, int64_t offset, Panel& panel,
                std::vector<float>& behind, std::vector<float>& ahead) const {
    const int64_t rows = int64_t(all_.size()) - offset;
    const int count = int(std::min(kNeighbours, rows - begin));
    const int count_next = int(std::min(kNeighbours, rows - next));
    const int* ids = all_.data() + begin;
    const int* others = ids + offset;
    const void* pointers[kNeighbours];
    const void* fetch[2 * kNeighbours];  // of the next block: columns, rows
    for (int i = 0; i < count; ++i) pointers[i] = tokens_.row(ids[i]);
    for (int i = 0; i < count_next; ++i) {
      fetch[i] = tokens_.row(all_[size_t(next + offset + i)]);
      fetch[count_next + i] = tokens_.row(all_[size_t(next + i)]);
    }
    float dots[kNeighbours * kNeighbours];
    kernels().dots(tokens_.dtype, pointers, count, columns_of(others, count, panel), 0, count, dots,
                   kNeighbours, fetch, offset == 0 ? count_next : 2 * count_next);
    float* largest = ahead.data() + begin + offset;  // [count]
    for (int i = 0; i < count; ++i) {
      float closest = -1.0f;
      for (int c = 0; c < count; ++c) {
        const float cosine = dots[i * kNeighbours + c] * (inv_[ids[i]] * inv_[others[c]]);
        if (ids[i] == others[c]) continue;
        closest = std::max(closest, cosine);
        largest[c] = std::max(largest[c], cosine);
      }
      behind[size_t(begin + i)] = closest;
    }
  }

  // A copy in `panel` where the rows themselves cannot be columns.
  PanelView columns_of(const int* ids, int count, Panel& panel) const {
    const PanelView rows = rows_as_columns(tokens_, ids, count);
    if (rows.data) return rows;
    panel.reset(tokens_.dtype, tokens_.D, count);
    for (int c = 0; c < count; ++c) panel.put(c, tokens_.row(ids[c]));
    return panel.view();
  }

  int64_t position(int i) const {
    return std::lower_bound(all_.begin(), all_.end(), i) - all_.begin();
  }

  // The next tokens nobody has met yet, far apart in the raster.
  std::vector<int> next_witnesses(int64_t wanted) {
    const int64_t n = int64_t(all_.size());
    std::vector<int> witnesses;
    while (stride_ < n && int64_t(witnesses.size()) < wanted) {
      const int i = all_[size_t(visit_order(stride_++, n))];
      if (!met_[size_t(i)]) witnesses.push_back(i);
    }
    return witnesses;
  }

  void meet_witnesses() {
    const std::vector<int> witnesses = next_witnesses(kWitnesses);
    compare(open_, witnesses);
    for (int i : witnesses) met_[size_t(i)] = 1;
    // At the end everybody has met everybody: the values of all open rows are exact.
    if (stride_ == int64_t(all_.size()))
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

  // Every row with every column but a token with itself: raises both, and returns for each column
  // the row nearest to it.
  std::vector<Nearest> compare(const std::vector<int>& rows, const std::vector<int>& columns) {
    const int64_t width = int64_t(columns.size());
    Panel& panel = workspace_.candidates;
    panel.reset(tokens_.dtype, tokens_.D, width);
    for (int64_t c = 0; c < width; ++c) panel.put(c, tokens_.row(columns[size_t(c)]));
    split_units(int64_t(rows.size()), workspace_.units);
    std::vector<Nearest> nearest(size_t(threads_ * width));  // [threads][columns]
    for_each_tile(
        tokens_, rows, workspace_.units, panel, width, threads_,
        [&](int thread, const int* ids, int tall, int64_t c0, int64_t c1, const float* dots) {
          for (int i = 0; i < tall; ++i) {
            float largest = -1.0f;
            for (int64_t c = c0; c < c1; ++c) {
              const int column = columns[size_t(c)];
              if (column == ids[i]) continue;
              const float cosine =
                  dots[i * kUnitColumns + (c - c0)] * (inv_[ids[i]] * inv_[column]);
              nearest[size_t(thread * width + c)].meet(cosine, ids[i]);
              largest = std::max(largest, cosine);
            }
            raise(ids[i], largest);
          }
        });
    count(int64_t(rows.size()) * width);
    for (int64_t c = 0; c < width; ++c) {
      for (int thread = 1; thread < threads_; ++thread)
        nearest[size_t(c)].meet(nearest[size_t(thread * width + c)]);
      raise(columns[size_t(c)], nearest[size_t(c)].cosine);
    }
    nearest.resize(size_t(width));
    return nearest;
  }

  const Tokens& tokens_;
  const float* inv_;
  const int threads_;
  Workspace& workspace_;
  Stats& stats_;
  std::vector<float> closest_;    // largest cosine found so far: a lower bound of the row's value
  std::vector<char> met_;         // compared with every row that is still open
  std::vector<int> all_;          // tokens with a direction
  std::vector<int> open_;         // of them, those that may still win
  std::vector<int64_t> offsets_;  // raster distance of finished rows to their nearest token
  Key best_ = kNoKey;             // smallest finished key
  int64_t stride_ = 0;
  int64_t spread_ = 0;
};

}  // namespace

int64_t divprune_seed(const Tokens& tokens, const float* inv, int threads, Workspace& workspace,
                      Stats& stats) {
  return SeedSearch(tokens, inv, threads, workspace, stats).run();
}

}  // namespace zspa::cpu
