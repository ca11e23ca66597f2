# SPDX-License-Identifier: Apache-2.0
"""`torch.vmap` over an op is one call of it: the mapped axis becomes the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def batching_rule(op: str, contract: Callable[..., Any]) -> Callable[..., Any]:
    """What `torch.library.register_vmap` takes, for an op whose first argument is its tokens.

    Where the tokens of one example are a batch already (`[B, N, D]`, or vmap within vmap), both
    axes are one for the call. Tensors that are not mapped serve all examples.

    Args:
        op: name of the op.
        contract: its rules; they see one example, so that errors are about the caller's shapes.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        one = [x if d is None else _example(x, d) for x, d in zip(args, in_dims, strict=True)]
        contract(*one)
        batch = () if one[0].ndim == 2 else (one[0].shape[0],)
        together = [
            _together(x, d, info.batch_size, batch) if isinstance(x, Tensor) else x
            for x, d in zip(args, in_dims, strict=True)
        ]
        result = getattr(torch.ops.zspa, op)(*together)
        if isinstance(result, tuple):
            return tuple(_apart(x, info.batch_size, batch) for x in result), (0,) * len(result)
        return _apart(result, info.batch_size, batch), 0

    return rule


def _example(x: Tensor, dim: int) -> Tensor:
    """One of those that `x` is mapped over; if there is none, what one would be like."""
    return x.select(dim, 0) if x.shape[dim] else x.new_empty(x.shape[:dim] + x.shape[dim + 1 :])


def _together(x: Tensor, dim: int | None, size: int, batch: tuple[int, ...]) -> Tensor:
    """All examples of `x`, mapped over `dim`, along one axis: that of a batch."""
    x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.flatten(0, 1) if batch else x


def _apart(x: Tensor, size: int, batch: tuple[int, ...]) -> Tensor:
    result: Tensor = x.unflatten(0, (size, *batch))
    return result
