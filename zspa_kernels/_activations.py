# SPDX-License-Identifier: Apache-2.0
"""Activations of projectors: their values and derivatives, once, in plain PyTorch.

Every one but relu and identity is a gated identity `x * gate(x)`, so its derivative is
`gate(x) + x * gate'(x)`. The kernels have the same table in their own languages
(csrc/cpu/activations.h, backends/triton/_activations.py); tests compare them with this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# The saturated ends begin well inside: beyond, every derivative is 0 or 1 in float32, and the
# polynomials inside the gates would overflow.
_END = 80.0
_QUICK = 1.702  # QuickGELU's scale
_CUBE = 0.044715  # of the tanh approximation of GELU
_TWICE = 2.0 * math.sqrt(2.0 / math.pi)  # tanh(y) = 2 sigmoid(2 y) - 1


class Activation(NamedTuple):
    """An elementwise function and its derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


def _gated(gate: Callable[[Tensor], Tensor], gate_slope: Callable[[Tensor], Tensor]) -> Activation:
    def value(x: Tensor) -> Tensor:
        return x * gate(x.clamp(-_END, _END))

    def slope(x: Tensor) -> Tensor:
        x = x.clamp(-_END, _END)
        return gate(x) + x * gate_slope(x)

    return Activation(value, slope)


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _normal_cdf(x: Tensor) -> Tensor:
    cdf: Tensor = torch.special.ndtr(x)
    return cdf


def _normal_pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) * math.sqrt(0.5 / math.pi)


ACTIVATIONS: dict[str, Activation] = {
    "gelu": _gated(_normal_cdf, _normal_pdf),
    "gelu_tanh": _gated(
        lambda x: torch.sigmoid(_TWICE * (x + _CUBE * x**3)),
        lambda x: (
            _sigmoid_slope(_TWICE * (x + _CUBE * x**3)) * (_TWICE * (1.0 + 3.0 * _CUBE * x * x))
        ),
    ),
    "quick_gelu": _gated(
        lambda x: torch.sigmoid(_QUICK * x), lambda x: _QUICK * _sigmoid_slope(_QUICK * x)
    ),
    "silu": _gated(torch.sigmoid, _sigmoid_slope),
    # As in PyTorch, the derivative of relu at 0 is 0.
    "relu": Activation(torch.relu, lambda x: torch.where(x.isnan(), x, (x > 0).to(x.dtype))),
    "identity": Activation(lambda x: x, lambda x: torch.where(x.isnan(), x, torch.ones_like(x))),
}
NAMES = tuple(ACTIVATIONS)
