// SPDX-License-Identifier: Apache-2.0
// topk: the k tokens of the largest scores.
// Algorithm   : scores become integers that rise as scores fall; a radix select finds the k-th of
//               them; one more pass takes the tokens below it, and of its equals the first ones.
// Work        : 4 passes over N integers where scores spread over their exponents, at most one for
//               each 11 bits; a sort of the k, only for the order of scores.
// Numerics    : exact in the dtype of the scores.
#include "topk.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/keys.h"

namespace zspa::cpu {
namespace {

inline double widened(double score) { return score; }
template <class Score>
float widened(Score score) {
  return to_float(score);
}

// No finite score has these bits.
template <class Bits>
constexpr Bits kForced = 0;
template <class Bits>
constexpr Bits kInvalid = std::numeric_limits<Bits>::max();

template <class Bits, class Score>
std::vector<Bits> ranks(const Rated<Score>& rated) {
  using Float = decltype(widened(Score()));
  std::vector<Bits> bits(size_t(rated.N));
  for (int64_t i = 0; i < rated.N; ++i) {
    const Float score = widened(rated.scores[i]);
    // All ones if the score is not finite, 0 if it is; without a branch, so that the loop vectorises.
    const Bits invalid = Bits(0) - Bits(score - score != Float(0));
    bits[size_t(i)] = ordered_bits(-score) | invalid;
  }
  if (rated.mask)
    for (int64_t i = 0; i < rated.N; ++i)
      if (!rated.mask[i]) bits[size_t(i)] = kInvalid<Bits>;
  if (rated.forced)
    for (int64_t i = 0; i < rated.N; ++i)
      if (rated.forced[i] && bits[size_t(i)] != kInvalid<Bits>) bits[size_t(i)] = kForced<Bits>;
  return bits;
}

template <class Bits>
struct Nth {
  Bits value;
  int64_t equals;  // how many of its equals are up to its place
};

// The place-th smallest of `values`, counted from 0: digit by digit, the highest first, each time
// among those that share the digits so far.
template <class Bits>
Nth<Bits> nth_smallest(const std::vector<Bits>& values, int64_t place) {
  constexpr int kDigit = 11;
  constexpr int64_t kFew = 96;  // of which a partition is faster than the table of a digit
  std::vector<Bits> left;
  const Bits* from = values.data();
  int64_t count = int64_t(values.size());
  for (int shift = 8 * int(sizeof(Bits)) - kDigit; count > kFew;
       shift = std::max(0, shift - kDigit)) {
    const auto digit = [shift](Bits x) { return size_t(x >> shift) & ((1u << kDigit) - 1); };
    std::array<uint32_t, 1 << kDigit> table{};
    for (int64_t i = 0; i < count; ++i) ++table[digit(from[i])];
    size_t wanted = 0;
    while (place >= int64_t(table[wanted])) place -= int64_t(table[wanted++]);
    // Every value is written, and kept if its digit is the wanted one; hence the extra slot.
    std::vector<Bits> same(size_t(table[wanted]) + 1);
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i) {
      same[size_t(n)] = from[i];
      n += digit(from[i]) == wanted;
    }
    left.swap(same);
    from = left.data();
    count = n;
    if (shift == 0) return {left[0], place + 1};
  }
  std::vector<Bits> few(from, from + count);
  std::nth_element(few.begin(), few.begin() + place, few.end());
  const Bits value = few[size_t(place)];
  return {value, 1 + std::count(few.begin(), few.begin() + place, value)};
}

// Writes the places of the `count` first in order of (value, place), ascending.
template <class Bits>
void places_of_smallest(const std::vector<Bits>& values, int64_t count, int64_t* out) {
  const Nth<Bits> last = nth_smallest(values, count - 1);
  int64_t i = 0, n = 0;
  for (int64_t equals = last.equals; equals > 0; ++i) {
    out[n] = i;
    n += values[size_t(i)] <= last.value;
    equals -= values[size_t(i)] == last.value;
  }
  for (; n < count; ++i) {
    out[n] = i;
    n += values[size_t(i)] < last.value;
  }
}

}  // namespace

template <class Score>
int64_t top_k(const Rated<Score>& rated, int64_t k, bool ascending, int64_t* out) {
  using Bits = decltype(ordered_bits(widened(Score())));
  const std::vector<Bits> bits = ranks<Bits>(rated);
  uint32_t invalid = 0;
  for (const Bits x : bits) invalid += x == kInvalid<Bits>;
  const int64_t found = std::min(k, rated.N - int64_t(invalid));
  std::fill(out + found, out + k, int64_t(-1));
  if (found == 0) return 0;
  places_of_smallest(bits, found, out);
  if (ascending) return found;
  std::vector<decltype(key_of(bits[0], 0))> keys;
  keys.reserve(size_t(found));
  for (int64_t t = 0; t < found; ++t) keys.push_back(key_of(bits[size_t(out[t])], out[t]));
  std::sort(keys.begin(), keys.end());
  for (int64_t t = 0; t < found; ++t) out[t] = index_of(keys[size_t(t)]);
  return found;
}

void top_k_and_spaced(const Rated<float>& rated, int64_t k, int64_t spaced, bool ascending,
                      int64_t* out, uint8_t* top) {
  std::vector<int64_t> best(size_t(k - spaced));
  best.resize(size_t(top_k(rated, k - spaced, true, best.data())));
  std::vector<int64_t> rest, chosen;
  for (int64_t i = 0, t = 0; i < rated.N; ++i) {
    if (t < int64_t(best.size()) && best[size_t(t)] == i)
      ++t;
    else if (std::isfinite(rated.scores[i]) && (!rated.mask || rated.mask[i]))
      rest.push_back(i);
  }
  const size_t step = std::max<size_t>(1, rest.size() / size_t(std::max<int64_t>(1, spaced)));
  for (size_t i = 0; i < rest.size() && int64_t(chosen.size()) < spaced; i += step)
    chosen.push_back(rest[i]);
  std::fill(out, out + k, int64_t(-1));
  std::fill(top, top + k, uint8_t(0));
  size_t b = 0, c = 0;
  for (int64_t t = 0; b < best.size() || c < chosen.size(); ++t) {
    const bool first =
        c == chosen.size() || (b < best.size() && (!ascending || best[b] < chosen[c]));
    out[t] = first ? best[b++] : chosen[c++];
    top[t] = first;
  }
}

void ascending(const int64_t* picks, int64_t K, int64_t N, int64_t* out, uint8_t* found) {
  int64_t* end = std::copy_if(picks, picks + K, out, [N](int64_t i) { return 0 <= i && i < N; });
  std::sort(out, end);
  std::fill(end, out + K, int64_t(-1));
  std::fill(found, found + (end - out), uint8_t(1));
  std::fill(found + (end - out), found + K, uint8_t(0));
}

template int64_t top_k(const Rated<float>&, int64_t, bool, int64_t*);
template int64_t top_k(const Rated<Half>&, int64_t, bool, int64_t*);
template int64_t top_k(const Rated<BFloat16>&, int64_t, bool, int64_t*);
template int64_t top_k(const Rated<double>&, int64_t, bool, int64_t*);

}  // namespace zspa::cpu
