// SPDX-License-Identifier: Apache-2.0
#include "parallel.h"

#include <pthread.h>

#include <algorithm>

namespace zspa::cpu {
namespace {

std::atomic<bool> forked{false};

const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

}  // namespace

int usable_threads(int requested) {
  (void)registered;
  return forked.load(std::memory_order_relaxed) ? 1 : std::max(1, requested);
}

}  // namespace zspa::cpu
