# SPDX-License-Identifier: Apache-2.0
"""Diversity selection by the native kernels (csrc/cpu/diversity.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch, packed, slots


def diversity(
    visual: Tensor,
    k: int,
    seeds: Tensor | None,
    weights: Tensor | None,
    visual_mask: Tensor | None,
    stats: Tensor | None = None,
) -> Tensor:
    """Picks of `[B, N, D]` or `[N, D]`.

    `stats` int64 [3] receives (passes, dots, dots of the seed).
    """
    indices = slots(visual, k)
    module().diversity(
        *batch(visual),
        0,
        address(visual_mask),
        k,
        address(seeds),
        0 if seeds is None else seeds.shape[-1],
        address(weights),
        indices.numel(),
        torch.get_num_threads(),
        indices.data_ptr(),
        address(stats),
    )
    return indices


def diversity_varlen(visual: Tensor, table: Tensor, total_k: int, weights: Tensor | None) -> Tensor:
    """Picks of every segment of packed tokens `[T, D]`."""
    indices = slots(visual, total_k)
    module().diversity(
        *packed(visual, table),
        0,
        0,
        0,
        0,
        address(weights),
        total_k,
        torch.get_num_threads(),
        indices.data_ptr(),
        0,
    )
    return indices
