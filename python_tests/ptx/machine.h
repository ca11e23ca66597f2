// SPDX-License-Identifier: Apache-2.0
// A machine that runs PTX as a GPU might: programs of warps of 32 lanes, in any order they may take.
//
// Instructions come decoded (decode.py): a handler, a predicate, slots of registers. One warp runs at
// a time, for a few instructions, as a seeded generator decides. What a GPU may not do stops the
// launch: an access beyond every tensor or not aligned to its width, a barrier that a part of a warp
// reaches, warps that wait for ever. Accesses that nothing orders are noted, by vector clocks with a
// component a warp. Lanes of one warp count as ordered.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAll = 0xffffffffu;
constexpr uint64_t kShared = 1 << 10;  // where shared memory starts: an address there is no offset

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Instruction {
  int64_t op, predicate, negated, immediate;
  const int64_t *args, *end;  // slots of registers, destinations first
};

template <class T>
T as(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <>
inline bool as<bool>(uint64_t bits) {
  return bits != 0;
}

template <class T>
uint64_t bits(T value) {
  uint64_t out = 0;
  std::memcpy(&out, &value, sizeof value);
  return out;
}

struct Warp;

// Work that is done when it is waited for, as late as a GPU may do it.
using Late = std::function<void(Warp&)>;

struct Queue {
  std::vector<Late> open;
  std::deque<std::vector<Late>> groups;

  void commit() {
    groups.push_back(std::move(open));
    open.clear();
  }
  void wait(Warp& warp, int64_t pending) {
    for (; int64_t(groups.size()) > pending; groups.pop_front())
      for (const Late& late : groups.front()) late(warp);
  }
};

// Lanes that run together, until they meet others of a branch at instruction `until`.
struct Path {
  int64_t next;
  uint32_t lanes;
  int64_t until;
};

struct Warp {
  int index;      // among all warps of the machine
  int rank;       // among those of the program
  int program;    // of the machine
  int64_t block;  // of the launch
  std::vector<uint64_t> registers;
  std::vector<Path> paths;  // the last one runs; those below wait for it
  bool waits = false, done = false;
  Queue copies, products, stores;  // stores: to tensor memory

  uint64_t* at(int64_t slot) { return registers.data() + slot * kLanes; }
};

enum class Space { kGlobal, kShared, kTensor };

// Who touched each granule of some memory last.
struct Shadow {
  struct Cell {
    int writer = -1;
    uint32_t written = 0;  // the writer's clock
    int64_t where = -1;    // the instruction
  };
  struct Read {
    int reader;
    uint32_t clock;
    int64_t where;
  };
  Space space = Space::kGlobal;
  uint64_t base = 0, bytes = 0;
  int granule = 4;
  std::vector<Cell> cells;
  std::vector<std::vector<Read>> reads;       // of each granule, since it was written
  std::vector<int64_t> by_writer, by_reader;  // block, where blocks do not meet; kNone, kSeveral
  static constexpr int64_t kNone = -1, kSeveral = -2;

  Shadow() = default;
  Shadow(Space space, uint64_t base, uint64_t bytes, int granule, bool apart = false)
      : space(space), base(base), bytes(bytes), granule(granule) {
    cells.resize(size_t((bytes + uint64_t(granule) - 1) / uint64_t(granule)));
    reads.resize(cells.size());
    if (apart) by_writer = by_reader = std::vector<int64_t>(cells.size(), kNone);
  }

  // The same memory in the eyes of the next block.
  void forget() {
    std::fill(cells.begin(), cells.end(), Cell{});
    for (auto& read : reads) read.clear();
  }
  bool holds(uint64_t address, uint64_t size) const {
    return address >= base && address + size <= base + bytes;
  }
};

// What the program of sm_100 has beside: see tensor.h.
struct Tensor {
  uint64_t first = 0, columns = 0;  // what is allocated
  std::vector<uint32_t> values;     // [lane, column]
  Shadow shadow;
};

struct PhaseBarrier {
  int64_t expected, missing;
  bool phase;
};

struct Program {
  std::vector<char> shared;
  std::vector<Warp> warps;
  Shadow shadow;
  Warp unit{};  // multiplies for the whole program: one more that reads and writes
  std::deque<std::function<void()>> work;  // of the unit, in order
  std::map<uint64_t, PhaseBarrier> barriers;
  Tensor tensor;
};

class Machine {
 public:
  std::vector<Instruction> code;
  int64_t shared_bytes = 0, warps_each = 0;
  std::vector<Shadow> tensors;
  std::vector<Program> programs;
  std::set<std::tuple<int64_t, int64_t, Space>> races;  // two instructions (-1: any)
  int64_t now = 0;                                      // the instruction that is run
  int64_t steps = 0;

  // Starts block `block`; `initial`: the first value of every slot.
  void add_program(int64_t block, const uint64_t* initial, int64_t slots, int64_t tid,
                   int64_t ctaid) {
    const int at = int(programs.size());
    programs.emplace_back();
    Program& program = programs.back();
    program.shared.assign(size_t(shared_bytes), char(0xff));
    program.shadow = Shadow(Space::kShared, kShared, uint64_t(shared_bytes), 1);
    for (int w = 0; w <= warps_each; ++w) {
      Warp& warp = w < warps_each ? program.warps.emplace_back() : program.unit;
      warp.index = at * int(warps_each + 1) + w;
      warp.rank = w;
      warp.program = at;
      warp.block = block;
      if (w == warps_each) return;
      warp.paths = {{0, kAll, -1}};
      warp.registers.resize(size_t(slots) * kLanes);
      for (int64_t s = 0; s < slots; ++s) std::fill_n(warp.at(s), kLanes, initial[s]);
      for (int l = 0; l < kLanes; ++l) warp.at(tid)[l] = uint64_t(w * kLanes + l);
      std::fill_n(warp.at(ctaid), kLanes, uint64_t(block));
    }
  }

  // Runs the programs to their end, with turns that `seed` decides.
  void run(uint64_t seed, int64_t limit);

  // ---- memory ----

  char* global(uint64_t address, uint64_t size, Shadow** found) {
    if (address % size) throw Fault("a global access is not aligned");
    for (Shadow& shadow : tensors)
      if (shadow.holds(address, size)) {
        *found = &shadow;
        return reinterpret_cast<char*>(address);
      }
    throw Fault("a global access is outside every tensor");
  }

  char* shared(const Warp& warp, uint64_t address, uint64_t size) {
    Program& program = program_of(warp);
    if (address % size) throw Fault("a shared access is not aligned");
    if (!program.shadow.holds(address, size))
      throw Fault("a shared access is outside the program's memory");
    return program.shared.data() + (address - kShared);
  }

  Program& program_of(const Warp& warp) { return programs[size_t(warp.program)]; }
  Shadow& shared_shadow(const Warp& warp) { return program_of(warp).shadow; }

  // ---- order ----

  void read(const Warp& warp, Shadow& shadow, uint64_t address, uint64_t size, int64_t where) {
    const auto& seen = clocks_[size_t(warp.index)];
    for_cells(shadow, address, size, [&](size_t c) {
      if (unordered(warp, shadow.cells[c])) note(shadow.cells[c].where, where, shadow);
      auto& reads = shadow.reads[c];
      const auto same = [&](const auto& read) { return read.reader == warp.index; };
      auto own = std::find_if(reads.begin(), reads.end(), same);
      if (own == reads.end()) own = reads.insert(own, {warp.index, 0, 0});
      own->clock = seen[size_t(warp.index)], own->where = where;
      if (shadow.by_reader.empty()) return;
      if (!mine(shadow.by_writer[c], warp)) note(-1, where, shadow);
      shadow.by_reader[c] = mine(shadow.by_reader[c], warp) ? warp.block : Shadow::kSeveral;
    });
  }

  // `changes`: memory gets another value. Several warps may write copies of one value.
  void write(const Warp& warp, Shadow& shadow, uint64_t address, uint64_t size, int64_t where,
             bool changes) {
    const auto& seen = clocks_[size_t(warp.index)];
    for_cells(shadow, address, size, [&](size_t c) {
      auto& cell = shadow.cells[c];
      if (unordered(warp, cell) && (changes || cell.where != where))
        note(cell.where, where, shadow);
      for (const auto& read : shadow.reads[c])
        if (read.reader != warp.index && read.clock > seen[size_t(read.reader)])
          note(read.where, where, shadow);
      shadow.reads[c].clear();
      cell = {warp.index, seen[size_t(warp.index)], where};
      if (shadow.by_writer.empty()) return;
      if (!mine(shadow.by_writer[c], warp) || !mine(shadow.by_reader[c], warp))
        note(-1, where, shadow);
      shadow.by_writer[c] = warp.block;
    });
  }

  // A release orders what this warp did and saw before it, an acquire what comes behind it.
  void release(const Warp& warp, uint64_t address) {
    auto& clock = clocks_[size_t(warp.index)];
    auto& sent = released_[address];
    sent.resize(clock.size(), 0);
    join(sent, clock);
    ++clock[size_t(warp.index)];
  }

  void acquire(const Warp& warp, uint64_t address) {
    const auto sent = released_.find(address);
    if (sent != released_.end()) join(clocks_[size_t(warp.index)], sent->second);
  }

  using Clock = std::vector<uint32_t>;

  // What `warp` has seen when it hands on work, and the one who does it takes that up.
  Clock hand_on(const Warp& warp) {
    Clock& clock = clocks_[size_t(warp.index)];
    const Clock seen = clock;
    ++clock[size_t(warp.index)];
    return seen;
  }

  void take_up(const Warp& warp, const Clock& seen) { join(clocks_[size_t(warp.index)], seen); }

 private:
  template <class Each>
  static void for_cells(const Shadow& shadow, uint64_t address, uint64_t size, const Each& each) {
    const uint64_t granule = uint64_t(shadow.granule);
    for (uint64_t c = (address - shadow.base) / granule;
         c <= (address + size - 1 - shadow.base) / granule; ++c)
      each(size_t(c));
  }

  bool unordered(const Warp& warp, const Shadow::Cell& cell) const {
    return cell.writer >= 0 && cell.writer != warp.index &&
           cell.written > clocks_[size_t(warp.index)][size_t(cell.writer)];
  }

  static bool mine(int64_t block, const Warp& warp) {
    return block == Shadow::kNone || block == warp.block;
  }

  void note(int64_t one, int64_t other, const Shadow& shadow) {
    races.insert({one, other, shadow.space});
  }

  static void join(Clock& into, const Clock& from) {
    for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
  }

  void start_clocks();
  void step(Warp& warp);
  void control(Warp& warp, const Instruction& i, const Path& path, uint32_t active);
  void arrive(Warp& warp);
  void leave(Warp& warp);

  std::vector<Clock> clocks_;  // [warp, what it has seen of each warp]
  std::unordered_map<uint64_t, Clock> released_;
};

using Handler = void (*)(Machine&, Warp&, const Instruction&, uint32_t lanes);

struct Named {
  const char* name;
  Handler handler;
};

// The first of `table()`; Machine::control runs them.
enum Control { kBranch, kBarrier, kReturn, kTrap, kControls };

const std::vector<Named>& table();

}  // namespace ptx
