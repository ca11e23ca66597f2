# SPDX-License-Identifier: Apache-2.0
"""Tokens around their mean by the native kernels (csrc/cpu/centred.cpp), for primitives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import address, batch, slots


def centred(visual: Tensor, mask: Tensor | None) -> Tensor:
    """float32, the shape of tokens `[B, N, D]` or `[N, D]`."""
    out = torch.empty(visual.shape, dtype=torch.float32, device=visual.device)
    module().centred(*batch(visual), address(mask), torch.get_num_threads(), out.data_ptr())
    return out


def distinctiveness(visual: Tensor, mask: Tensor | None) -> Tensor:
    """float32 `[B, N]` or `[N]` of tokens `[B, N, D]` or `[N, D]`."""
    out = torch.empty(visual.shape[:-1], dtype=torch.float32, device=visual.device)
    module().distinctiveness(*batch(visual), address(mask), torch.get_num_threads(), out.data_ptr())
    return out


def lengths(x: Tensor) -> Tensor:
    """float32 `[B, N]` or `[N]`: lengths of the rows of `[B, N, D]` or `[N, D]`."""
    out = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    module().lengths(*batch(x), torch.get_num_threads(), out.data_ptr())
    return out


def valid_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Bool `[B, N]` or `[N]`: rows of `[B, N, D]` or `[N, D]` that are not masked out."""
    out = slots(x, x.shape[-2], torch.bool)
    module().valid_rows(*batch(x), address(mask), torch.get_num_threads(), out.data_ptr())
    return out
