// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"

namespace zspa::cpu {

// Columns of products, packed for the kernels in use. Memory is kept between uses.
class Panel {
 public:
  void reset(DType dtype, int64_t D, int64_t columns) {
    const Kernels& kernel = kernels();
    const int64_t size = kernel.packed_size(dtype);
    dtype_ = dtype;
    view_.D = D;
    view_.blocks = (D + kBlockDepth - 1) / kBlockDepth;
    view_.depth = round_up((D + view_.blocks - 1) / view_.blocks, kernel.step);
    // One cache line more than the columns need: a distance of 4 KB would put the columns of a
    // group into the same sets of L1.
    view_.column_bytes = round_up(view_.depth * size, 64) + 64;
    view_.block_bytes = view_.column_bytes * columns;
    const int64_t bytes = view_.block_bytes * view_.blocks;
    if (bytes > capacity_) {
      memory_.reset();
      capacity_ = 0;
      memory_.reset(static_cast<char*>(std::aligned_alloc(64, size_t(round_up(bytes, 64)))));
      if (!memory_) throw std::bad_alloc();
      capacity_ = bytes;
    }
    view_.data = memory_.get();
  }

  void put(int64_t column, const void* row) { kernels().pack(dtype_, row, view_, column); }

  const PanelView& view() const { return view_; }

 private:
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t capacity_ = 0;
  DType dtype_ = DType::f32;
  PanelView view_{};
};

}  // namespace zspa::cpu
