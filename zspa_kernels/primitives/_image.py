# SPDX-License-Identifier: Apache-2.0
"""What primitives and methods look at an image with, and how they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._native import reason
from ..backends._blas import full_float32
from ..backends.reference._image import LONGEST, ROWS, SHORTEST, Image, images, lengths, padded

__all__ = [
    "LONGEST",
    "ROWS",
    "SHORTEST",
    "Image",
    "as_batch",
    "images",
    "lengths",
    "native",
    "padded",
    "readable",
    "undisturbed",
]

_PLAIN = (Tensor, torch.nn.Parameter)

_F = TypeVar("_F", bound=Callable[..., Any])


def undisturbed(function: _F) -> _F:
    """No gradient, no autocast, and float32 products in float32, on the first argument's device."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()), None)
        device = x.device if isinstance(x, Tensor) else torch.device("cpu")
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            full_float32(device),
        ):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def readable(x: Tensor) -> bool:
    """Whether values of `x` are there to be looked at, at no cost: not traced, and on a CPU."""
    return not torch.compiler.is_compiling() and _has_values(x)


def _has_values(x: Tensor) -> bool:
    return type(x) in _PLAIN and x.is_cpu and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def native(*tensors: Tensor | None, float64: bool = False) -> bool:
    """Whether native kernels, of `float64` or not, can take these: a traced tensor is for torch."""
    # Compiling comes before anything that cannot be traced.
    if torch.compiler.is_compiling() or reason() is not None:
        return False
    for x in tensors:
        if x is None:
            continue
        if not _has_values(x) or x.is_neg() or (x.dtype is torch.float64 and not float64):
            return False
    return True


def as_batch(x: Tensor) -> Tensor:
    """`[B, N, C]` whose last axis has stride 1, from tokens with or without a batch axis."""
    x = x.detach()
    if x.stride(-1) != 1:
        x = x.clone(memory_format=torch.contiguous_format)
    return x if x.ndim == 3 else x.unsqueeze(0)
