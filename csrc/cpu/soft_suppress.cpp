// SPDX-License-Identifier: Apache-2.0
// soft_suppress: tokens in the order of scores that fall where tokens like them were taken
// (ID-Selection, arXiv 2604.05601: subtract; AdaptPrune, arXiv 2503.08019: scale, positions).
// Algorithm   : blocked greedy with lazy refresh. A score only falls, so a stale one is an upper bound.
//               A score is an interval, for a float32 cosine leaves it open. Per pass:
//               1. bring the tokens of the highest upper ends up to date with the picks they missed;
//               2. candidates = the highest of those; bound = the highest upper end of all others;
//               3. pick inside the candidates, with their own Gram matrix, while the lower end of a
//                  pick is not below what could come first instead. Where two candidates could both
//                  come first, their scores are computed anew, in double.
// Inputs      : tokens [N, D], inverse norms [N], scores [N], positions [N, 2]
// Outputs     : picks [k] int64
// Work        : 0 to 0.7 of the N k dots of the plain greedy; no N x N matrix.
// Mapping     : refresh and Gram are products of 16-row units with packed columns, over all threads;
//               scores in double are shared among threads by token.
// Numerics    : float32 cosines and bounds of their error. What decides is a score in double, rounded
//               to 2^-40 of the largest one (of itself, by scaling), in the order of the picks; picks
//               are thus the same on every instruction set.
// Deterministic: yes, for any number of threads.
#include "soft_suppress.h"

#include <algorithm>
#include <cmath>

#include "diversity_config.h"
#include "exact.h"
#include "lazy.h"
#include "suppress_config.h"

namespace zspa::cpu {

// A token by the highest score it may have; the lowest index first.
struct Rank {
  double minus;
  int64_t index;
  bool operator<(const Rank& other) const {
    return minus != other.minus ? minus < other.minus : index < other.index;
  }
};
template <>
inline constexpr Rank kLast<Rank> = {std::numeric_limits<double>::infinity(), 0};
inline int64_t index_of(Rank rank) { return rank.index; }

namespace {

constexpr double kNothing = -1e300;  // the logarithm of 0
constexpr double kFar = -std::numeric_limits<double>::infinity();

// A score in steps of the grid, or its logarithm.
struct Interval {
  double low, high;

  bool exact() const { return low == high; }

  // Lower by at least `least` and at most `most`. Whole steps, and one more than the rounding of both
  // this and the score in double can take.
  void lower(double most, double least) {
    if (most == 0.0) return;
    const double step = 1.0 + std::abs(high) * 0x1p-48;
    low = std::max(std::floor(low - most - step), kNothing);
    high = std::max(std::min(high, std::ceil(high - least + step)), kNothing);
  }
};

class Greedy {
 public:
  Greedy(const Tokens& tokens, const SoftSuppressRequest& request, int threads,
         Workspace& workspace, Stats& stats, int64_t* out)
      : tokens_(tokens),
        request_(request),
        threads_(threads),
        workspace_(workspace),
        stats_(stats),
        out_(out),
        narrow_(-0.5 / (request.spread * request.spread)),
        slack_(cosine_slack(tokens.D)),
        exact_(tokens),
        start_(size_t(tokens.N), 0.0),
        scores_(size_t(tokens.N)),
        lost_(size_t(tokens.N), 0.0),
        seen_(size_t(tokens.N), 0),
        settled_(size_t(tokens.N), 0),
        open_(size_t(tokens.N), 1) {}

  void run() {
    start();
    pick_in_blocks(block_sizes(tokens_.N), request_.k, taken_,
                   [&](int64_t rows, int64_t candidates) { return pass(rows, candidates); });
    std::fill(out_ + taken_, out_ + request_.k, int64_t(-1));
  }

 private:
  // One pass. Returns the number of candidates, -1 when no token is left.
  int64_t pass(int64_t refresh_rows, int64_t candidates) {
    const int64_t offered = lazy_pass(
        open_, ranks_, workspace_.rows, refresh_rows, candidates,
        [&](int64_t i) { return Rank{-scores_[size_t(i)].high, i}; },
        [&](std::vector<int>& rows) { refresh(rows); }, [&](Rank bound) { pick_among(bound); });
    if (offered >= 0) ++stats_.passes;
    return offered;
  }

