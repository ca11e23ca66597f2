# SPDX-License-Identifier: Apache-2.0
"""Tokens that crops take a share of, by the native kernel (csrc/cpu/sharing.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module


def best_of_crops(
    attention: Tensor,
    scores: Tensor,
    valid: Tensor,
    k: int,
    crops: int,
    sharpness: float,
    ascending: bool,
) -> Tensor:
    """int64 `[B, k]` or `[k]` of float32 attention and scores, and bool, `[B, N]` or `[N]`."""
    attention, scores, valid = attention.contiguous(), scores.contiguous(), valid.contiguous()
    out = valid.new_empty((*valid.shape[:-1], k), dtype=torch.int64)
    module().best_of_crops(
        attention.data_ptr(),
        scores.data_ptr(),
        valid.data_ptr(),
        1 if valid.ndim == 1 else valid.shape[0],
        valid.shape[-1],
        crops,
        sharpness,
        k,
        ascending,
        out.data_ptr(),
    )
    return out
