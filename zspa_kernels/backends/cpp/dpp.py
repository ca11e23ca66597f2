# SPDX-License-Identifier: Apache-2.0
"""Determinantal selection by the native kernels (csrc/cpu/dpp.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch, packed, slots


def dpp(
    visual: Tensor,
    k: int,
    weights: Tensor | None,
    visual_mask: Tensor | None,
    stats: Tensor | None = None,
) -> Tensor:
    """Picks of `[B, N, D]` or `[N, D]`; `stats` int64 [3] receives (passes, dots, 0)."""
    indices = slots(visual, k)
    module().dpp(
        *batch(visual),
        0,
        address(visual_mask),
        k,
        address(weights),
        indices.numel(),
        torch.get_num_threads(),
        indices.data_ptr(),
        address(stats),
    )
    return indices


def dpp_varlen(
    visual: Tensor, table: Tensor, total_k: int, max_seqlen: int, weights: Tensor | None
) -> Tensor:
    """Picks of every segment of packed tokens `[T, D]`."""
    indices = slots(visual, total_k)
    module().dpp(
        *packed(visual, table),
        0,
        0,
        address(weights),
        total_k,
        torch.get_num_threads(),
        indices.data_ptr(),
        0,
    )
    return indices
