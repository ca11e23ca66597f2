# SPDX-License-Identifier: Apache-2.0
"""The memory a call works in: one allocation, cut into tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ALIGNMENT = 128  # bytes; one cache line, and what Triton's kernels are specialised for

Plan = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def allocate(device: torch.device, plan: Plan) -> dict[str, Tensor]:
    """Uninitialised tensors of the dtypes and shapes of `plan`, in one allocation.

    It comes from torch's allocator, so it is ordered with the stream, may be captured in a graph,
    and goes back when the last of the tensors does.
    """
    starts = {}
    end = 0
    for name, (dtype, shape) in plan.items():
        starts[name] = end
        end += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    memory = torch.empty(end // 4, dtype=torch.int32, device=device)
    views: dict[torch.dtype, Tensor] = {}
    parts = {}
    for name, (dtype, shape) in plan.items():
        if dtype not in views:
            views[dtype] = memory.view(dtype)
        # One operation a part: on a GPU an eager call waits for the host.
        strides = [1]
        for size in shape[:0:-1]:
            strides.insert(0, strides[0] * size)
        start = starts[name] // dtype.itemsize
        parts[name] = views[dtype].as_strided(shape, strides, start)
    return parts
