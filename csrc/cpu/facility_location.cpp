// SPDX-License-Identifier: Apache-2.0
// facility_location: greedy selection of the tokens that cover all tokens, and given rows, best.
//   gain_j = w_j (sum_m max(0, b_mj - best_m) + scale / V sum_i max(0, c_ij - best_i))
// Algorithm   : lazy greedy (Minoux 1978). A gain only falls, so a stale one is an upper bound; a
//               heap holds (gain, index), and its top is evaluated again until a fresh one is there.
//               No blocks: an evaluation reads one column, and candidates need no Gram matrix.
// Inputs      : tokens [N, D], inverse norms [N], benefits [M, N], weights [N]
// Outputs     : picks [k] int64
// Work        : N^2 D / 2 multiply-adds, since already the first gains add up all cosines; then 2 to
//               8 % of N^2 k for the gains. Memory: the N x N cosines. Computing a column again would
//               cost D multiply-adds an element where reading it costs one.
// Mapping     : products of 16-row units with packed columns over all threads; the greedy on one.
// Numerics    : float32. Equal rows have equal columns, and a gain is monotone in what is covered.
// Deterministic: yes, for any number of threads.
#include "facility_location.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <string>

namespace zspa::cpu {
namespace {

constexpr int64_t kPad = 16;  // floats: the widest vector
constexpr float kLargest = std::numeric_limits<float>::max();

// Columns of the matrix computed at once: packed, 2 MB of bfloat16 at D = 4096. What a block computes
// above the diagonal is wasted, 4 % at N = 2880 but 40 % at 576. Narrow blocks read the tokens more
// often, which costs more from memory than from a cache.
inline int64_t columns_at_once(int64_t V) { return V <= 1024 ? 48 : 240; }

// Becomes a MemoryError in Python, with this text.
class MatrixTooLarge : public std::bad_alloc {
 public:
  explicit MatrixTooLarge(int64_t V)
      : text_(
            "facility_location: visual must have so few tokens that the matrix of their cosines, "
            "4 N^2 bytes, fits into memory, got " +
            std::to_string(V) + " (" + std::to_string((V * V) >> 28) + " GiB)") {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

class Greedy {
 public:
  Greedy(const Tokens& tokens, const FacilityRequest& request, int threads, Workspace& workspace,
         Stats& stats, int64_t* out)
      : tokens_(tokens),
        request_(request),
        threads_(threads),
        workspace_(workspace),
        stats_(stats),
        out_(out) {}

  void run() {
    int64_t taken = 0;
    if (request_.k > 0) {
      list_tokens();
      compare_tokens();
      read_benefits();
      evaluate_all();
    }
    std::vector<Key>& heap = workspace_.keys;
    while (taken < request_.k && !heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      const int64_t c = index_of(heap.back());
      if (seen_[size_t(c)] == version_) {
        heap.pop_back();
        out_[taken++] = columns_[size_t(c)];
        cover(c);
      } else {
        seen_[size_t(c)] = version_;
        heap.back() = key(c, index_of(heap.front()));
        std::push_heap(heap.begin(), heap.end(), std::greater<>());
      }
    }
    std::fill(out_ + taken, out_ + request_.k, int64_t(-1));
  }

 private:
  // Who may be picked (columns_), and who covers and is covered (workspace_.rows).
  void list_tokens() {
    std::vector<int>& rows = workspace_.rows;
    rows.clear();
    for (int64_t i = 0; i < tokens_.N; ++i) {
      if (request_.inv[i] == kMaskedOut) continue;
      if (request_.weights && !(request_.weights[i] >= 0.0f && request_.weights[i] < kInf))
        continue;
      const bool directed = request_.inv[i] != kNoDirection;
      columns_.push_back(int(i));
      place_.push_back(directed ? int64_t(rows.size()) : -1);
      if (directed) rows.push_back(int(i));
    }
    const int64_t V = int64_t(rows.size());
    stride_ = round_up(V, kPad);
    const float count = float(std::max<int64_t>(1, V));
    // Alone, the coverage is scaled by a power of two: that changes no tie, and no product with a
    // weight overflows.
    share_ = request_.M ? request_.scale / count : std::exp2(-std::ceil(std::log2(count)));
  }

  float similarity(float cosine) const {
    if (request_.temperature == 0.0f) return std::max(cosine, 0.0f);
    return std::exp((cosine - 1.0f) / request_.temperature);
  }

  // matrix_[j * stride_ + i]: how well token j covers token i, but for factors_[i].
  void compare_tokens() {
    const std::vector<int> rows = workspace_.rows;
    const int64_t V = int64_t(rows.size());
    matrix_.reset(new (std::nothrow) float[size_t(V * stride_)]);
    if (!matrix_) throw MatrixTooLarge(V);
    float* matrix = matrix_.get();
    std::vector<int>& below = workspace_.rows;
    const int64_t block = columns_at_once(V);
    for (int64_t first = 0; first < V; first += block) {
      const int64_t width = std::min(block, V - first);
      workspace_.candidates.reset(tokens_.dtype, tokens_.D, width);
      for (int64_t c = 0; c < width; ++c)
        workspace_.candidates.put(c, tokens_.row(rows[size_t(first + c)]));
      below.assign(rows.begin() + first, rows.end());
      split_units(V - first, workspace_.units);
      stats_.dots += (V - first) * width;
      for_each_tile(tokens_, below, workspace_.units, workspace_.candidates, width, threads_,
                    [&](int, const int* ids, int count, int64_t c0, int64_t c1, const float* dots) {
                      const int64_t top = first + (ids - below.data());
                      for (int64_t i = top; i < top + count; ++i) {
                        const float* row = dots + (i - top) * kUnitColumns - c0;
                        for (int64_t c = c0; c < std::min(c1, i - first + 1); ++c) {
                          const int64_t j = first + c;
                          const float scale =
                              request_.inv[rows[size_t(i)]] * request_.inv[rows[size_t(j)]];
                          const float value = similarity(row[c] * scale);
                          matrix[i * stride_ + j] = matrix[j * stride_ + i] = value;
                        }
                      }
                    });
    }
    for (int64_t j = 0; j < V; ++j)
      std::fill(matrix + j * stride_ + V, matrix + (j + 1) * stride_, 0.0f);
    best_.assign(size_t(stride_), 0.0f);
    factors_.assign(size_t(stride_), 1.0f);
    if (request_.temperature == 0.0f) return;
    std::vector<float> sums(static_cast<size_t>(stride_), 1.0f);
    for (int64_t i = 0; i < V; ++i) {  // the matrix is symmetric: a column is a row
      const float* row = matrix + i * stride_;
      sums[size_t(i)] = 1.0f / kernels().covered(row, factors_.data(), best_.data(), stride_, row);
    }
    factors_ = sums;
  }

  // Columns of the benefits: benefits_[c * benefit_size_ + m].
  void read_benefits() {
    benefit_size_ = round_up(request_.M, kPad);
    benefits_.assign(columns_.size() * size_t(benefit_size_), 0.0f);
    for (int64_t m = 0; m < request_.M; ++m) {
      const float* row = request_.benefits + m * request_.benefit_stride;
      for (size_t c = 0; c < columns_.size(); ++c) {
        const float x = row[columns_[c]];
        if (x > 0.0f && x < kInf) benefits_[c * size_t(benefit_size_) + size_t(m)] = x;
      }
    }
    best_benefit_.assign(size_t(benefit_size_), 0.0f);
    ones_.assign(size_t(benefit_size_), 1.0f);
  }

  // [stride_]; only of a token with a direction.
  const float* column(int64_t c) const { return matrix_.get() + place_[size_t(c)] * stride_; }

  // The gain of column c; column `next` is likely to be asked for after it.
  Key key(int64_t c, int64_t next) const {
    float gain = 0.0f;
    if (place_[size_t(c)] >= 0)
      gain = share_ * kernels().covered(column(c), factors_.data(), best_.data(), stride_,
                                        place_[size_t(next)] < 0 ? column(c) : column(next));
    if (request_.M) {
      const float* benefit = benefits_.data() + c * benefit_size_;
      gain +=
          kernels().covered(benefit, ones_.data(), best_benefit_.data(), benefit_size_, benefit);
    }
    // Benefits may add up to infinity, which times 0 is no number.
    if (request_.weights) gain = std::min(gain, kLargest) * request_.weights[columns_[size_t(c)]];
    return make_key(-gain, c);
  }

  void evaluate_all() {
    std::vector<Key>& heap = workspace_.keys;
    heap.resize(columns_.size());
    seen_.assign(columns_.size(), 0);
    constexpr int64_t kTask = 32;
    const int64_t count = int64_t(columns_.size());
    const int threads = threads_for(count * stride_, threads_);
    parallel_for(threads, (count + kTask - 1) / kTask, [&](int64_t task, int) {
      for (int64_t c = task * kTask; c < std::min(count, (task + 1) * kTask); ++c)
        heap[size_t(c)] = key(c, std::min(c + 1, count - 1));
    });
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
  }

  // Raises what is covered to what column c covers; gains are stale if anything rose.
  void cover(int64_t c) {
    bool rose = false;
    if (place_[size_t(c)] >= 0) rose = raise(column(c), factors_, best_);
    if (raise(benefits_.data() + c * benefit_size_, ones_, best_benefit_)) rose = true;
    version_ += rose;
  }

  static bool raise(const float* column, const std::vector<float>& factors,
                    std::vector<float>& best) {
    bool rose = false;
    for (size_t i = 0; i < best.size(); ++i) {
      const float value = column[i] * factors[i];
      rose = rose || value > best[i];
      best[i] = value > best[i] ? value : best[i];
    }
    return rose;
  }

  const Tokens& tokens_;
  const FacilityRequest& request_;
  const int threads_;
  Workspace& workspace_;
  Stats& stats_;
  int64_t* out_;
  std::vector<int> columns_;         // tokens that may be picked
  std::vector<int64_t> place_;       // of a column in the matrix; -1: no direction
  std::unique_ptr<float[]> matrix_;  // [V, stride_], symmetric
  int64_t stride_ = 0;
  float share_ = 1.0f;
  std::vector<float> factors_;   // [stride_]
  std::vector<float> best_;      // [stride_]: how well a token is covered
  std::vector<float> benefits_;  // [columns, benefit_size_]
  int64_t benefit_size_ = 0;
  std::vector<float> best_benefit_, ones_;  // [benefit_size_]
  std::vector<int64_t> seen_;               // version_ of a column's key
  int64_t version_ = 0;
};

}  // namespace

void facility_location(const Tokens& tokens, const FacilityRequest& request, int threads,
                       Workspace& workspace, Stats& stats, int64_t* out) {
  Greedy(tokens, request, threads, workspace, stats, out).run();
}

}  // namespace zspa::cpu
