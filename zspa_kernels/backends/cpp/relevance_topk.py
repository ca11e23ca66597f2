# SPDX-License-Identifier: Apache-2.0
"""Relevance and its top-k by the native kernels (csrc/cpu/relevance_topk.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import DTYPES, POOLINGS, address, batch


def relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
    pooling: str,
) -> tuple[Tensor, Tensor]:
    """(indices [B, k], scores [B, N]) of `[B, N, D]`."""
    B, N, _ = visual.shape
    indices = torch.empty((B, k), dtype=torch.int64, device=visual.device)
    scores = torch.empty((B, N), dtype=torch.float32, device=visual.device)
    module().relevance_topk(
        *batch(visual),
        address(visual_mask),
        prompt.data_ptr(),
        DTYPES[prompt.dtype],
        prompt.shape[1],
        prompt.stride(0),
        prompt.stride(1),
        address(prompt_mask),
        POOLINGS[pooling],
        k,
        torch.get_num_threads(),
        indices.data_ptr(),
        scores.data_ptr(),
    )
    return indices, scores
