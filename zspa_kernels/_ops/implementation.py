# SPDX-License-Identifier: Apache-2.0
"""What the implementations of all ops share: ambient state, the backend, its arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import dispatch

_F = TypeVar("_F", bound=Callable[..., Any])
_modes = torch._C._len_torch_dispatch_stack
_mode = torch._C._get_dispatch_mode
_RECORDING = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE)
_Maybe = TypeVar("_Maybe", Tensor, Tensor | None)


def undisturbed(implementation: _F) -> _F:
    """Grad mode and autocast off: selection has no derivative and rounds to no other dtype."""

    @functools.wraps(implementation)
    def call(visual: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The device is asked for without a check: whether `visual` is a tensor is the contract's.
        device = "cuda" if getattr(visual, "is_cuda", False) else "cpu"
        grad, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled(device)
        if grad:
            torch._C._set_grad_enabled(False)
        if autocast:
            torch.set_autocast_enabled(device, False)
        try:
            return implementation(visual, *args, **kwargs)
        finally:
            if grad:
                torch._C._set_grad_enabled(True)
            if autocast:
                torch.set_autocast_enabled(device, True)

    return call  # type: ignore[return-value]


def backend_of(name: str, op: str, visual: Tensor) -> Callable[..., Any]:
    if name == "auto":
        return dispatch.choose(op, visual.device)
    return dispatch.named(name, op, visual.device)


def dense(x: _Maybe) -> _Maybe:
    """Tokens with a last axis of stride 1, or of one channel, whose stride nobody asks for."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def contiguous(x: Tensor | None) -> Tensor | None:
    """A mask, weights, seeds or a bias, if there is one."""
    return None if x is None else x.contiguous()


def recorded() -> bool:
    """Whether torch makes a graph of its calls, or fakes them: it does not see native ones."""
    if torch._C._get_tracing_state() is not None:
        return True
    return _modes() > 0 and any(_mode(key) is not None for key in _RECORDING)
