# SPDX-License-Identifier: Apache-2.0
"""The whole selection in one native call (csrc/cpu/problem.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import POOLINGS, address, batch, packed, slots, words

# Address, dtype, M, strides of an absent prompt.
_NO_PROMPT = (0, 0, 0, 0, 0)


def select(
    visual: Tensor,
    prompt: Tensor | None,
    k_core: int,
    k_diverse: int,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
    pooling: str,
    sorted: bool,
    stats: Tensor | None = None,
) -> Tensor:
    """Indices `[B, k_core + k_diverse]` of `[B, N, D]`, or those of `[N, D]`.

    `stats` as in `diversity`.
    """
    indices = slots(visual, k_core + k_diverse)
    text = _NO_PROMPT if prompt is None else words(prompt)
    module().select(
        *batch(visual),
        0,
        address(visual_mask),
        *text,
        0,
        address(prompt_mask),
        POOLINGS[pooling],
        k_core,
        k_diverse,
        indices.numel(),
        sorted,
        torch.get_num_threads(),
        indices.data_ptr(),
        address(stats),
    )
    return indices


def select_varlen(
    visual: Tensor,
    table: Tensor,
    prompt: Tensor | None,
    prompt_spans: Tensor | None,
    total_k: int,
    pooling: str,
    sorted: bool,
) -> Tensor:
    """Indices `[total_k]` into packed tokens `[T, D]`, segment by segment."""
    indices = slots(visual, total_k)
    text = _NO_PROMPT if prompt is None else words(prompt)
    module().select(
        *packed(visual, table),
        0,
        *text,
        address(prompt_spans),
        0,
        POOLINGS[pooling],
        0,
        0,
        total_k,
        sorted,
        torch.get_num_threads(),
        indices.data_ptr(),
        0,
    )
    return indices
