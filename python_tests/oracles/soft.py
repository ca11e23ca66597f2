# SPDX-License-Identifier: Apache-2.0
"""Soft suppression: the highest score first, and lower scores for what is like it.

ID-Selection subtracts, AdaptPrune scales and looks at places as well. Scores begin on a grid and
are compared on it: of two that began alike, one that lost less than half a step ties.
"""

from __future__ import annotations

import math

from torch import Tensor

from .common import cosines, directed, padded, valid_tokens

_STEPS = 2.0**40


def soft_suppression(
    visual: Tensor,
    scores: Tensor,
    k: int,
    sharpness: float,
    rule: str = "subtract",
    positions: Tensor | None = None,
    spread: float = math.inf,
    reach: float = math.inf,
    mask: Tensor | None = None,
) -> list[int]:
    values = scores.double().tolist()
    tokens = [i for i in valid_tokens(visual, mask) if math.isfinite(values[i])]
    if rule == "scale":
        tokens = [i for i in tokens if values[i] >= 0]
    places = None if positions is None else positions.double().tolist()
    if places is not None:
        tokens = [i for i in tokens if all(map(math.isfinite, places[i]))]
    has_direction = directed(visual)
    c = cosines(visual.nan_to_num(0.0, 0.0, 0.0))

    def weight(i: int, j: int) -> float:
        if not (has_direction[i] and has_direction[j]):
            return 0.0
        w = math.exp(-sharpness * (1.0 - min(1.0, c[i][j])) ** 2)
        if places is None:
            return w
        square = sum((a - b) ** 2 for a, b in zip(places[i], places[j], strict=True))
        return w * math.exp(-square / (2 * spread**2)) if square <= reach**2 else 0.0

    largest = max((abs(values[i]) for i in tokens), default=0.0) or 1.0

    def steps(value: float) -> float:
        """Of 2**-40: of the largest score, or of logarithms where scores are multiplied."""
        if rule == "subtract":
            return round(value / largest * _STEPS)
        return round(math.log(value) * _STEPS) if value > 0 else -math.inf

    start = {i: steps(values[i]) for i in tokens}
    lost = dict.fromkeys(tokens, 0.0)
    picks: list[int] = []
    while len(picks) < k and start:
        left = {i: _whole(start[i] - lost[i]) for i in start}
        pick = min(left, key=lambda i: (-left[i], i))
        picks.append(pick)
        del start[pick]
        for j in start:
            w = weight(pick, j)
            if rule == "subtract":
                lost[j] += w * max(0.0, left[pick])
            else:
                lost[j] -= math.log1p(-w) * _STEPS if w < 1.0 else -math.inf
    return padded(picks, k)


def _whole(score: float) -> float:
    return round(score) if math.isfinite(score) else score
