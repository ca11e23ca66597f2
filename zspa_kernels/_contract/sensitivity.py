# SPDX-License-Identifier: Apache-2.0
"""The rules about arguments of the sensitivity ops.

Each function returns the shape of the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._activations import NAMES as ACTIVATIONS
from .tensors import Shape, holds_values, tokens, visual_tokens
from .values import axes, option, ratio, tensor


def sensitivity(
    features: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    activation: str,
    directions: Tensor,
    radius: float = 0.01,
) -> Shape:
    """Rules of `zspa::sensitivity`."""
    op = "sensitivity"
    shape = _rows(op, "features", features)
    hidden = _first_layer(op, features, w1, b1)
    _matrix(op, "w2", w2, features, "O", "H", hidden)
    option(op, "activation", activation, ACTIVATIONS)
    _matrix(op, "directions", directions, features, "m", "D", features.shape[-1])
    ratio(op, "radius", radius)
    return shape


def sensitivity_hidden(
    preactivation: Tensor, w2: Tensor, activation: str, shifts: Tensor, radius: float = 0.01
) -> Shape:
    """Rules of `zspa::sensitivity_hidden`."""
    op = "sensitivity_hidden"
    shape = _rows(op, "preactivation", preactivation)
    hidden = preactivation.shape[-1]
    _matrix(op, "w2", w2, preactivation, "O", "H", hidden)
    option(op, "activation", activation, ACTIVATIONS)
    _matrix(op, "shifts", shifts, preactivation, "m", "H", hidden)
    ratio(op, "radius", radius)
    return shape


def sensitivity_rms(
    features: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    factor: Tensor,
    activation: str,
    diagonal: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::sensitivity_rms`."""
    op = "sensitivity_rms"
    shape = _rows(op, "features", features)
    hidden = _first_layer(op, features, w1, b1)
    _form(op, features, factor, diagonal, hidden)
    option(op, "activation", activation, ACTIVATIONS)
    return shape


def sensitivity_rms_hidden(
    preactivation: Tensor, factor: Tensor, activation: str, diagonal: Tensor | None = None
) -> Shape:
    """Rules of `zspa::sensitivity_rms_hidden`."""
    op = "sensitivity_rms_hidden"
    shape = _rows(op, "preactivation", preactivation)
    _form(op, preactivation, factor, diagonal, preactivation.shape[-1])
    option(op, "activation", activation, ACTIVATIONS)
    return shape


def projector(
    op: str, w1: Tensor, b1: Tensor | None, w2: Tensor, activation: str
) -> tuple[int, int]:
    """Rules of a projector's weights; returns (D, H)."""
    d, hidden = linear(op, w1, b1)
    _matrix(op, "w2", w2, w1, "O", "H", hidden)
    option(op, "activation", activation, ACTIVATIONS)
    return d, hidden


def linear(op: str, w1: Tensor, b1: Tensor | None) -> tuple[int, int]:
    """Rules of its first layer, which may be all of it; returns (D, H)."""
    tensor(op, "w1", w1)
    d = w1.shape[-1] if w1.ndim else 0
    _matrix(op, "w1", w1, w1, "H", "D", d)
    if (d < 1) is True:
        raise ValueError(f"{op}: w1 must have D >= 1, got {axes(w1)}")
    if b1 is not None:
        _vector(op, "b1", b1, w1, w1.shape[0])
    return d, w1.shape[0]


def second_bias(op: str, b2: Tensor, w2: Tensor) -> None:
    """Rules of the bias of a projector's second layer."""
    _vector(op, "b2", b2, w2, w2.shape[0], "O")


def features(op: str, x: Tensor, w1: Tensor) -> None:
    """Rules of a projector's features, but for their shape, beside its weights `w1`."""
    tokens(op, "features", x)
    holds_values(op, "features", x)
    _beside(op, "features", x, w1)


def movable(op: str, name: str, x: Tensor) -> None:
    """`x` can be brought to another device."""
    tensor(op, name, x)
    holds_values(op, name, x)


def directions(op: str, x: Tensor, w1: Tensor) -> None:
    """Rules of directions beside the weights `w1` `[H, D]`."""
    _matrix(op, "directions", x, w1, "m", "D", w1.shape[-1])


def finite(op: str, name: str, x: Tensor) -> None:
    """No element of the weights `x` may be NaN or infinite; looks at them, so it synchronises."""
    bad = x.numel() - int(torch.isfinite(x).sum())
    if bad:
        raise ValueError(f"{op}: {name} must be finite, got {bad} elements that are not")


# ---- the rules they share -----------------------------------------------------------------------


def _rows(op: str, name: str, x: Tensor) -> Shape:
    """Check tokens `[N, D]` or `[B, N, D]`; return their shape without D."""
    batch, n = visual_tokens(op, x, None, name)
    return (*batch, n)


def _first_layer(op: str, features: Tensor, w1: Tensor, b1: Tensor | None) -> int:
    """Check the first layer beside its input; return H."""
    _matrix(op, "w1", w1, features, "H", "D", features.shape[-1])
    if b1 is not None:
        _vector(op, "b1", b1, features, w1.shape[0])
    return w1.shape[0]


def _form(op: str, like: Tensor, factor: Tensor, diagonal: Tensor | None, hidden: int) -> None:
    """Check the factor of a quadratic form and the diagonal beside it."""
    _matrix(op, "factor", factor, like, "R", "H", hidden, minimum=0)
    if diagonal is not None:
        _vector(op, "diagonal", diagonal, like, hidden)


def _matrix(
    op: str, name: str, x: Tensor, like: Tensor, rows: str, columns: str, n: int, minimum: int = 1
) -> None:
    """A float matrix of `n` columns and at least `minimum` rows, on the device of `like`."""
    tokens(op, name, x)
    if x.ndim != 2 or (x.shape[1] != n) is True:
        raise ValueError(f"{op}: {name} must be [{rows}, {columns}={n}], got {axes(x)}")
    if (x.shape[0] < minimum) is True:
        raise ValueError(f"{op}: {name} must have {rows} >= {minimum}, got {axes(x)}")
    _beside(op, name, x, like)


def _vector(op: str, name: str, x: Tensor, like: Tensor, n: int, axis: str = "H") -> None:
    tokens(op, name, x)
    if x.ndim != 1 or (x.shape[0] != n) is True:
        raise ValueError(f"{op}: {name} must be [{axis}={n}], got {axes(x)}")
    _beside(op, name, x, like)


def _beside(op: str, name: str, x: Tensor, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device}, got {x.device}")
