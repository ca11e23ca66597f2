# SPDX-License-Identifier: Apache-2.0
"""What primitives and methods look at an image with, and how they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._native import reason
from .._ops.implementation import contiguous, dense, recorded
from ..backends._blas import full_float32
from ..backends.cpp import _centred
from ..backends.reference._common import on_grid
from ._exact import ROWS, SHORTEST, Image, images, padded
from ._exact import lengths as _lengths

__all__ = [
    "ROWS",
    "SHORTEST",
    "Image",
    "contiguous",
    "images",
    "in_full_precision",
    "lengths",
    "native",
    "on_grid",
    "padded",
    "plain",
    "readable",
    "undisturbed",
]

_PLAIN = (Tensor, torch.nn.Parameter)
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

_F = TypeVar("_F", bound=Callable[..., Any])


def undisturbed(function: _F, products: bool = False) -> _F:
    """No gradient and no autocast, on the first argument's device; `products`: no lower precision.

    That of products is a setting of the process, which cannot be traced.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else next(iter(kwargs.values()), None)
        device = torch.device("cpu")
        if isinstance(x, Tensor) and not x.is_meta:
            device = x.device
        # Making the context of autocast costs more than the rest.
        autocast = torch.is_autocast_enabled(device.type)
        quiet = torch.autocast(device.type, enabled=False) if autocast else nullcontext()
        with torch.no_grad(), quiet, full_float32(device) if products else nullcontext():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def in_full_precision(function: _F) -> _F:
    """`undisturbed`, and float32 products in float32."""
    return undisturbed(function, products=True)


def readable(x: Tensor) -> bool:
    """Whether values of `x` are there to be looked at, at no cost: not traced, and on a CPU."""
    return not torch.compiler.is_compiling() and not recorded() and _has_values(x)


def _has_values(x: Tensor) -> bool:
    return type(x) in _PLAIN and x.is_cpu and not _is_wrapped(x) and not x._is_zerotensor()


def native(*tensors: Tensor | None, float64: bool = False) -> bool:
    """Whether native kernels, of `float64` or not, can take these: a traced tensor is for torch."""
    # Compiling comes before anything that cannot be traced.
    if torch.compiler.is_compiling() or recorded() or reason() is not None:
        return False
    for x in tensors:
        if x is None:
            continue
        if not _has_values(x) or x.is_neg() or (x.dtype is torch.float64 and not float64):
            return False
    return True


def lengths(x: Tensor) -> Tensor:
    """float32 `[B, N]` or `[N]`: lengths of rows, infinite or NaN for those that have none."""
    return _centred.lengths(plain(x)) if native(x) else _lengths(x)


def plain(x: Tensor) -> Tensor:
    """Tokens as native kernels take them: without a gradient, with a last axis of stride 1."""
    return dense(x.detach())
