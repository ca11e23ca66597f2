# SPDX-License-Identifier: Apache-2.0
"""The tokens of the largest scores by the native kernel (csrc/cpu/topk.cpp), for primitives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import DTYPES, address

SCORES = {**DTYPES, torch.float64: 3}  # csrc/cpu/topk.h


def topk(
    scores: Tensor, k: int, mask: Tensor | None, forced: Tensor | None, ascending: bool
) -> Tensor:
    """int64 `[B, k]` or `[k]` of scores `[B, N]` or `[N]`, with a mask and forced ones likewise."""
    scores = scores.contiguous()
    mask = mask if mask is None else mask.contiguous()
    forced = forced if forced is None else forced.contiguous()
    # Sizes one by one: the call is short, and a tuple of them costs as much as the kernel.
    shape = scores.shape
    if len(shape) == 1:
        B, N = 1, shape[0]
        out = scores.new_empty(k, dtype=torch.int64)
    else:
        B, N = shape
        out = scores.new_empty(B, k, dtype=torch.int64)
    module().topk(
        scores.data_ptr(),
        SCORES[scores.dtype],
        B,
        N,
        address(mask),
        address(forced),
        k,
        ascending,
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out
