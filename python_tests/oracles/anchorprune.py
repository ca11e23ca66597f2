# SPDX-License-Identifier: Apache-2.0
"""AnchorPrune: an anchor by relevance, as long as its novel tokens allow; then what is new."""

from __future__ import annotations

from torch import Tensor

from .common import by_score, cosines, directed


def anchor_of(
    space: Tensor,
    relevance: dict[int, float],
    least: int,
    most: int,
    novelty: float,
    patience: int,
) -> list[int]:
    """The anchor, by falling relevance."""
    ranked = by_score((r, i) for i, r in relevance.items())[:most]
    has_direction, c = directed(space), cosines(space.nan_to_num(0.0, 0.0, 0.0))
    core = ranked[:least]
    seen = 0
    for size, i in enumerate(ranked[least:], least + 1):
        near = any(has_direction[j] and c[i][j] >= round(1.0 - novelty, 12) for j in core)
        seen += has_direction[i] and not near
        if seen == patience:
            return ranked[:size]
    return ranked


def check_expansion(
    space: Tensor, anchor: list[int], picks: list[int], weights: dict[int, float], farthest: float
) -> int:
    """Replay what follows the anchor; returns how many picks had only one right answer.

    `farthest` is what a distance counts at most. A float32 cosine is off by 1e-6.
    """
    has_direction, c = directed(space), cosines(space.nan_to_num(0.0, 0.0, 0.0))
    decided = 0
    for turn, pick in enumerate(picks):
        before = [*anchor, *picks[:turn]]
        assert pick not in before

        def distance(i: int, before: list[int] = before) -> float:
            if not has_direction[i]:
                return 0.0
            nearest = max((c[i][j] for j in before if has_direction[j]), default=-1.0)
            return min(farthest, 1.0 - nearest) if before else 1.0

        score = {i: w * distance(i) for i, w in weights.items() if i not in before}
        best = max(score.values())
        slack = 4e-6 * max(weights.values())
        assert score[pick] >= best - slack, f"pick {turn}: {score[pick]} instead of {best}"
        decided += sum(x >= best - slack for x in score.values()) == 1
    return decided
