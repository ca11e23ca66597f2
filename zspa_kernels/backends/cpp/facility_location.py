# SPDX-License-Identifier: Apache-2.0
"""Facility location by the native kernels (csrc/cpu/facility_location.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch, packed, slots


def facility_location(
    visual: Tensor,
    k: int,
    benefits: Tensor | None,
    weights: Tensor | None,
    visual_mask: Tensor | None,
    temperature: float,
    scale: float,
    stats: Tensor | None = None,
) -> Tensor:
    """Picks of `[B, N, D]` or `[N, D]`; `stats` int64 [3] receives (0, dots, 0)."""
    indices = slots(visual, k)
    rows, tokens = 0 if benefits is None else benefits.shape[-2], visual.shape[-2]
    module().facility_location(
        *batch(visual),
        0,
        address(visual_mask),
        k,
        address(benefits),
        rows,
        rows * tokens,
        tokens,
        address(weights),
        temperature,
        scale,
        indices.numel(),
        torch.get_num_threads(),
        indices.data_ptr(),
        address(stats),
    )
    return indices


def facility_location_varlen(
    visual: Tensor,
    table: Tensor,
    total_k: int,
    max_seqlen: int,
    benefits: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    scale: float,
) -> Tensor:
    """Picks of every segment of packed tokens `[T, D]`; benefits `[M, T]`."""
    indices = slots(visual, total_k)
    module().facility_location(
        *packed(visual, table),
        0,
        0,
        address(benefits),
        0 if benefits is None else len(benefits),
        0,
        len(visual),
        address(weights),
        temperature,
        scale,
        total_k,
        torch.get_num_threads(),
        indices.data_ptr(),
        0,
    )
    return indices
