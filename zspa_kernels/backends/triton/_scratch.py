# SPDX-License-Identifier: Apache-2.0
"""The memory a call works in: one allocation, cut into tensors."""

from __future__ import annotations

import functools
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
    words, places = _layout(tuple(plan.items()))
    memory = torch.empty(words, dtype=torch.int32, device=device)
    views: dict[torch.dtype, Tensor] = {}
    parts = {}
    for name, dtype, shape, strides, start in places:
        view = views.get(dtype)
        if view is None:
            view = views[dtype] = memory.view(dtype)
        # One operation a part: on a GPU an eager call waits for the host.
        parts[name] = view.as_strided(shape, strides, start)
    return parts


_Place = tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...], int]


@functools.lru_cache(maxsize=256)
def _layout(
    plan: tuple[tuple[str, tuple[torch.dtype, tuple[int, ...]]], ...],
) -> tuple[int, tuple[_Place, ...]]:
    """(int32 words in all, of each tensor the name, dtype, shape, strides and first element)."""
    places = []
    end = 0
    for name, (dtype, shape) in plan:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        places.append((name, dtype, tuple(shape), strides, end // dtype.itemsize))
        end += -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    return end // 4, tuple(places)