  // Who may be picked, and the scores on their grid.
  void start() {
    double largest = 0.0;
    for (int64_t i = 0; i < tokens_.N; ++i) {
      if (!usable(i)) open_[i] = 0;
      if (open_[i]) largest = std::max(largest, std::abs(request_.scores[i]));
    }
    if (largest == 0.0) largest = 1.0;
    for (int64_t i = 0; i < tokens_.N; ++i) {
      if (!open_[i]) continue;
      const double score = request_.scores[i];
      const double part = request_.subtract ? score / largest : std::log(score);
      start_[i] = std::max(std::nearbyint(part * kGrid), kNothing);
      scores_[i] = {start_[i], start_[i]};
    }
    workspace_.picks.reset(tokens_.dtype, tokens_.D, request_.k);
  }

  bool usable(int64_t i) const {
    const double score = request_.scores[i];
    if (request_.inv[i] == kMaskedOut || !std::isfinite(score)) return false;
    if (!request_.subtract && score < 0.0) return false;
    const double* place = request_.positions + 2 * i;
    return !request_.positions || (std::isfinite(place[0]) && std::isfinite(place[1]));
  }

  bool directed(int64_t i) const { return request_.inv[i] != kNoDirection; }
  int64_t columns() const { return int64_t(columns_.size()); }

  // The logarithm of the weight that distance leaves to two tokens.
  double apart(int64_t i, int64_t j) const {
    if (!request_.positions) return 0.0;
    const double* a = request_.positions + 2 * i;
    const double* b = request_.positions + 2 * j;
    const double square = (a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1]);
    return square > request_.reach * request_.reach ? kFar : narrow_ * square;
  }

  // Brings the listed tokens up to date.
  void refresh(std::vector<int>& rows) {
    rows.erase(std::remove_if(rows.begin(), rows.end(),
                              [&](int i) { return seen_[i] == columns() || !directed(i); }),
               rows.end());
    units_by_seen(rows, seen_, columns(), workspace_.units);
    for (const Unit& unit : workspace_.units)
      stats_.dots += int64_t(unit.end - unit.begin) * (columns() - unit.first);
    for_each_tile(tokens_, rows, workspace_.units, workspace_.picks, columns(), threads_,
                  [&](int, const int* ids, int count, int64_t c0, int64_t c1, const float* dots) {
                    for (int i = 0; i < count; ++i) {
                      const int64_t from = std::max(c0, seen_[ids[i]]);
                      if (from < c1) lower(ids[i], dots + i * kUnitColumns + from - c0, from, c1);
                    }
                  });
    for (int i : rows) seen_[i] = columns();
  }

  // What the columns [first, last), of which the dots are given, take from the score of token i.
  void lower(int64_t i, const float* dots, int64_t first, int64_t last) {
    float cosines[kUnitColumns] = {};
    double far[kUnitColumns] = {}, most[kUnitColumns], least[kUnitColumns];
    const int64_t n = last - first;
    for (int64_t c = 0; c < n; ++c) {
      const int column = columns_[size_t(first + c)];
      cosines[c] = dots[c] * (request_.inv[i] * request_.inv[column]);
      far[c] = apart(i, column);
    }
    kernels().weights(cosines, far, round_up(n, 8), request_.sharpness, slack_, most, least);
    lower(i, most, least, strength_.data() + first, n);
  }

