# SPDX-License-Identifier: Apache-2.0
"""Distances to the text by the native kernels (csrc/cpu/alignment.cpp), for primitives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch, words


def alignment(
    visual: Tensor, prompt: Tensor, visual_mask: Tensor | None, prompt_mask: Tensor | None
) -> Tensor:
    """float64 `[B, N]` of tokens `[B, N, D]` and text `[B, M, D]`, or all without B."""
    out = torch.empty(visual.shape[:-1], dtype=torch.float64, device=visual.device)
    module().alignment(
        *batch(visual),
        address(visual_mask),
        *words(prompt),
        address(prompt_mask),
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out
