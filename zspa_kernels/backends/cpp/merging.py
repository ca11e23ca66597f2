# SPDX-License-Identifier: Apache-2.0
"""Assigning, matching and merging by the native kernels (csrc/cpu/merging.cpp), for primitives.

All take and return batches, or, except `merge`, one image: everything without the axis B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch


def assign(features: Tensor, kept: Tensor, mask: Tensor | None) -> Tensor:
    """Slots of `kept` `[B, K]` for the tokens of `features` `[B, N, C]`: int64 `[B, N]`."""
    owner = torch.empty(features.shape[:-1], dtype=torch.int64, device=features.device)
    module().assign(
        *batch(features),
        address(mask),
        kept.data_ptr(),
        kept.shape[-1],
        torch.get_num_threads(),
        owner.data_ptr(),
    )
    return owner


def groups(
    features: Tensor, indices: Tensor, core: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Owners int64 and weights float32 `[B, N]`; kept tokens and which are core `[B, K]`."""
    owner = torch.empty(features.shape[:-1], dtype=torch.int64, device=features.device)
    weights = torch.empty(features.shape[:-1], dtype=torch.float32, device=features.device)
    module().groups(
        *batch(features),
        address(mask),
        indices.data_ptr(),
        core.data_ptr(),
        indices.shape[-1],
        torch.get_num_threads(),
        owner.data_ptr(),
        weights.data_ptr(),
    )
    return owner, weights


def until_novel(features: Tensor, ranked: Tensor, least: int, limit: float, patience: int) -> None:
    """Ends the ranks `[B, R]` of rows `[B, N, C]` with the last novel one, then -1; in place."""
    module().until_novel(
        *batch(features),
        ranked.data_ptr(),
        ranked.shape[-1],
        least,
        limit,
        patience,
        torch.get_num_threads(),
    )


def match(features: Tensor, k: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Heads int64 `[B, k]` and owners int64 `[B, N]` of `features` `[B, N, C]`."""
    heads = torch.empty((*features.shape[:-2], k), dtype=torch.int64, device=features.device)
    owner = torch.empty(features.shape[:-1], dtype=torch.int64, device=features.device)
    module().match(
        *batch(features),
        address(mask),
        k,
        torch.get_num_threads(),
        heads.data_ptr(),
        owner.data_ptr(),
    )
    return heads, owner


def merge(x: Tensor, owner: Tensor, k: int, weights: Tensor | None) -> Tensor:
    """Sums float32 `[B, k, D]` of rows `[B, N, D]`; owner `[B, N]`, weights float32 `[B, N]`."""
    out = torch.empty((len(x), k, x.shape[2]), dtype=torch.float32, device=x.device)
    module().merge(
        *batch(x), owner.data_ptr(), address(weights), k, torch.get_num_threads(), out.data_ptr()
    )
    return out
