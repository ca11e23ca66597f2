// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"

namespace zspa::cpu {

// How the channels of a column are laid out; where the columns are is left open.
inline PanelView panel_shape(DType dtype, int64_t D) {
  const Kernels& kernel = kernels();
  PanelView view{};
  view.D = D;
  const int64_t deepest = kBlockBytes / kernel.packed_size(dtype);
  view.blocks = (D + deepest - 1) / deepest;
  view.depth = round_up((D + view.blocks - 1) / view.blocks, kernel.step);
  view.block_bytes = view.depth * kernel.packed_size(dtype);  // of one column
  return view;
}

// Columns of products, packed for the kernels in use. Memory is kept between uses.
class Panel {
 public:
  void reset(DType dtype, int64_t D, int64_t columns) {
    dtype_ = dtype;
    view_ = panel_shape(dtype, D);
    // One cache line more than the columns need: a distance of 4 KB would put the columns of a
    // group into the same sets of L1.
    view_.column_bytes = round_up(view_.block_bytes, 64) + 64;
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
