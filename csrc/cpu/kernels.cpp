// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#include <atomic>
#include <stdexcept>

namespace zspa::cpu {
namespace {

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
#if ZSPA_HAVE_AVX512
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
#if ZSPA_HAVE_AVX512BF16
  if (avx512 && __builtin_cpu_supports("avx512bf16")) tables.push_back(&avx512bf16_kernels());
#endif
#if ZSPA_HAVE_AVX512
  if (avx512) tables.push_back(&avx512_kernels());
#endif
#if ZSPA_HAVE_AVX2
  // Every CPU with AVX2 and FMA has F16C.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    tables.push_back(&avx2_kernels());
#endif
#endif
  tables.push_back(&portable_kernels());
  return tables;
}

const std::vector<const Kernels*>& tables() {
  static const std::vector<const Kernels*> all = runnable();
  return all;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = chosen.load(std::memory_order_relaxed);
  return table ? *table : *tables().front();
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* table : tables()) names.emplace_back(table->name);
  return names;
}

void use_isa(const std::string& name) {
  if (name == "auto") {
    chosen.store(nullptr);
    return;
  }
  for (const Kernels* table : tables()) {
    if (name == table->name) {
      chosen.store(table);
      return;
    }
  }
  std::string known = "auto";
  for (const std::string& isa : isas()) known += ", " + isa;
  throw std::invalid_argument("use_isa: name must be one of " + known + ", got " + name);
}

}  // namespace zspa::cpu
