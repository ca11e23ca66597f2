// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

namespace zspa {

// (value, index) as one unsigned integer: smaller values first, equal values by lower index.
// This is the one order of the library: -0 and +0 are equal (adding +0 maps -0 to +0), NaN never gets here.
using Key = uint64_t;

constexpr Key kNoKey = ~Key(0);

// Bits in the order of the values.
inline uint32_t ordered_bits(float value) {
  value += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
}

inline uint64_t ordered_bits(double value) {
  value += 0.0;
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ (uint64_t(int64_t(bits) >> 63) | 0x8000000000000000u);
}

inline Key key_of(uint32_t bits, int64_t index) { return (Key(bits) << 32) | Key(uint32_t(index)); }

inline Key make_key(float value, int64_t index) { return key_of(ordered_bits(value), index); }

inline int64_t index_of(Key key) { return int64_t(uint32_t(key)); }

// The same for a value in double.
struct WideKey {
  uint64_t bits;
  uint32_t index;

  bool operator<(const WideKey& other) const {
    return bits < other.bits || (bits == other.bits && index < other.index);
  }
};

inline WideKey key_of(uint64_t bits, int64_t index) { return {bits, uint32_t(index)}; }

inline int64_t index_of(const WideKey& key) { return int64_t(key.index); }

}  // namespace zspa
