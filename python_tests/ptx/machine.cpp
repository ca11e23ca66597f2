// SPDX-License-Identifier: Apache-2.0
// How the machine runs, and what Python calls.
#include "machine.h"

#include <random>

namespace ptx {

void Machine::start_clocks() {
  const size_t n = programs.size() * size_t(warps_each + 1);
  clocks_.assign(n, Clock(n, 0));
  for (size_t i = 0; i < n; ++i) clocks_[i][i] = 1;
  met_.assign(n, 1);
  alone_.assign(n, {});
  components_.clear();
  released_.clear();
}

void Machine::run(uint64_t seed, int64_t limit) {
  start_clocks();
  std::mt19937_64 draw(seed);
  const int64_t last = steps + limit;
  std::vector<Warp*> able;
  for (;;) {
    able.clear();
    bool left = false;
    for (Program& program : programs)
      for (Warp& warp : program.warps) {
        left |= !warp.done;
        if (!warp.done && !warp.waits) able.push_back(&warp);
      }
    if (!left) return;
    if (able.empty()) throw Fault("all warps wait");
    Warp& warp = *able[draw() % able.size()];
    // Mostly short turns, now and then one so long that the others fall far behind.
    for (int64_t turn = int64_t(1) << (draw() % 11); turn > 0 && !warp.done && !warp.waits; --turn)
      step(warp);
    if (steps > last) throw Fault("the launch does not end");
  }
}

void Machine::step(Warp& warp) {
  const Path path = warp.paths.back();
  if (path.next >= int64_t(code.size())) throw Fault("the program runs beyond its end");
  const Instruction& i = code[size_t(path.next)];
  now = path.next;
  ++steps;
  uint32_t active = path.lanes;
  if (i.predicate >= 0) {
    const uint64_t* predicate = warp.at(i.predicate);
    for (int l = 0; l < kLanes; ++l)
      if (as<bool>(predicate[l]) == bool(i.negated)) active &= ~(1u << l);
  }
  warp.paths.back().next = now + 1;
  if (i.op < kControls)
    control(warp, i, path, active);
  else if (active)
    table()[size_t(i.op)].handler(*this, warp, i, active);
  while (!warp.paths.empty() &&
         (warp.paths.back().lanes == 0 || warp.paths.back().next == warp.paths.back().until))
    warp.paths.pop_back();
  warp.done = warp.paths.empty();
}

void Machine::control(Warp& warp, const Instruction& i, const Path& path, uint32_t active) {
  switch (Control(i.op)) {
    case kBranch: {
      const uint32_t others = path.lanes & ~active;
      if (others == 0) warp.paths.back().next = i.immediate;
      if (others == 0 || active == 0) return;
      const int64_t meeting = i.args[0];
      warp.paths.back().next = meeting;
      if (meeting != now + 1) warp.paths.push_back({now + 1, others, meeting});
      if (meeting != i.immediate) warp.paths.push_back({i.immediate, active, meeting});
      return;
    }
    case kBarrier:
      if (active != kAll) throw Fault("only a part of a warp reaches a barrier");
      arrive(warp);
      return;
    case kReturn:
      for (Path& other : warp.paths) other.lanes &= ~active;
      if (warp.paths.front().lanes != 0) return;
      leave(warp);
      return;
    default:
      if (active) throw Fault("trap");
  }
}

void Machine::leave(Warp& warp) {
  const Program& program = program_of(warp);
  bool last = true;
  for (const Warp& other : program.warps) {
    if (other.waits) throw Fault("a warp ends while others wait at a barrier");
    last &= other.done || other.index == warp.index;
  }
  if (last && !program.work.empty()) throw Fault("nobody waits for a product");
  if (last && program.tensor.columns > 0) throw Fault("tensor memory is not given back");
}

void Machine::arrive(Warp& warp) {
  auto& warps = program_of(warp).warps;
  warp.waits = true;
  for (const Warp& other : warps) {
    if (other.done) throw Fault("a warp waits at a barrier for one that has ended");
    if (!other.waits) return;
  }
  std::vector<const Warp*> all;
  for (Warp& other : warps) {
    other.waits = false;
    all.push_back(&other);
  }
  meet(all);
}

}  // namespace ptx

extern "C" {

struct Launch {
  const int64_t* code;  // rows: op, predicate, negated, immediate, first argument, end
  const int64_t* arguments;
  const uint64_t* initial;  // first value of every slot
  const uint64_t* tensors;  // rows: address, bytes
  int64_t* races;           // rows: two instructions (-1: any of another program), Space
  char* text;
  int64_t instructions, slots, num_tensors, most_races, text_size;
  int64_t tid, ctaid;  // slots
  int64_t programs, warps, shared, together, seed, limit;
  int64_t num_races, steps, where;  // results
};

int op_of(const char* name) {
  const auto& all = ptx::table();
  for (size_t i = 0; i < all.size(); ++i)
    if (name == std::string(all[i].name)) return int(i);
  return -1;
}

// Runs the programs of a launch, all at once (`together`) or one after another. Returns 1 where it
// failed: then `text` says how and `where` at which instruction.
int run_launch(Launch* launch) {
  ptx::Machine machine;
  for (int64_t n = 0; n < launch->instructions; ++n) {
    const int64_t* row = launch->code + 6 * n;
    machine.code.push_back(
        {row[0], row[1], row[2], row[3], launch->arguments + row[4], launch->arguments + row[5]});
  }
  machine.shared_bytes = launch->shared;
  machine.warps_each = launch->warps;
  const int64_t at_once = launch->together ? launch->programs : 1;
  for (int64_t n = 0; n < launch->num_tensors; ++n)
    machine.tensors.emplace_back(ptx::Space::kGlobal, launch->tensors[2 * n],
                                 launch->tensors[2 * n + 1], 4, !launch->together);
  int failed = 0;
  try {
    for (int64_t first = 0; first < launch->programs; first += at_once) {
      machine.programs.clear();
      for (int64_t p = first; p < first + at_once; ++p)
        machine.add_program(p, launch->initial, launch->slots, launch->tid, launch->ctaid);
      for (auto& shadow : machine.tensors) shadow.forget();
      machine.run(uint64_t(launch->seed + first), launch->limit);
    }
  } catch (const std::exception& error) {
    failed = 1;
    std::strncpy(launch->text, error.what(), size_t(launch->text_size - 1));
  }
  launch->num_races = 0;
  for (const auto& [one, other, space] : machine.races) {
    if (launch->num_races == launch->most_races) break;
    int64_t* row = launch->races + 3 * launch->num_races++;
    row[0] = one, row[1] = other, row[2] = int64_t(space);
  }
  launch->steps = machine.steps;
  launch->where = machine.now;
  return failed;
}
}
