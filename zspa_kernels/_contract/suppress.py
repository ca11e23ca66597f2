# SPDX-License-Identifier: Apache-2.0
"""The rules about arguments of suppression."""

from __future__ import annotations

import math

from torch import Tensor

from . import primitives as _rules
from .tensors import Shape
from .values import option

RULES = ("subtract", "scale")


def suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    threshold: float,
    fill: bool = True,
    visual_mask: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::suppress`."""
    batch = _rules.visual("suppress", visual, visual_mask, k)
    _rules.per_token("suppress", "scores", scores, visual)
    _rules.number("suppress", "threshold", threshold, -1.0, 1.0)
    return (*batch, k)


def soft_suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    sharpness: float,
    rule: str = "subtract",
    positions: Tensor | None = None,
    spread: float | None = None,
    reach: float | None = None,
    visual_mask: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::soft_suppress`; no spread and no reach are infinite ones."""
    op = "soft_suppress"
    batch = _rules.visual(op, visual, visual_mask, k)
    _rules.per_token(op, "scores", scores, visual)
    _rules.number(op, "sharpness", sharpness, 1e-100, 1e100)
    option(op, "rule", rule, RULES)
    if positions is not None:
        _rules.positions(op, "positions", positions, visual)
    for name, limit, least in (("spread", spread, 1e-100), ("reach", reach, 0.0)):
        if limit is None:
            continue
        if _rules.number(op, name, limit, least, math.inf) < math.inf and positions is None:
            raise TypeError(f"{op}: positions must be given with a finite {name}, got None")
    return (*batch, k)
