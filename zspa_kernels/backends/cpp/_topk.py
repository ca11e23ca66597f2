# SPDX-License-Identifier: Apache-2.0
"""The tokens of the largest scores by the native kernel (csrc/cpu/topk.cpp), for primitives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import DTYPES, address

SCORES = {**DTYPES, torch.float64: 3}  # csrc/cpu/topk.h


def topk(
    scores: Tensor,
    k: int,
    mask: Tensor | None,
    forced: Tensor | None,
    ascending: bool,
    found: Tensor | None = None,
) -> Tensor:
    """int64 `[B, k]` or `[k]` of scores `[B, N]` or `[N]`, with a mask and forced ones likewise.

    `found`, bool and contiguous, receives which of them are tokens.
    """
    scores = scores.contiguous()
    mask = mask if mask is None else mask.contiguous()
    forced = forced if forced is None else forced.contiguous()
    shape = scores.shape
    B, N = (1, shape[0]) if len(shape) == 1 else shape
    out = slots(scores, k, torch.int64)
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
        address(found),
    )
    return out


def slots(scores: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """An empty `[B, k]` or `[k]` for scores `[B, N]` or `[N]`."""
    # Sizes one by one: the call is short, and a tuple of them costs as much as the kernel.
    if scores.ndim == 1:
        return scores.new_empty(k, dtype=dtype)
    return scores.new_empty(scores.shape[0], k, dtype=dtype)


def ascending(picks: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Picks `[B, K]` or `[K]` below `n`, ascending, then -1; and which are tokens."""
    picks = picks.contiguous()
    out, found = torch.empty_like(picks), torch.empty_like(picks, dtype=torch.bool)
    K = picks.shape[-1]
    B = picks.shape[0] if picks.ndim == 2 else 1
    module().ascending(picks.data_ptr(), B, K, n, out.data_ptr(), found.data_ptr())
    return out, found


def top_k_and_spaced(
    scores: Tensor, k: int, spaced: int, mask: Tensor | None, ascending: bool
) -> tuple[Tensor, Tensor]:
    """int64 and bool `[B, k]` or `[k]` of float32 scores `[B, N]` or `[N]`, mask likewise."""
    scores = scores.contiguous()
    mask = mask if mask is None else mask.contiguous()
    out, top = slots(scores, k, torch.int64), slots(scores, k, torch.bool)
    B, N = (1, len(scores)) if scores.ndim == 1 else scores.shape
    module().top_k_and_spaced(
        scores.data_ptr(), B, N, address(mask), k, spaced, ascending, out.data_ptr(), top.data_ptr()
    )
    return out, top
