// SPDX-License-Identifier: Apache-2.0
// A machine that runs PTX as a GPU might: programs of warps of 32 lanes, in any order they may take.
//
// Instructions come decoded (decode.py): a handler, a predicate, slots of registers. One warp runs at
// a time, for a few instructions, as a seeded generator decides. What a GPU may not do stops the
// launch: an access beyond every tensor or not aligned to its width, a barrier that a part of a warp
// reaches, warps that wait for ever. Accesses that nothing orders are noted, by vector clocks. A
// warp's clock ticks where its lanes meet, at a barrier; in between they are as unordered as warps.
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
constexpr int kTogether = -1;          // instead of a lane: an access of the whole warp
constexpr int kSeveral = -2;           // of its lanes

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
    int writer = -1, lane = kTogether;
    uint32_t written = 0;  // the writer's clock
    int64_t where = -1;    // the instruction
  };
  struct Read {
    int reader, lane;
    uint32_t clock;
    int64_t where;
  };
  Space space = Space::kGlobal;
  uint64_t base = 0, bytes = 0;
  int granule = 4;
  std::vector<Cell> cells;
  std::vector<std::vector<Read>> reads;       // of each granule, since it was written
  std::vector<int64_t> by_writer, by_reader;  // block, where blocks do not meet; kNone, kBlocks
  static constexpr int64_t kNone = -1, kBlocks = -2;

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

  void read(const Warp& warp, int lane, Shadow& shadow, uint64_t address, uint64_t size,
            int64_t where) {
    const uint32_t clock = clocks_[size_t(warp.index)][size_t(warp.index)];
    for_cells(shadow, address, size, [&](size_t c) {
      const auto& cell = shadow.cells[c];
      if (unordered(warp, lane, cell.writer, cell.lane, cell.written))
        note(cell.where, where, shadow);
      auto& reads = shadow.reads[c];
      const auto same = [&](const auto& read) { return read.reader == warp.index; };
      auto own = std::find_if(reads.begin(), reads.end(), same);
      if (own == reads.end()) own = reads.insert(own, {warp.index, lane, clock, where});
      const bool alone = own->lane == lane || own->clock < met_[size_t(warp.index)];
      *own = {warp.index, alone ? lane : kSeveral, clock, where};
      if (shadow.by_reader.empty()) return;
      if (!mine(shadow.by_writer[c], warp)) note(-1, where, shadow);
      shadow.by_reader[c] = mine(shadow.by_reader[c], warp) ? warp.block : Shadow::kBlocks;
    });
  }

  // `changes`: memory gets another value. Several threads may write copies of one value.
  void write(const Warp& warp, int lane, Shadow& shadow, uint64_t address, uint64_t size,
             int64_t where, bool changes) {
    const uint32_t clock = clocks_[size_t(warp.index)][size_t(warp.index)];
    for_cells(shadow, address, size, [&](size_t c) {
      auto& cell = shadow.cells[c];
      if (unordered(warp, lane, cell.writer, cell.lane, cell.written) &&
          (changes || cell.where != where))
        note(cell.where, where, shadow);
      for (const auto& read : shadow.reads[c])
        if (unordered(warp, lane, read.reader, read.lane, read.clock) &&
            (read.reader != warp.index || read.lane != kTogether))
          note(read.where, where, shadow);
      shadow.reads[c].clear();
      cell = {warp.index, lane, clock, where};
      if (shadow.by_writer.empty()) return;
      if (!mine(shadow.by_writer[c], warp) || !mine(shadow.by_reader[c], warp))
        note(-1, where, shadow);
      shadow.by_writer[c] = warp.block;
    });
  }

  using Clock = std::vector<uint32_t>;

  // All lanes of these warps meet: what one has seen all have.
  void meet(const std::vector<const Warp*>& warps) {
    Clock all;
    for (const Warp* warp : warps) {
      const size_t w = size_t(warp->index);
      join(all, clocks_[w]);
      for (const auto& [lane, seen] : alone_[w]) join(all, seen);
      alone_[w].clear();
    }
    for (const Warp* warp : warps) {
      const size_t w = size_t(warp->index);
      clocks_[w] = all;
      met_[w] = ++clocks_[w][w];
    }
  }

  // What comes behind a release of a lane: what it has done, and what it has seen of others.
  Clock hand_on(const Warp& warp, int lane) {
    const size_t me = size_t(warp.index);
    Clock seen = clocks_[me];
    const auto alone = alone_[me].find(lane);
    if (alone != alone_[me].end()) join(seen, alone->second);
    if (lane != kTogether) {
      const size_t next = clocks_.size() + components_.size();
      const size_t own = components_.try_emplace({warp.index, lane}, next).first->second;
      seen.resize(std::max(seen.size(), own + 1), 0);
      seen[own] = seen[me];
      seen[me] = met_[me] - 1;
    }
    ++clocks_[me][me];
    return seen;
  }

  void take_up(const Warp& warp, int lane, const Clock& seen) {
    const size_t me = size_t(warp.index);
    join(lane == kTogether ? clocks_[me] : alone_[me][lane], seen);
  }

  void release(const Warp& warp, int lane, uint64_t address) {
    join(released_[address], hand_on(warp, lane));
  }

  void acquire(const Warp& warp, int lane, uint64_t address) {
    const auto sent = released_.find(address);
    if (sent != released_.end()) take_up(warp, lane, sent->second);
  }

 private:
  template <class Each>
  static void for_cells(const Shadow& shadow, uint64_t address, uint64_t size, const Each& each) {
    const uint64_t granule = uint64_t(shadow.granule);
    for (uint64_t c = (address - shadow.base) / granule;
         c <= (address + size - 1 - shadow.base) / granule; ++c)
      each(size_t(c));
  }

  // Whether nothing orders what a lane of a warp did at a time of its clock before this lane.
  bool unordered(const Warp& warp, int lane, int other, int other_lane, uint32_t clock) const {
    const size_t me = size_t(warp.index);
    if (other < 0) return false;
    if (other == warp.index) return lane != other_lane && clock >= met_[me];
    const auto alone = alone_[me].find(lane);
    const auto before = [&](const Clock& seen, size_t whose) {
      return whose < seen.size() && clock <= seen[whose];
    };
    const auto seen = [&](size_t whose) {
      return before(clocks_[me], whose) ||
             (alone != alone_[me].end() && before(alone->second, whose));
    };
    const auto own = components_.find({other, other_lane});
    return !seen(size_t(other)) && (own == components_.end() || !seen(own->second));
  }

  static bool mine(int64_t block, const Warp& warp) {
    return block == Shadow::kNone || block == warp.block;
  }

  void note(int64_t one, int64_t other, const Shadow& shadow) {
    races.insert({one, other, shadow.space});
  }

  static void join(Clock& into, const Clock& from) {
    into.resize(std::max(into.size(), from.size()), 0);
    for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
  }

  void start_clocks();
  void step(Warp& warp);
  void control(Warp& warp, const Instruction& i, const Path& path, uint32_t active);
  void arrive(Warp& warp);
  void leave(Warp& warp);

  std::vector<Clock> clocks_;                // [warp, what it has seen of each warp]
  std::vector<uint32_t> met_;                // the clock of each warp when its lanes met
  std::vector<std::map<int, Clock>> alone_;  // what a lane has seen since, by itself
  // Where a clock says what is known of a lane beyond what is known of its warp.
  std::map<std::pair<int, int>, size_t> components_;
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
