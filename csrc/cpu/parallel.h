// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <exception>

namespace zspa::cpu {

// `requested`, or 1 in a process forked after this module was loaded: the OpenMP runtime's threads
// did not survive the fork, and waiting for them would never end.
int usable_threads(int requested);

// How many threads a loop over this many multiply-adds is worth. Waking threads costs microseconds on
// an idle machine and a time slice on a busy one, so a loop of some tens of microseconds stays alone.
inline int threads_for(int64_t multiply_adds, int threads) {
  constexpr int64_t kWorthWaking = 3'000'000;
  return multiply_adds < kWorthWaking ? 1 : threads;
}

// body(item, thread) for every item, thread < threads. Items go to threads as they come; nothing in
// this library depends on which thread ran an item. The first exception is rethrown here.
template <class Body>
void parallel_for(int threads, int64_t items, const Body& body) {
  if (threads <= 1 || items <= 1) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
  std::exception_ptr error;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t item = 0; item < items; ++item) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      body(item, omp_get_thread_num());
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace zspa::cpu
