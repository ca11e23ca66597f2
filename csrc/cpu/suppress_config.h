// SPDX-License-Identifier: Apache-2.0
// Block sizes of both kinds of suppression. They change the work, never a pick.
#pragma once

#include <cstdint>

namespace zspa::cpu {

// Tokens of the order that are looked at together. More of them compare rows with each other that a
// token taken meanwhile suppresses; fewer leave threads waiting.
constexpr int64_t kScan = 64;

// Columns that a block is compared with before those it leaves are dropped.
constexpr int64_t kScanColumns = 96;

// Rows that are evaluated in double together: bounds the memory of their weights.
constexpr int64_t kSettled = 64;

}  // namespace zspa::cpu
