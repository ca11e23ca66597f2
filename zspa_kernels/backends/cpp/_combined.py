# SPDX-License-Identifier: Apache-2.0
"""A core and what was picked beside it by the native kernel (csrc/cpu/combined.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module


def combined(core: Tensor, picks: Tensor, k: int, ascending: bool) -> tuple[Tensor, Tensor]:
    """int64 and bool `[B, k]` or `[k]` of a core `[B, R]` or `[R]` and picks `[B, P]` or `[P]`."""
    core, picks = core.contiguous(), picks.contiguous()
    shape = (*core.shape[:-1], k)
    out, in_core = core.new_empty(shape), core.new_empty(shape, dtype=torch.bool)
    module().combined(
        core.data_ptr(),
        1 if core.ndim == 1 else core.shape[0],
        core.shape[-1],
        picks.data_ptr(),
        picks.shape[-1],
        k,
        ascending,
        out.data_ptr(),
        in_core.data_ptr(),
    )
    return out, in_core
