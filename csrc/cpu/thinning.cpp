// SPDX-License-Identifier: Apache-2.0
// thin: tokens with a double go, a few at a time (VisPruner, arXiv 2412.01818).
// Algorithm   : every token remembers its most similar ones. In a round the first of these that stands at
//               an odd place is the most similar odd one; as half of the tokens do, few are looked at. When
//               half of the tokens are gone, the others look for their most similar ones again.
//               A token of which float32 does not say who is most similar looks again in double, once.
// Inputs      : rows [N, D]; scores [N]; k, step     Outputs: tokens [k]
// Work        : N^2 D once, a quarter of it when half of the tokens are gone, and so on; N log N in each
//               of the (N - k) / step rounds. Where all tokens are about as similar, the first again in
//               double. No matrix of cosines.
// Numerics    : decides as cosines in double on a grid of 2^-40 do, which is coarser than their error;
//               ties to the earlier place.
// Deterministic: yes, for any number of threads.
#include "thinning.h"

#include <limits>

#include "compared.h"

namespace zspa::cpu {
namespace {

// Three quarters of them are gone or at even places before tokens look again: one token in 10^4 finds none.
constexpr int64_t kNeighbours = 32;
constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
constexpr double kNothing = -2.0;   // as the cosine with the most similar of no tokens
constexpr double kGoesFirst = 2.0;  // of a zero row

struct Neighbour {
  int token;
  float cosine;
  double exact;  // or kUnknown
};

// Puts one more into a list [kNeighbours] by falling cosine, or exact one, if there is room for it.
template <auto By>
void remember(const Neighbour& one, Neighbour* list, int& held) {
  const bool full = held == kNeighbours;
  if (full && one.*By <= list[held - 1].*By) return;
  int at = full ? held - 1 : held++;
  for (; at > 0 && list[at - 1].*By < one.*By; --at) list[at] = list[at - 1];
  list[at] = one;
}

struct Rated {
  int place;
  float cosine;  // to the most similar odd one
  double exact;
};

class Line {
 public:
  Line(const Compared& rows, std::vector<int> tokens, int threads)
      : rows_(rows),
        tokens_(std::move(tokens)),
        threads_(threads),
        exact_(rows.tokens),
        lists_(size_t(rows.tokens.N * kNeighbours)),
        held_(size_t(rows.tokens.N)),
        settled_(size_t(rows.tokens.N)),
        odd_(size_t(rows.tokens.N)) {}

  const std::vector<int>& tokens() const { return tokens_; }

  void take_out(int64_t count) {
    if (looked_ == 0 || 2 * tokens_.size() <= looked_) look();
    std::vector<int> even, next;
    std::fill(odd_.begin(), odd_.end(), 0);
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (i % 2 == 0)
        even.push_back(tokens_[i]);
      else
        odd_[size_t(tokens_[i])] = 1;
    }
    const std::vector<Rated> rated = by_similarity(even);
    for (size_t i = size_t(count); i < rated.size(); ++i)
      next.push_back(even[size_t(rated[i].place)]);
    for (size_t i = 1; i < tokens_.size(); i += 2) next.push_back(tokens_[i]);
    tokens_ = std::move(next);
  }

 private:
  // The most similar others of every token that has a direction, by falling cosine.
  void look() {
    looked_ = tokens_.size();
    std::vector<int> pointed;
    for (int token : tokens_)
      if (rows_.directed(token)) pointed.push_back(token);
    whole_ = int64_t(pointed.size()) <= kNeighbours + 1;
    for (int token : pointed) held_[size_t(token)] = settled_[size_t(token)] = 0;
    for_cosines(rows_, pointed, pointed, threads_,
                [&](int64_t place, int64_t first, const float* cosines, int64_t count) {
                  const int token = pointed[size_t(place)];
                  Neighbour* list = list_of(token);
                  int& held = held_[size_t(token)];
                  if (held == kNeighbours && largest(cosines, count) <= list[held - 1].cosine)
                    return;
                  for (int64_t c = 0; c < count; ++c) {
                    const int other = pointed[size_t(first + c)];
                    if (other != token)
                      remember<&Neighbour::cosine>({other, cosines[c], kUnknown}, list, held);
                  }
                });
  }

  // The most similar others of one token in double. Returns its cosine to the most similar odd one.
  double settle(int token) {
    Neighbour* list = list_of(token);
    int& held = held_[size_t(token)];
    double most = kNothing;
    held = 0;
    settled_[size_t(token)] = 1;
    for (int other : tokens_) {
      if (other == token || !rows_.directed(other)) continue;
      const double exact = cosine(token, other);
      remember<&Neighbour::exact>({other, float(exact), exact}, list, held);
      if (odd_[size_t(other)]) most = std::max(most, exact);
      if (most == 1.0 && held == kNeighbours && list[held - 1].exact == 1.0) break;
    }
    return most;
  }

