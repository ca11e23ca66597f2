# SPDX-License-Identifier: Apache-2.0
"""Distances of tokens to a point by the native kernels (csrc/cpu/alignment.cpp), for primitives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import batch


def nearness(visual: Tensor, twice: Tensor) -> Tensor:
    """`((twice - visual) * visual).sum(-1)` in float64 `[B, N]`; twice: float64 `[B, D]`."""
    out = torch.empty(visual.shape[:2], dtype=torch.float64, device=visual.device)
    module().alignment(*batch(visual), twice.data_ptr(), torch.get_num_threads(), out.data_ptr())
    return out
