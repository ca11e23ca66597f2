# SPDX-License-Identifier: Apache-2.0
"""Soft suppression: the highest score first, and lower scores for what is like it.

ID-Selection subtracts, AdaptPrune scales and looks at places as well.
"""

from __future__ import annotations

import math

from torch import Tensor

from .common import cosines, directed, padded, valid_tokens


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
    left = {i: values[i] / largest for i in tokens}
    picks: list[int] = []
    while len(picks) < k and left:
        key = {i: (-_digits(s, rule), i) for i, s in left.items()}
        pick = min(left, key=key.__getitem__)
        score = max(0.0, left.pop(pick))
        picks.append(pick)
        for j in left:
            w = weight(pick, j)
            left[j] = left[j] - w * score if rule == "subtract" else left[j] * (1.0 - w)
    return padded(picks, k)


def _digits(score: float, rule: str) -> float:
    """Twelve digits of the largest score, or of this one by the rule that multiplies."""
    if rule == "subtract":
        return round(score * 2.0**40)
    return round(math.log(score) * 2.0**40) if score > 0 else -math.inf
