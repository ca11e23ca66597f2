// SPDX-License-Identifier: Apache-2.0
// Tensor memory and the products of sm_100: one lane hands a product to a unit, which reads shared
// memory, adds to tensor memory and arrives at a barrier in shared memory when it is told to.
//
// The unit works as late as it may: when a warp waits for its arrival. It counts as one more who reads
// and writes, after what the lane had seen that handed it the work, before what is behind the wait.
#pragma once

#include "together.h"

namespace ptx {

constexpr uint64_t kTensorLanes = 128, kTensorColumns = 512;

// The only lane that runs an instruction.
inline int alone(uint32_t lanes) {
  if (lanes == 0 || (lanes & (lanes - 1))) throw Fault("several lanes do what one should do");
  return __builtin_ctz(lanes);
}

inline void elect(Machine&, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  std::fill_n(w.at(i.args[0]), kLanes, uint64_t(0));
  for (int l = 0; l < kLanes; ++l) w.at(i.args[1])[l] = l == 0;
}

// ---- barriers with phases -----------------------------------------------------------------------

inline uint64_t barrier_key(const Warp& w, uint64_t address) {
  return uint64_t(w.program) << 32 | address;  // no address of global memory is as small
}

inline PhaseBarrier& barrier_at(Machine& m, const Warp& w, uint64_t address) {
  auto& barriers = m.program_of(w).barriers;
  const auto found = barriers.find(address);
  if (found == barriers.end()) throw Fault("there is no barrier at this address");
  return found->second;
}

inline void start_barrier(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  const int l = alone(lanes);
  const uint64_t address = shared_address(w, i, 0, l);
  const int64_t count = int64_t(w.at(i.args[1])[l]);
  m.shared(w, address, 8);
  m.write(w, l, m.shared_shadow(w), address, 8, m.now, true);
  if (!m.program_of(w).barriers.insert({address, {count, count, false}}).second)
    throw Fault("there is a barrier at this address");
}

inline void end_barrier(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  const int l = alone(lanes);
  const uint64_t address = shared_address(w, i, 0, l);
  barrier_at(m, w, address);
  m.write(w, l, m.shared_shadow(w), address, 8, m.now, true);
  m.program_of(w).barriers.erase(address);
}

// Whether the phase of a parity is over. The unit works until it is, or has nothing left to do.
inline void try_wait(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  const uint64_t address = shared_address(w, i, 1, 0);
  const bool parity = w.at(i.args[2])[0] & 1;
  auto& work = m.program_of(w).work;
  m.read(w, kTogether, m.shared_shadow(w), address, 8, m.now);
  const PhaseBarrier& barrier = barrier_at(m, w, address);
  while (barrier.phase == parity && !work.empty()) {
    work.front()();
    work.pop_front();
  }
  const bool over = barrier.phase != parity;
  if (over) m.acquire(w, kTogether, barrier_key(w, address));
  std::fill_n(w.at(i.args[0]), kLanes, uint64_t(over));
}

inline void commit_tensor(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  const int l = alone(lanes);
  const uint64_t address = shared_address(w, i, 0, l);
  Program& program = m.program_of(w);
  program.work.push_back([&m, &program, address, seen = m.hand_on(w, l), where = m.now] {
    m.take_up(program.unit, kTogether, seen);
    m.read(program.unit, kTogether, program.shadow, address, 8, where);
    m.release(program.unit, kTogether, barrier_key(program.unit, address));
    PhaseBarrier& barrier = barrier_at(m, program.unit, address);
    if (--barrier.missing > 0) return;
    barrier.missing = barrier.expected;
    barrier.phase = !barrier.phase;
  });
}

// ---- tensor memory ------------------------------------------------------------------------------

inline void allocate(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  Tensor& tensor = m.program_of(w).tensor;
  const uint64_t columns = w.at(i.args[1])[0];
  if (tensor.columns) throw Fault("tensor memory is allocated twice");
  if (columns < 32 || columns > kTensorColumns || (columns & (columns - 1)))
    throw Fault("no part of tensor memory has so many columns");
  tensor.first = kTensorColumns - columns;
  tensor.columns = columns;
  tensor.values.assign(kTensorLanes * kTensorColumns, 0x7fb7dead);
  tensor.shadow = Shadow(Space::kTensor, 0, kTensorLanes * kTensorColumns * 4, 4);
  const uint64_t address = shared_address(w, i, 0, 0);
  const uint32_t first = uint32_t(tensor.first);
  std::memcpy(m.shared(w, address, 4), &first, 4);
  m.write(w, kTogether, m.shared_shadow(w), address, 4, m.now, true);
}

inline uint64_t place(const Tensor& tensor, uint64_t lane, uint64_t column) {
  if (lane >= kTensorLanes || column < tensor.first || column >= tensor.first + tensor.columns)
    throw Fault("an access is outside the tensor memory that is allocated");
  return lane * kTensorColumns + column;
}

inline uint32_t& cell(Machine& m, const Warp& w, uint64_t lane, uint64_t column, int64_t where,
                      bool writes) {
  Tensor& tensor = m.program_of(w).tensor;
  const uint64_t at = place(tensor, lane, column);
  if (writes)
    m.write(w, kTogether, tensor.shadow, 4 * at, 4, where, true);
  else
    m.read(w, kTogether, tensor.shadow, 4 * at, 4, where);
  return tensor.values[at];
}

inline void give_back(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  Tensor& tensor = m.program_of(w).tensor;
  if (w.at(i.args[0])[0] != tensor.first || w.at(i.args[1])[0] != tensor.columns)
    throw Fault("other tensor memory is given back than was allocated");
  for (uint64_t lane = 0; lane < kTensorLanes; ++lane)
    m.write(w, kTogether, tensor.shadow, 4 * place(tensor, lane, tensor.first), 4 * tensor.columns,
            m.now, true);
  tensor.columns = 0;
}

// Where lane `l` of a warp has its N columns. HALVES: 16 lanes of tensor memory, of which lanes 0 to 15
// of the warp have the first columns and the others those `apart` further on.
template <bool HALVES>
std::pair<uint64_t, uint64_t> own_columns(const Warp& w, uint64_t address, uint64_t apart, int l) {
  const uint64_t first = address >> 16, column = address & 0xffff;
  const uint64_t lanes = HALVES ? 16 : 32;
  if (first / 32 != uint64_t(w.rank % 4) || first % lanes)
    throw Fault("a warp touches tensor memory of another one");
  if (HALVES) return {first + uint64_t(l % 16), column + (l < 16 ? 0 : apart)};
  return {first + uint64_t(l), column};
}

template <int N, bool HALVES>
void load_tensor(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  const uint64_t address = shared_address(w, i, N, 0);
  const uint64_t apart = HALVES ? w.at(i.args[N + 1])[0] : 0;
  for (int l = 0; l < kLanes; ++l) {
    const auto [lane, column] = own_columns<HALVES>(w, address, apart, l);
    for (int k = 0; k < N; ++k)
      w.at(i.args[k])[l] = cell(m, w, lane, column + uint64_t(k), m.now, false);
  }
}

template <int N, bool HALVES>
void store_tensor(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  whole(lanes);
  const uint64_t address = shared_address(w, i, 0, 0);
  const uint64_t apart = HALVES ? w.at(i.args[1])[0] : 0;
  const int64_t* slots = i.args + (HALVES ? 2 : 1);
  std::vector<uint32_t> values(size_t(N * kLanes));
  for (int k = 0; k < N; ++k)
    for (int l = 0; l < kLanes; ++l) values[size_t(l * N + k)] = uint32_t(w.at(slots[k])[l]);
  w.stores.open.push_back([=, &m, where = m.now](Warp& warp) {
    for (int l = 0; l < kLanes; ++l) {
      const auto [lane, column] = own_columns<HALVES>(warp, address, apart, l);
      for (int k = 0; k < N; ++k)
        cell(m, warp, lane, column + uint64_t(k), where, true) = values[size_t(l * N + k)];
    }
  });
}

inline void wait_stores(Machine&, Warp& w, const Instruction&, uint32_t lanes) {
  whole(lanes);
  w.stores.commit();
  w.stores.wait(w, 0);
}

// ---- products -----------------------------------------------------------------------------------

struct Shape {
  bool bf16;
  int rows, columns;

