// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace zspa {

// What Python passes as an address; 0 is null.
template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// The functions behind `zspa_kernels.primitives` and the methods: bindings_primitives.cpp.
void bind_primitives(pybind11::module_& m);

}  // namespace zspa
