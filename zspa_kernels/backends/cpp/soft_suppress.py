# SPDX-License-Identifier: Apache-2.0
"""Soft suppression by the native kernels (csrc/cpu/soft_suppress.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch, slots


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
    """Picks of `[B, N, D]` or `[N, D]` by scores likewise.

    `stats` int64 [3] receives (passes, dots, 0).
    """
    indices = slots(visual, k)
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
