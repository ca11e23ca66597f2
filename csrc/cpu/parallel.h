// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <exception>
#ifdef __SANITIZE_THREAD__
#include <thread>
#include <vector>
#endif

namespace zspa::cpu {

// `requested`, or 1 in a process forked after this module was loaded: the OpenMP runtime's threads
// did not survive the fork, and waiting for them would never end.
int usable_threads(int requested);

// How many threads a loop over this many multiply-adds is worth. Waking threads costs microseconds on
// an idle machine and a time slice on a busy one, so a loop of some tens of microseconds stays alone.
#ifndef ZSPA_WORTH_WAKING  // as a sanitized build does, to watch threads on small inputs
#define ZSPA_WORTH_WAKING 3'000'000
#endif
inline int threads_for(int64_t multiply_adds, int threads) {
  return multiply_adds < ZSPA_WORTH_WAKING ? 1 : threads;
}

// work(thread) on each of `threads` threads; returns when all have. It must not throw.
template <class Work>
void on_threads(int threads, const Work& work) {
#ifdef __SANITIZE_THREAD__  // which takes what libgomp's barriers order for races
  std::vector<std::thread> team;
  for (int thread = 0; thread < threads; ++thread) team.emplace_back(work, thread);
  for (std::thread& member : team) member.join();
#else
#pragma omp parallel num_threads(threads)
  work(omp_get_thread_num());
#endif
}

// body(item, thread) for every item, thread < threads. Items go to threads as they come; nothing in
// this library depends on which thread ran an item. The first exception is rethrown here.
template <class Body>
void parallel_for(int threads, int64_t items, const Body& body) {
  if (threads <= 1 || items <= 1) {
    for (int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  on_threads(threads, [&](int thread) {
    try {
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;)
        body(item, thread);
    } catch (...) {
      next.store(items);  // nobody takes another
      if (!failed.exchange(true)) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace zspa::cpu
