# SPDX-License-Identifier: Apache-2.0
"""Thinning by the native kernel (csrc/cpu/thinning.cpp), for primitives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch


def thin(features: Tensor, scores: Tensor, k: int, step: int, mask: Tensor | None) -> Tensor:
    """int64 `[B, k]`, what is left of `[B, N, C]`; scores float64 `[B, N]`. Or all without B."""
    left = torch.empty((*features.shape[:-2], k), dtype=torch.int64, device=features.device)
    module().thin(
        *batch(features),
        address(mask),
        scores.data_ptr(),
        k,
        step,
        torch.get_num_threads(),
        left.data_ptr(),
    )
    return left
