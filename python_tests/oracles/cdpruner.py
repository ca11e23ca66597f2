# SPDX-License-Identifier: Apache-2.0
"""CDPruner: relevance times the part of a token outside the span of the picks, pick by pick."""

from __future__ import annotations

import torch
from torch import Tensor

from .common import cosines, directed, valid_tokens

#: In float32 a residual below this is 0.
_DEPENDENT = 2.0**-16


def weights_of(
    image: Tensor, text: Tensor, tokens: list[int], sign: float, flat: float = 4e-6
) -> dict[int, float]:
    """Mean cosine with the text, times `sign`, scaled to [0, 1]; all 1 where they are equal."""
    words = [row for row in text.double() if float(row.square().sum()) <= 2.0**80]
    relevance = {}
    for i in tokens:
        row, total = image[i].double(), 0.0
        for word in words:
            length = float(row.norm() * word.norm())
            total += float((row * word).sum()) / length if length > 0 else 0.0
        relevance[i] = sign * total / max(1, len(words))
    low, high = min(relevance.values()), max(relevance.values())
    if high - low <= flat * max(abs(low), abs(high)):
        return dict.fromkeys(tokens, 1.0)
    return {i: (r - low) / (high - low) for i, r in relevance.items()}


def check_cdpruner(visual: Tensor, picks: list[int], weights: dict[int, float]) -> int:
    """Replay the picks; returns how many of them had only one right answer.

    The residual of a token is `1 - c' C^-1 c`, solved anew at every pick. A float32 cosine is off
    by 1e-6, and a chain of eliminations by as much again: to first order the residual by that times
    `(1 + |C^-1 c|_1)^2`.
    """
    tokens = [i for i in valid_tokens(visual) if i in weights]
    c = torch.tensor(cosines(visual.nan_to_num(0.0, 0.0, 0.0)), dtype=torch.float64)
    has_direction = directed(visual)
    decided = 0
    basis: list[int] = []
    assert len(set(picks)) == len(picks)
    for turn, pick in enumerate(picks):
        low, high = {}, {}
        for i in tokens:
            if i in picks[:turn]:
                continue
            left, slack = float(has_direction[i]), 0.0
            if basis and has_direction[i]:
                share = torch.linalg.solve(c[basis][:, basis], c[basis, i])
                left = 1.0 - float(c[basis, i] @ share)
                slack = 2e-6 * (1 + float(share.abs().sum())) ** 2
            small = left - slack if left - slack > _DEPENDENT else 0.0
            large = left + slack if left + slack > _DEPENDENT else 0.0
            low[i] = weights[i] ** 2 * small
            high[i] = weights[i] ** 2 * large
            if i == pick:
                gone = large == 0.0
        best = max(low.values())
        assert high[pick] >= best, f"pick {turn}: {high[pick]} instead of {best}"
        decided += sum(x >= best for x in high.values()) == 1
        if not gone:
            basis.append(pick)
    return decided
