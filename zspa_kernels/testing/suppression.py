# SPDX-License-Identifier: Apache-2.0
"""`suppress` and `soft_suppress` in float64, one token at a time.

Both decide in float64 on a grid of 2**-40, coarser than its rounding: there is one right answer,
and no tolerance.

Source: GreedyPrune (arXiv 2506.13166); ID-Selection (arXiv 2604.05601); AdaptPrune (arXiv
2503.08019).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .oracle import Geometry, first_best, padded

_GRID = 2.0**40


def _cosines(geometry: Geometry, token: int) -> Tensor:
    return (geometry.cosines(token) * _GRID).round() / _GRID


def suppress64(
    visual: Tensor,
    scores: Tensor,
    k: int,
    *,
    threshold: float,
    fill: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    """Tokens by falling score, none of which is too similar to one before, then those left out.

    Args:
        visual: `[N, D]`, any floating dtype.
        scores: `[N]`.
        k: how many.
        threshold: the largest cosine of two tokens taken.
        fill: whether tokens left out follow.
        mask: bool `[N]`.

    Returns:
        int64 `[k]`, then -1.
    """
    geometry = Geometry(visual, mask)
    values = scores.double()
    usable = geometry.valid & values.isfinite()
    limit = round(threshold * _GRID) / _GRID
    order = values.nan_to_num(0.0, 0.0, 0.0).neg().sort(stable=True).indices
    near = torch.zeros_like(usable)  # to a token taken
    taken: list[int] = []
    left: list[int] = []
    for i in order[usable[order]].tolist():
        if len(taken) == k:
            break
        if near[i]:
            left.append(i)
            continue
        taken.append(i)
        if geometry.directed[i]:
            near |= (_cosines(geometry, i) > limit) & geometry.directed
    return padded((taken + left if fill else taken)[:k], k)


def soft_suppress64(
    visual: Tensor,
    scores: Tensor,
    k: int,
    *,
    sharpness: float,
    rule: str = "subtract",
    positions: Tensor | None = None,
    spread: float = math.inf,
    reach: float = math.inf,
    mask: Tensor | None = None,
) -> Tensor:
    """The highest score each time; what is like the token taken has a lower one from then on.

    Args:
        visual: `[N, D]`, any floating dtype.
        scores: `[N]`.
        k: how many.
        sharpness: as in `soft_suppress`.
        rule: as in `soft_suppress`.
        positions: `[N, 2]`.
        spread: as in `soft_suppress`.
        reach: as in `soft_suppress`.
        mask: bool `[N]`.

    Returns:
        int64 `[k]`, then -1.
    """
    geometry = Geometry(visual, mask)
    values = scores.double()
    usable = geometry.valid & values.isfinite()
    if rule == "scale":
        usable &= values >= 0
    places = torch.zeros(geometry.n, 2, dtype=torch.float64)
    if positions is not None:
        places = positions.double()
        usable &= places.isfinite().all(-1)
    values = values.masked_fill(~usable, 0.0)
    largest = float(values.abs().amax()) if geometry.n else 1.0
    # Logarithms keep products that float64 does not. Both in steps of the grid.
    start = values.log() if rule == "scale" else values / (largest or 1.0)
    start = (start * _GRID).round()
    lost = torch.zeros_like(start)
    picks: list[int] = []
    while len(picks) < k and bool(usable.any()):
        score = (start - lost).round().clamp_min(-1e300)
        pick = first_best(-score, usable)
        picks.append(pick)
        usable[pick] = False
        if not geometry.directed[pick]:
            continue
        square = (places - places[pick]).square().sum(-1)
        weight = (-sharpness * (1.0 - _cosines(geometry, pick).clamp_max(1.0)).square()).exp()
        weight *= (square / (-2.0 * spread * spread)).exp() * (square <= reach * reach)
        weight *= geometry.directed
        if rule == "scale":
            lost -= (-weight).log1p() * _GRID
        else:
            lost += weight * score[pick].clamp_min(0.0)
    return padded(picks, k)
