# SPDX-License-Identifier: Apache-2.0
"""The public functions of suppression."""

from __future__ import annotations

import math

from torch import Tensor

from ._contract import primitives as _rules
from ._contract import values as _values
from ._contract.suppress import RULES
from ._ops.call import call


def suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    *,
    threshold: float,
    fill: bool = True,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Take tokens by falling score, leaving out those too similar to one taken before.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        scores: `[B, N]`, any floating dtype; a token whose score is NaN or infinite counts as
            masked out.
        k: how many, in `[0, N]`.
        threshold: a token is left out if its cosine to a taken one is above this, in [-1, 1].
        fill: whether slots that remain are filled with the best of the tokens left out.
        visual_mask: bool `[B, N]`, True for real tokens.
        backend: see `select`.

    Returns:
        int64 `[B, k]` in the order of taking, then -1. Zero rows neither suppress nor are
        suppressed. Where float32 cannot decide a comparison, cosines are computed in float64; they
        and the threshold are rounded to multiples of 2**-40.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select`; `threshold` out of
            range.

    Complexity: up to N K D, in blocks of tokens by falling score. It ends with the k-th token
        taken, and a token is compared only until one is found that suppresses it.

    Source: GreedyPrune, arXiv 2506.13166: scan by saliency under a bound of pairwise similarity.

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> suppress(visual, torch.tensor([0.9, 0.8, 0.1]), 2, threshold=0.9).tolist()
        [0, 2]
    """
    op = "suppress"
    k = _values.integer(op, "k", k)
    limit = _rules.number(op, "threshold", threshold, -1.0, 1.0)
    _values.flag(op, "fill", fill)
    indices: Tensor = call(op, backend, (visual, scores, k, limit, fill, visual_mask))
    return indices


def soft_suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    *,
    sharpness: float,
    rule: str = "subtract",
    positions: Tensor | None = None,
    spread: float = math.inf,
    reach: float = math.inf,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Take the token of the highest score, lower the scores of those like it, and repeat.

    Token i, taken with the score `s_i`, suppresses token j with the weight

        w_ij = exp(-sharpness (1 - cos(i, j))^2) exp(-d_ij^2 / (2 spread^2)).

    With positions, d_ij is the distance between the tokens, and w_ij is 0 beyond the reach; without
    positions there is no second factor. Under the rule `"subtract"` the score of j falls by
    `w_ij s_i`; a score s_i that is not positive suppresses nothing. Under the rule `"scale"` the
    score of j is multiplied by `1 - w_ij`.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        scores: `[B, N]`, any floating dtype. A token whose score is NaN, infinite or, under the
            rule `"scale"`, negative counts as masked out.
        k: how many, in `[0, N]`.
        sharpness: of the similarity, above 0: the weight falls to 1 / e at a distance `1 - cos` of
            `sharpness ** -0.5`.
        rule: `"subtract"` or `"scale"`.
        positions: `[B, N, 2]`, row and column of each token; float32, float16, bfloat16, int64 or
            int32. A token whose position is not finite counts as masked out.
        spread: of the weight over positions, above 0. It and the reach need positions, or are
            infinite.
        reach: distance beyond which nothing is suppressed, at least 0.
        visual_mask: bool `[B, N]`, True for real tokens.
        backend: see `select`.

    Returns:
        int64 `[B, k]` in the order of taking, then -1. Zero rows neither suppress nor are
        suppressed. Scores are compared in steps of 2**-40 of the largest one (for `"scale"`, their
        logarithms in steps of 2**-40); scores that round to the same step tie.

    Raises:
        TypeError, ValueError, NotImplementedError, ImportError: as in `select`; options out of
            range.

    Complexity: up to N K D, and no N x N matrix. Scores only fall, so an old score is an upper
        bound: on a CPU a token is compared with the latest picks only when its bound is the
        largest; on a GPU, with all picks within the reach.

    Source: Gaussian suppression as in soft-NMS (Bodla et al. 2017); ID-Selection, arXiv 2604.05601
    (subtract); AdaptPrune, arXiv 2503.08019 (scale, positions).

    Example:
        >>> import torch
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> scores = torch.tensor([0.9, 0.8, 0.1])
        >>> soft_suppress(visual, scores, 3, sharpness=20.0).tolist()
        [0, 2, 1]
    """
    op = "soft_suppress"
    k = _values.integer(op, "k", k)
    sharp = _rules.number(op, "sharpness", sharpness, 1e-100, 1e100)
    _values.option(op, "rule", rule, RULES)
    limits = (
        _rules.number(op, "spread", spread, 1e-100, math.inf),
        _rules.number(op, "reach", reach, 0.0, math.inf),
    )
    indices: Tensor = call(
        op, backend, (visual, scores, k, sharp, rule, positions, *limits, visual_mask)
    )
    return indices
