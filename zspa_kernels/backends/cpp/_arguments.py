# SPDX-License-Identifier: Apache-2.0
"""How tensors are described to the native module; the numbers match csrc/."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # csrc/common/dtype.h
POOLINGS = {"mean": 0, "max": 1, "none_mean": 2, "none_max": 3}  # csrc/cpu/relevance_topk.h


def address(tensor: Tensor | None) -> int:
    """Where a contiguous tensor lies; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def slots(visual: Tensor, k: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """An empty `[B, k]` for tokens `[B, N, D]`, `[k]` for `[N, D]`."""
    # Sizes one by one: making a tuple of them costs a third of the allocation.
    if visual.ndim == 2:
        return visual.new_empty(k, dtype=dtype)
    return visual.new_empty(visual.shape[0], k, dtype=dtype)


def batch(x: Tensor) -> tuple[int, int, int, int, int, int, int]:
    """(address, dtype, B, N, D, batch stride, row stride) of `[B, N, D]` or `[N, D]`."""
    if x.ndim == 2:
        N, D = x.shape
        return x.data_ptr(), DTYPES[x.dtype], 1, N, D, 0, x.stride(0)
    B, N, D = x.shape
    stride_b, stride_n, _ = x.stride()
    return x.data_ptr(), DTYPES[x.dtype], B, N, D, stride_b, stride_n


def words(prompt: Tensor) -> tuple[int, int, int, int, int]:
    """(address, dtype, M, batch stride, row stride) of `[B, M, D]` or `[M, D]`."""
    start, dtype, _, M, _, stride_b, stride_m = batch(prompt)
    return start, dtype, M, stride_b, stride_m


def packed(x: Tensor, table: Tensor) -> tuple[int, int, int, int, int, int, int, int]:
    """The same of packed tokens `[T, D]`, with the address of their table of segments behind."""
    T, D = x.shape
    return x.data_ptr(), DTYPES[x.dtype], table.shape[0], T, D, 0, x.stride(0), table.data_ptr()
