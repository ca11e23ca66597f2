# SPDX-License-Identifier: Apache-2.0
"""Suppression by a threshold by the native kernels (csrc/cpu/suppress.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch


def suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    threshold: float,
    fill: bool,
    visual_mask: Tensor | None,
    stats: Tensor | None = None,
) -> Tensor:
    """Picks of `[B, N, D]` by scores `[B, N]`; `stats` int64 [3] receives (blocks, dots, 0)."""
    indices = torch.empty((len(visual), k), dtype=torch.int64, device=visual.device)
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