  // By the bounds of `n` weights.
  void lower(int64_t i, const double* most, const double* least, const Interval* strength,
             int64_t n) {
    if (request_.subtract) {
      double highest = 0.0, lowest = 0.0;
      for (int64_t c = 0; c < n; ++c) {
        highest += most[c] * strength[c].high;
        lowest += least[c] * strength[c].low;
      }
      scores_[i].lower(highest, lowest);
      return;
    }
    // The logarithm of 1 - w; of small w it is about -w, which 1 - w would lose.
    double more = 0.0, less = 0.0, smallest = 1.0, largest = 1.0;
    for (int64_t c = 0; c < n; ++c) {
      if (most[c] < 0x1p-20) {
        more += most[c] * (1.0 + 0x1p-19);
        less += least[c];
      } else {
        smallest *= std::max(1.0 - most[c], 0.0);
        largest *= 1.0 - least[c];
      }
    }
    scores_[i].lower((more - std::log(smallest)) * kGrid,
                     (less - std::log(std::max(largest, 1e-300))) * kGrid);
  }

  // Picks among the tokens of ranks_ while one of them must come before the bound.
  void pick_among(Rank bound) {
    block_.clear();
    for (const Rank& rank : ranks_) block_.push_back(int(rank.index));
    std::sort(block_.begin(), block_.end());
    const int64_t n = int64_t(block_.size());
    bool compared = false;
    while (taken_ < request_.k) {
      const int best = choose();
      if (best < 0) break;
      const int token = block_[size_t(best)];
      const Interval score = scores_[size_t(token)];
      if (!(Rank{-score.low, token} < bound)) break;
      out_[taken_++] = token;
      open_[token] = 0;
      if (taken_ == request_.k || !directed(token)) continue;
      if (request_.subtract && score.high <= 0.0) continue;
      workspace_.picks.put(columns(), tokens_.row(token));
      columns_.push_back(token);
      strength_.push_back({std::max(score.low, 0.0), std::max(score.high, 0.0)});
      if (n == 1) break;
      if (!compared) {
        compared = true;
        workspace_.gram.resize(size_t(n * n));
        gram(tokens_, block_, request_.inv, threads_, workspace_.candidates,
             workspace_.gram.data());
        stats_.dots += n * (n - 1) / 2;
      }
      suppress(best);
    }
  }

  // The place in block_ of the token that comes first, -1 if none is left. What could come first as
  // well is computed in double.
  int choose() {
    while (true) {
      double top = -std::numeric_limits<double>::infinity(), highest = top;
      for (int i : block_)
        if (open_[i]) top = std::max(top, scores_[size_t(i)].low);
      first_.clear();
      bool exact = true;
      for (int i : block_) {
        if (!open_[i] || scores_[size_t(i)].high < top) continue;
        first_.push_back(i);
        exact = exact && scores_[size_t(i)].exact();
        highest = std::max(highest, scores_[size_t(i)].high);
      }
      if (first_.empty()) return -1;
      if (first_.size() == 1 || exact)
        return int(std::lower_bound(block_.begin(), block_.end(), first_[0]) - block_.begin());
      if (request_.subtract && highest <= 0.0) {  // nothing is suppressed any more
        first_.clear();
        for (int i : block_)
          if (open_[i]) first_.push_back(i);
      }
      settle();
    }
  }

  // The newest column, at `place` in block_, lowers the scores of the block.
  void suppress(int64_t place) {
    const int64_t n = int64_t(block_.size()), padded = round_up(n, 8);
    const float* cosines = workspace_.gram.data() + place * n;
    row_.assign(cosines, cosines + n);
    row_.resize(size_t(padded), 0.0f);
    row_[size_t(place)] = 0.0f;  // was not computed
    bounds_.assign(size_t(3 * padded), 0.0);
    double *far = bounds_.data(), *most = far + padded, *least = most + padded;
    for (int64_t x = 0; x < n; ++x) far[x] = apart(block_[size_t(x)], columns_.back());
    kernels().weights(row_.data(), far, padded, request_.sharpness, slack_, most, least);
    for (int64_t x = 0; x < n; ++x) {
      const int i = block_[size_t(x)];
      if (!open_[i] || !directed(i)) continue;
      lower(i, most + x, least + x, &strength_.back(), 1);
      seen_[i] = columns();
    }
  }

