# SPDX-License-Identifier: Apache-2.0
"""GreedyPrune: scan by saliency, leave out what is too similar to a token taken before."""

from __future__ import annotations

import math

from torch import Tensor

from .common import by_score, cosines, directed, padded, valid_tokens


def greedyprune(
    visual: Tensor,
    saliency: Tensor,
    k: int,
    threshold: float,
    fill: bool = True,
    mask: Tensor | None = None,
) -> list[int]:
    values = saliency.double().tolist()
    tokens = [i for i in valid_tokens(visual, mask) if math.isfinite(values[i])]
    has_direction = directed(visual)
    c = cosines(visual.nan_to_num(0.0, 0.0, 0.0))
    taken: list[int] = []
    left: list[int] = []
    for i in by_score((values[i], i) for i in tokens):
        close = any(has_direction[i] and has_direction[j] and c[i][j] > threshold for j in taken)
        (left if close else taken).append(i)
    picks = taken[:k]
    if fill:
        picks += left[: k - len(picks)]
    return padded(picks, k)
