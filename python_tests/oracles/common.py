# SPDX-License-Identifier: Apache-2.0
"""What the readings of the formulas share: valid tokens, cosines, and order by (score, index)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def valid_tokens(visual: Tensor, mask: Tensor | None = None) -> list[int]:
    """Tokens that are not masked, finite and not longer than 2**40."""
    squares = visual.double().square().sum(-1).tolist()
    masked = [True] * len(squares) if mask is None else mask.tolist()
    return [i for i, q in enumerate(squares) if masked[i] and q <= 2.0**80]


def directed(visual: Tensor) -> list[bool]:
    """Whether each token has a direction."""
    return [q >= 2.0**-80 for q in visual.double().square().sum(-1).tolist()]


def cosines(x: Tensor) -> list[list[float]]:
    """All cosines, 0 with rows that have no direction; equal ones are equal to the last bit."""
    rows = x.double()
    length = [math.sqrt(q) if q >= 2.0**-80 else math.inf for q in (rows * rows).sum(-1).tolist()]
    dots = [[float((a * b).sum()) for b in rows] for a in rows]
    n = range(len(rows))
    return [[round(dots[i][j] / (length[i] * length[j]), 12) for j in n] for i in n]


def by_score(scores: Iterable[tuple[float, int]]) -> list[int]:
    """Indices by falling score; ties by rising index."""
    return [i for _, i in sorted(scores, key=lambda pair: (-pair[0], pair[1]))]


def padded(picks: list[int], k: int) -> list[int]:
    """The picks, then -1."""
    return picks + [-1] * (k - len(picks))
