# SPDX-License-Identifier: Apache-2.0
"""Relevance and its top-k by the native kernels (csrc/cpu/relevance_topk.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import POOLINGS, address, batch, slots, words


def relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
    pooling: str,
) -> tuple[Tensor, Tensor]:
    """(indices [B, k], scores [B, N]) of `[B, N, D]`, or those of `[N, D]`."""
    indices, scores = slots(visual, k), slots(visual, visual.shape[-2], torch.float32)
    module().relevance_topk(
        *batch(visual),
        address(visual_mask),
        *words(prompt),
        address(prompt_mask),
        POOLINGS[pooling],
        k,
        torch.get_num_threads(),
        indices.data_ptr(),
        scores.data_ptr(),
    )
    return indices, scores


def word_cosines(
    visual: Tensor, prompt: Tensor, visual_mask: Tensor | None, prompt_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(cosines [B, M, N], valid tokens [B, N], real words [B, M]) of `[B, N, D]` and `[B, M, D]`.

    Or all without the axis B. For primitives.
    """
    N, M = visual.shape[-2], prompt.shape[-2]
    cosines = visual.new_empty(*prompt.shape[:-1], N, dtype=torch.float32)
    valid, real = slots(visual, N, torch.bool), slots(visual, M, torch.bool)
    module().word_cosines(
        *batch(visual),
        address(visual_mask),
        *words(prompt),
        address(prompt_mask),
        torch.get_num_threads(),
        cosines.data_ptr(),
        valid.data_ptr(),
        real.data_ptr(),
    )
    return cosines, valid, real
