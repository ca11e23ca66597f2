# SPDX-License-Identifier: Apache-2.0
"""VisPruner: tokens by attention; of the others even places are compared with odd ones."""

from __future__ import annotations

import math

from torch import Tensor

from .common import by_score, cosines, directed, padded, valid_tokens


def thinned(
    features: Tensor, scores: Tensor, k: int, step: int = 8, mask: Tensor | None = None
) -> list[int]:
    """The last line."""
    values = scores.double().tolist()
    tokens = [i for i in valid_tokens(features, mask) if math.isfinite(values[i])]
    has_direction = directed(features)
    c = cosines(features.nan_to_num(0.0, 0.0, 0.0))
    line = by_score((values[i], i) for i in tokens)
    while k and len(line) > k:
        even, odd = line[::2], line[1::2]
        rated = [
            max((c[i][j] for j in odd if has_direction[j]), default=-2.0)
            if has_direction[i]
            else 2.0
            for i in even
        ]
        order = by_score(zip(rated, range(len(even)), strict=True))
        line = [even[place] for place in order][min(step, len(line) - k) :] + odd
    return padded(line if k else [], k)


def vispruner(
    features: Tensor,
    attention: Tensor,
    k: int,
    important: float = 0.5,
    step: int = 8,
    mask: Tensor | None = None,
) -> tuple[list[int], list[int]]:
    """The important tokens, and the others."""
    values = attention.double().tolist()
    tokens = [i for i in valid_tokens(features, mask) if math.isfinite(values[i])]
    core = by_score((values[i], i) for i in tokens)[: int(k * important)]
    rest = attention.double().clone()
    rest[core] = math.nan
    others = thinned(features, rest, k - int(k * important), step, mask)
    return core, [i for i in others if i >= 0]
