# SPDX-License-Identifier: Apache-2.0
"""Pivots and what each resembles least by the native kernel (csrc/cpu/pivots.cpp), for DART."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch, slots, words

_NOTHING = (0, 0, 0, 0, 0)


def by_pivots(
    visual: Tensor,
    k: int,
    pivots: int,
    text_pivots: int,
    ascending: bool,
    keys: Tensor | None,
    prompt: Tensor | None,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """int64 and bool `[B, k]`, float32 norms `[B, N]`; or all without B."""
    tokens = batch(visual)
    norms = slots(visual, tokens[3], torch.float32)
    out, in_core = slots(visual, k), slots(visual, k, torch.bool)
    measured = _NOTHING
    if keys is not None:
        start, dtype, _, _, C, stride_b, stride_n = batch(keys)
        measured = (start, dtype, C, stride_b, stride_n)
    module().by_pivots(
        *tokens,
        address(visual_mask),
        *measured,
        *(_NOTHING if prompt is None else words(prompt)),
        address(prompt_mask),
        pivots,
        text_pivots,
        k,
        ascending,
        torch.get_num_threads(),
        norms.data_ptr(),
        out.data_ptr(),
        in_core.data_ptr(),
    )
    return out, in_core, norms
