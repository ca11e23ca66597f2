# SPDX-License-Identifier: Apache-2.0
"""Min-sum selection by the native kernels (csrc/cpu/min_sum.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch, packed, slots


def min_sum(
    visual: Tensor,
    k: int,
    seeds: Tensor | None,
    visual_mask: Tensor | None,
    stats: Tensor | None = None,
) -> Tensor:
    """Picks of `[B, N, D]` or `[N, D]`; `stats` int64 [3] receives (passes, dots, 0)."""
    indices = slots(visual, k)
    module().min_sum(
        *batch(visual),
        0,
        address(visual_mask),
        k,
        address(seeds),
        0 if seeds is None else seeds.shape[-1],
        indices.numel(),
        torch.get_num_threads(),
        indices.data_ptr(),
        address(stats),
    )
    return indices


def min_sum_varlen(visual: Tensor, table: Tensor, total_k: int, max_seqlen: int) -> Tensor:
    """Picks of every segment of packed tokens `[T, D]`."""
    indices = slots(visual, total_k)
    module().min_sum(
        *packed(visual, table), 0, 0, 0, 0, total_k, torch.get_num_threads(), indices.data_ptr(), 0
    )
    return indices