  // Scores in double of the tokens first_.
  void settle() {
    for (; known_ < columns(); ++known_) exact_.know(columns_[size_t(known_)]);
    // The scores that columns were taken with, each of which the columns before it have lowered.
    while (request_.subtract && int64_t(exact_strength_.size()) < columns()) {
      const int64_t begin = int64_t(exact_strength_.size());
      const int64_t end = std::min(columns(), begin + kSettled);
      weigh(columns_.data() + begin, end - begin, [&](int64_t x) { return begin + x; });
      for (int64_t c = begin; c < end; ++c) {
        add_lost(columns_[size_t(c)], c - begin, c);
        exact_strength_.push_back(std::max(exact_score(columns_[size_t(c)]), 0.0));
      }
    }
    for (int i : first_) exact_.know(i);
    for (int64_t begin = 0; begin < int64_t(first_.size()); begin += kSettled) {
      const int64_t count = std::min(kSettled, int64_t(first_.size()) - begin);
      weigh(first_.data() + begin, count, [&](int64_t) { return columns(); });
      for (int64_t x = 0; x < count; ++x) {
        const int i = first_[size_t(begin + x)];
        add_lost(i, x, columns());
        scores_[size_t(i)] = {exact_score(i), exact_score(i)};
      }
    }
  }

  double exact_score(int64_t i) const {
    return std::max(std::nearbyint(start_[size_t(i)] - lost_[size_t(i)]), kNothing);
  }

  // weights_[x][c]: how the column c suppresses the token x of the list, for the columns up to
  // until(x) that have not lowered its score in double yet.
  template <class Until>
  void weigh(const int* list, int64_t count, const Until& until) {
    weights_.resize(size_t(count * columns()));
    int64_t pairs = 0;
    for (int64_t x = 0; x < count; ++x) pairs += until(x) - settled_[size_t(list[x])];
    parallel_for(threads_for(pairs * tokens_.D * 4, threads_), count, [&](int64_t x, int) {
      const int i = list[x];
      for (int64_t c = settled_[size_t(i)]; c < until(x) && directed(i); ++c) {
        const int column = columns_[size_t(c)];
        const double far = 1.0 - std::min(exact_.cosine(i, column), 1.0);
        weights_[size_t(x * columns() + c)] =
            std::exp(apart(i, column) - request_.sharpness * (far * far));
      }
    });
  }

  // The columns up to `until`, weighed in row x, take from the score of token i in double.
  void add_lost(int64_t i, int64_t x, int64_t until) {
    for (int64_t c = settled_[size_t(i)]; c < until && directed(i); ++c) {
      const double weight = weights_[size_t(x * columns() + c)];
      lost_[size_t(i)] +=
          request_.subtract ? weight * exact_strength_[size_t(c)] : -std::log1p(-weight) * kGrid;
    }
    settled_[size_t(i)] = until;
  }

  const Tokens& tokens_;
  const SoftSuppressRequest& request_;
  const int threads_;
  Workspace& workspace_;
  Stats& stats_;
  int64_t* out_;
  int64_t taken_ = 0;
  const double narrow_;  // times a squared distance: the logarithm of a weight
  const double slack_;
  ExactCosines exact_;
  int64_t known_ = 0;             // columns known to exact_
  std::vector<double> start_;     // scores before anything was taken
  std::vector<Interval> scores_;  // lowered by the columns seen so far
  std::vector<double> lost_;      // what `settled_` columns take, in double
  std::vector<int64_t> seen_, settled_;
  std::vector<char> open_;              // may still be picked
  std::vector<int> columns_;            // tokens of the columns of workspace_.picks
  std::vector<Interval> strength_;      // scores above 0 that columns were taken with
  std::vector<double> exact_strength_;  // the same in double, of the first columns
  std::vector<Rank> ranks_;
  std::vector<int> block_, first_;  // candidates, ascending; those that could come first
  std::vector<float> row_;
  std::vector<double> bounds_, weights_;
};

}  // namespace

void soft_suppress(const Tokens& tokens, const SoftSuppressRequest& request, int threads,
                   Workspace& workspace, Stats& stats, int64_t* out) {
  Greedy(tokens, request, threads, workspace, stats, out).run();
}

}  // namespace zspa::cpu
