# SPDX-License-Identifier: Apache-2.0
"""Soft suppression by the native kernels (csrc/cpu/soft_suppress.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch


def soft_suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    sharpness: float,
    rule: str,
    positions: Tensor | None,
    spread: float,
    reach: float,
    visual_mask: Tensor | None,
    stats: Tensor | None = None,
) -> Tensor:
    """Picks of `[B, N, D]` by scores `[B, N]`; `stats` int64 [3] receives (passes, dots, 0)."""
    indices = torch.empty((len(visual), k), dtype=torch.int64, device=visual.device)
    wide = scores.double()
    places = None if positions is None else positions.double()
    module().soft_suppress(
        *batch(visual),
        address(visual_mask),
        wide.data_ptr(),
        k,
        sharpness,
        rule == "subtract",
        address(places),
        spread,
        reach,
        torch.get_num_threads(),
        indices.data_ptr(),
        address(stats),
    )
    return indices
