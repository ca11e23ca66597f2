# SPDX-License-Identifier: Apache-2.0
"""Tokens that crops or pivots take a share of, by the native kernels (csrc/cpu/sharing.cpp)."""

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


def in_turns(similar: Tensor, total: int, live: Tensor, free: Tensor) -> Tensor:
    """int64 `[B, total]` of float64 `[B, P, N]`, int64 `[B, 1]`, bool `[B, N]`; or without B."""
    similar, live, free = similar.contiguous(), live.contiguous(), free.contiguous()
    out = live.new_empty((*free.shape[:-1], total))
    module().in_turns(
        similar.data_ptr(),
        1 if free.ndim == 1 else free.shape[0],
        similar.shape[-2],
        free.shape[-1],
        live.data_ptr(),
        free.data_ptr(),
        total,
        out.data_ptr(),
    )
    return out
