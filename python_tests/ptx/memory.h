// SPDX-License-Identifier: Apache-2.0
// Loads, stores, the atomic and the ordered load of a barrier, asynchronous copies.
#pragma once

#include "arithmetic.h"

namespace ptx {

// N values of T at `from` become the first N arguments.
template <class T, int N>
void get(Warp& w, const Instruction& i, int lane, const char* from) {
  T values[N];
  std::memcpy(values, from, sizeof values);
  for (int k = 0; k < N; ++k) w.at(i.args[k])[lane] = bits(values[k]);
}

// The arguments behind the first are written to `to`. Returns whether that changes anything.
template <class T, int N>
bool put(Warp& w, const Instruction& i, int lane, char* to) {
  T values[N];
  for (int k = 0; k < N; ++k) values[k] = as<T>(w.at(i.args[k + 1])[lane]);
  const bool changes = std::memcmp(to, values, sizeof values) != 0;
  std::memcpy(to, values, sizeof values);
  return changes;
}

inline uint64_t global_address(Warp& w, const Instruction& i, int arg, int lane) {
  return w.at(i.args[arg])[lane] + uint64_t(i.immediate);
}

inline uint64_t shared_address(Warp& w, const Instruction& i, int arg, int lane) {
  return (w.at(i.args[arg])[lane] + uint64_t(i.immediate)) & kAll;
}

template <class T, int N>
void load_global(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t addresses[kLanes];  // a destination may be the base
  for (int l = 0; l < kLanes; ++l) addresses[l] = global_address(w, i, N, l);
  EACH_LANE(l) {
    Shadow* shadow;
    get<T, N>(w, i, l, m.global(addresses[l], sizeof(T) * N, &shadow));
    m.read(w, l, *shadow, addresses[l], sizeof(T) * N, m.now);
  }
}

template <class T, int N>
void store_global(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  EACH_LANE(l) {
    const uint64_t address = global_address(w, i, 0, l);
    Shadow* shadow;
    const bool changes = put<T, N>(w, i, l, m.global(address, sizeof(T) * N, &shadow));
    m.write(w, l, *shadow, address, sizeof(T) * N, m.now, changes);
  }
}

template <class T, int N>
void load_shared(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  uint64_t addresses[kLanes];
  for (int l = 0; l < kLanes; ++l) addresses[l] = shared_address(w, i, N, l);
  EACH_LANE(l) {
    get<T, N>(w, i, l, m.shared(w, addresses[l], sizeof(T) * N));
    m.read(w, l, m.shared_shadow(w), addresses[l], sizeof(T) * N, m.now);
  }
}

template <class T, int N>
void store_shared(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  EACH_LANE(l) {
    const uint64_t address = shared_address(w, i, 0, l);
    const bool changes = put<T, N>(w, i, l, m.shared(w, address, sizeof(T) * N));
    m.write(w, l, m.shared_shadow(w), address, sizeof(T) * N, m.now, changes);
  }
}

template <bool RELEASE>
void add_atomic(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  EACH_LANE(l) {
    const uint64_t address = global_address(w, i, 1, l);
    Shadow* shadow;
    char* p = m.global(address, 4, &shadow);
    uint32_t value;
    std::memcpy(&value, p, 4);
    const uint32_t sum = value + uint32_t(w.at(i.args[2])[l]);
    std::memcpy(p, &sum, 4);
    w.at(i.args[0])[l] = value;
    if (RELEASE) m.release(w, l, address);
  }
}

inline void load_acquire(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  EACH_LANE(l) {
    const uint64_t address = global_address(w, i, 1, l);
    Shadow* shadow;
    get<uint32_t, 1>(w, i, l, m.global(address, 4, &shadow));
    m.acquire(w, l, address);
  }
}

// [to], [from], width, how many bytes are read (the others become zero), offset of `from`.
inline void copy_async(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  const uint64_t width = w.at(i.args[2])[0];
  const int64_t where = m.now;
  EACH_LANE(l) {
    const uint64_t to = shared_address(w, i, 0, l), count = w.at(i.args[3])[l] & kAll;
    const uint64_t from = w.at(i.args[1])[l] + uint64_t(i.args[4]);
    char* target = m.shared(w, to, width);
    const char* source = nullptr;
    Shadow* shadow = nullptr;
    if (count > width) throw Fault("an asynchronous copy reads more than it writes");
    if (count > 0) source = m.global(from, width, &shadow);
    w.copies.open.push_back([=, &m](Warp& warp) {
      std::memset(target, 0, width);
      if (count > 0) std::memcpy(target, source, count);
      if (count > 0) m.read(warp, l, *shadow, from, count, where);
      m.write(warp, l, m.shared_shadow(warp), to, width, where, true);
    });
  }
}

inline void commit_copies(Machine&, Warp& w, const Instruction&, uint32_t) { w.copies.commit(); }

inline void wait_copies(Machine&, Warp& w, const Instruction& i, uint32_t) {
  w.copies.wait(w, int64_t(w.at(i.args[0])[0]));
}

}  // namespace ptx
