# SPDX-License-Identifier: Apache-2.0
"""Suppression by a threshold by the native kernels (csrc/cpu/suppress.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch, slots


def suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    threshold: float,
    fill: bool,
    visual_mask: Tensor | None,
    stats: Tensor | None = None,
) -> Tensor:
    """Picks of `[B, N, D]` or `[N, D]` by scores likewise.

    `stats` int64 [3] receives (blocks, dots, 0).
    """
    indices = slots(visual, k)
    wide = scores.double()
    module().suppress(
        *batch(visual),
        address(visual_mask),
        wide.data_ptr(),
        k,
        threshold,
        fill,
        torch.get_num_threads(),
        indices.data_ptr(),
        address(stats),
    )
    return indices
