# SPDX-License-Identifier: Apache-2.0
"""Norms and cosines to a few rows by the native kernels (csrc/cpu/pivots.cpp), for primitives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._native import module
from ._arguments import batch


def absolute_sums(x: Tensor) -> Tensor:
    """float32 `[B, N]` or `[N]` of rows `[B, N, D]` or `[N, D]`."""
    out = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    module().absolute_sums(*batch(x), torch.get_num_threads(), out.data_ptr())
    return out


def cosines_to(x: Tensor, pivots: Tensor) -> Tensor:
    """float64 `[B, P, N]` of rows `[B, N, D]` and float64 ones `[B, P, D]` of length 1; or no B."""
    pivots = pivots.contiguous()
    out = pivots.new_empty(*pivots.shape[:-1], x.shape[-2])
    threads = torch.get_num_threads()
    module().cosines_to(*batch(x), pivots.data_ptr(), pivots.shape[-2], threads, out.data_ptr())
    return out