  // The places of `even` by falling cosine to the most similar odd token, ties by place.
  std::vector<Rated> by_similarity(const std::vector<int>& even) {
    std::vector<Rated> rated(even.size());
    std::vector<size_t> unsure;
    for (size_t e = 0; e < even.size(); ++e) {
      rated[e] = {int(e), float(kGoesFirst), kGoesFirst};
      if (!rows_.directed(even[e])) continue;
      const Neighbour* list = list_of(even[e]);
      const int held = held_[size_t(even[e])];
      const bool settled = settled_[size_t(even[e])] != 0;
      int at = 0;
      while (at < held && !odd_[size_t(list[at].token)]) ++at;
      // Others are at most as similar as the last one that is remembered.
      const bool whole = whole_ || settled;
      if (at == held || (!whole && list[at].cosine < list[held - 1].cosine + 2 * rows_.slack))
        unsure.push_back(e);
      else
        rated[e] = {int(e), list[at].cosine, settled ? list[at].exact : kUnknown};
    }
    if (!unsure.empty())
      for (int token : tokens_) exact_.know(token);
    const int64_t dots = int64_t(unsure.size() * tokens_.size());
    const int threads = threads_for(dots * rows_.tokens.D * 4, threads_);
    parallel_for(threads, int64_t(unsure.size()), [&](int64_t u, int) {
      Rated& one = rated[unsure[size_t(u)]];
      one.exact = settle(even[size_t(one.place)]);
      one.cosine = float(one.exact);
    });
    std::sort(rated.begin(), rated.end(), [](const Rated& a, const Rated& b) {
      return a.cosine != b.cosine ? a.cosine > b.cosine : a.place < b.place;
    });
    for (size_t begin = 0, end; begin < rated.size(); begin = end) {
      end = begin + 1;
      while (end < rated.size() &&
             double(rated[end - 1].cosine) - double(rated[end].cosine) <= 2 * rows_.slack)
        ++end;
      if (end - begin > 1) decide(even, rated.data() + begin, rated.data() + end);
    }
    return rated;
  }

  // Orders what float32 cannot.
  void decide(const std::vector<int>& even, Rated* begin, Rated* end) {
    for (Rated* one = begin; one != end; ++one)
      if (std::isnan(one->exact)) one->exact = to_near(even[size_t(one->place)], one->cosine);
    std::sort(begin, end, [](const Rated& a, const Rated& b) {
      return a.exact != b.exact ? a.exact > b.exact : a.place < b.place;
    });
  }

  // The cosine to the most similar odd token, which is among the remembered ones.
  double to_near(int token, float best) {
    Neighbour* list = list_of(token);
    double most = kNothing;
    for (int at = 0; at < held_[size_t(token)] && most < 1.0; ++at) {
      Neighbour& other = list[at];
      if (other.cosine < best - 2 * rows_.slack) break;
      if (!odd_[size_t(other.token)]) continue;
      if (std::isnan(other.exact)) {
        exact_.know(token);
        exact_.know(other.token);
        other.exact = cosine(token, other.token);
      }
      most = std::max(most, other.exact);
    }
    return most;
  }

  double cosine(int a, int b) const { return rows_.same(a, b) ? 1.0 : exact_.cosine(a, b); }

  Neighbour* list_of(int token) { return lists_.data() + int64_t(token) * kNeighbours; }

  const Compared& rows_;
  std::vector<int> tokens_;
  int threads_;
  ExactCosines exact_;
  size_t looked_ = 0;   // how many tokens there were when they looked for similar ones
  bool whole_ = false;  // they remember all others
  std::vector<Neighbour> lists_;
  std::vector<int> held_;
  std::vector<uint8_t> settled_;  // whether a list is by cosines in double
  std::vector<uint8_t> odd_;      // whether a token is at an odd place
};

}  // namespace

void thin(const Tokens& tokens, const uint8_t* mask, const double* scores, int64_t k, int64_t step,
          int threads, int64_t* out) {
  threads = usable_threads(threads);
  std::fill(out, out + k, int64_t(-1));
  if (k == 0) return;
  const Compared rows = compared(tokens, mask, threads);
  std::vector<int> first;
  for (int64_t i = 0; i < tokens.N; ++i)
    if (rows.inv[size_t(i)] != kMaskedOut && std::isfinite(scores[i])) first.push_back(int(i));
  std::stable_sort(first.begin(), first.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  Line line(rows, std::move(first), threads);
  while (int64_t(line.tokens().size()) > k) {
    const int64_t size = int64_t(line.tokens().size());
    line.take_out(std::min({step, size - k, (size + 1) / 2}));
  }
  std::copy(line.tokens().begin(), line.tokens().end(), out);
}

}  // namespace zspa::cpu