  explicit Shape(uint32_t d) : bf16(d >> 7 & 1), rows(int(d >> 24 & 31) << 4) {
    columns = int(d >> 17 & 63) << 3;
    const uint32_t plain = uint32_t(bf16) << 10 | uint32_t(bf16) << 7 | 1u << 4;
    if ((d & ~(31u << 24 | 63u << 17)) != plain) throw Fault("a product with an unknown option");
    if (rows != 64 && rows != 128) throw Fault("a product has an unknown number of rows");
  }
  // Of 64 rows each warp's part of tensor memory has 16.
  uint64_t lane(int row) const { return uint64_t(rows == 128 ? row : row / 16 * 32 + row % 16); }
  float number(uint16_t value) const { return bf16 ? from_bf16(value) : from_half(value); }
};

inline uint64_t width(uint64_t descriptor) {  // of a swizzled row
  const uint64_t mode = descriptor >> 61;
  if ((descriptor >> 46 & 7) != 1) throw Fault("a matrix is described for another machine");
  return mode == 2 ? 128 : mode == 4 ? 64 : mode == 6 ? 32 : 0;
}

// 16 numbers of each row of a matrix in shared memory.
inline std::vector<std::array<float, 16>> shared_rows(Machine& m, const Warp& unit,
                                                      uint64_t descriptor, int rows,
                                                      const Shape& shape, int64_t where) {
  const Described from(descriptor, width(descriptor));
  std::vector<std::array<float, 16>> out(static_cast<size_t>(rows));
  for (int r = 0; r < rows; ++r)
    for (int k = 0; k < 16; ++k)
      out[size_t(r)][size_t(k)] = shape.bf16 ? element<from_bf16>(m, unit, from, r, k, where)
                                             : element<from_half>(m, unit, from, r, k, where);
  return out;
}

// The same in tensor memory, two numbers a column.
inline std::vector<std::array<float, 16>> tensor_rows(Machine& m, const Warp& unit,
                                                      uint64_t address, const Shape& shape,
                                                      int64_t where) {
  std::vector<std::array<float, 16>> out(static_cast<size_t>(shape.rows));
  for (int r = 0; r < shape.rows; ++r)
    for (int k = 0; k < 16; ++k) {
      const uint64_t lane = (address >> 16) + shape.lane(r);
      const uint32_t pair = cell(m, unit, lane, (address & 0xffff) + uint64_t(k / 2), where, false);
      out[size_t(r)][size_t(k)] = shape.number(uint16_t(pair >> (16 * (k % 2))));
    }
  return out;
}

// d [M, N] = a [M, 16] b [16, N] (+ d)
template <bool IN_TENSOR>
void multiply_tensor(Machine& m, Warp& w, const Instruction& i, uint32_t lanes) {
  const int l = alone(lanes);
  const uint64_t d = shared_address(w, i, 0, l);
  const uint64_t a = w.at(i.args[1])[l] + (IN_TENSOR ? uint64_t(i.args[5]) : 0);
  const uint64_t b = w.at(i.args[2])[l];
  const Shape shape(uint32_t(w.at(i.args[3])[l]));
  const bool adds = as<bool>(w.at(i.args[4])[l]);
  Program& program = m.program_of(w);
  program.work.push_back([=, &m, &program, seen = m.hand_on(w, l), where = m.now] {
    const Warp& unit = program.unit;
    m.take_up(unit, kTogether, seen);
    const auto rows = IN_TENSOR ? tensor_rows(m, unit, a, shape, where)
                                : shared_rows(m, unit, a, shape.rows, shape, where);
    const auto columns = shared_rows(m, unit, b, shape.columns, shape, where);
    for (int r = 0; r < shape.rows; ++r)
      for (int c = 0; c < shape.columns; ++c) {
        const uint64_t lane = (d >> 16) + shape.lane(r), column = (d & 0xffff) + uint64_t(c);
        float sum = 0.0f;
        if (adds) sum = as<float>(cell(m, unit, lane, column, where, false));
        sum = add_products<16, 2>(sum, [&](int k) {
          return double(rows[size_t(r)][size_t(k)]) * double(columns[size_t(c)][size_t(k)]);
        });
        cell(m, unit, lane, column, where, true) = uint32_t(bits(sum));
      }
  });
}

}  // namespace ptx
