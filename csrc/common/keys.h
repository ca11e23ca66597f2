// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

namespace zspa {

// (value, index) as one unsigned integer: smaller values first, equal values by lower index.
// This is the one order of the library: -0 and +0 are equal (adding +0 maps -0 to +0), NaN never gets here.
using Key = uint64_t;

constexpr Key kNoKey = ~Key(0);

inline Key make_key(float value, int64_t index) {
  value += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
  return (Key(bits) << 32) | Key(uint32_t(index));
}

inline int64_t index_of(Key key) { return int64_t(uint32_t(key)); }

}  // namespace zspa
