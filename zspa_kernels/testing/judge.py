# SPDX-License-Identifier: Apache-2.0
"""Judges of results: replay a backend's own picks against the float64 oracle.

Where the oracle's lead of the best token exceeds twice the error bound of a cosine, the pick must
be that token; otherwise it may lose at most that much. To keep one near tie from condemning all
later picks, each pick is compared with the best token *given the picks before it*. An early wrong
pick cannot hide, and a legitimate near tie cannot fail. Nothing else is tolerated: no overlap
percentages, no share of wrong picks.

Three kinds of ties are decided by arithmetic alone, so there the lowest index must win: identical
rows (with identical weights), rows whose similarity is fixed by definition (zero rows: 1; weight 0:
score 0), and everything before a token with a direction has been selected (similarity -1). With
`bound=0` every tie is of that kind; `exact` tokens are judged so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .bounds import FLOAT32_EPS
from .oracle import Diversity, Geometry, Greedy, Relevance, first_best, padded, relevance_of, topk64


class Replay(NamedTuple):
    """What a judge saw: how many picks it replayed, and how many had only one right answer."""

    picks: int
    decided: int


def _check_shape(op: str, indices: Tensor, k: int, eligible: Tensor, limit: int) -> list[int]:
    """Type, length, padding, range, eligibility and repetition; returns the picks."""
    if indices.dtype != torch.int64 or tuple(indices.shape) != (k,):
        raise AssertionError(
            f"{op}: indices must be int64 [{k}], got {indices.dtype} {tuple(indices.shape)}"
        )
    picks = indices.tolist()
    count = min(limit, int(eligible.sum()))
    seen: set[int] = set()
    for turn, pick in enumerate(picks):
        if turn >= count:
            if pick != -1:
                raise AssertionError(f"{op}: slot {turn} must be -1 (nothing is left), got {pick}")
        elif not 0 <= pick < eligible.shape[0]:
            raise AssertionError(f"{op}: pick {turn} is {pick}, {count} tokens could be picked")
        elif not eligible[pick]:
            raise AssertionError(f"{op}: pick {turn} is token {pick}, which is not eligible")
        elif pick in seen:
            raise AssertionError(f"{op}: pick {turn} is token {pick}, which was picked before")
        seen.add(pick)
    return picks[:count]


def _check_turn(
    op: str, turn: int, pick: int, cost: Tensor, width: Tensor, eligible: Tensor, same: Tensor
) -> bool:
    """Judge one pick; returns whether only one token was right."""
    best = first_best(cost, eligible)
    ceiling = torch.where(eligible, cost + width, torch.inf)
    contender = int(ceiling.argmin())
    floor = cost - width
    if floor[pick] > ceiling[contender]:
        raise AssertionError(
            f"{op}: pick {turn} is token {pick}, token {contender} is better by "
            f"{float(cost[pick] - cost[contender]):.3e} "
            f"(tolerance {float(width[pick] + width[contender]):.1e})"
        )
    tied = same | ((width == 0) & (width[pick] == 0) & (cost == cost[pick]))
    earlier = (tied & eligible)[:pick].nonzero()
    if earlier.numel():
        raise AssertionError(
            f"{op}: pick {turn} is token {pick}, which ties with token {int(earlier[0, 0])}: "
            "the lowest index must win"
        )
    rivals = eligible & (floor <= ceiling[best])
    return int(rivals.sum()) == 1


def replay(op: str, state: Greedy, indices: Tensor, k: int, limit: int | None = None) -> Replay:
    """Replay the `k` slots of `indices` on a greedy selection; the first `limit` may hold picks.

    Raises:
        AssertionError: At the first pick that is wrong.
    """
    picks = _check_shape(op, indices, k, state.eligible, k if limit is None else limit)
    decided = 0
    for turn, pick in enumerate(picks):
        cost, width = state.costs()
        decided += _check_turn(op, turn, pick, cost, width, state.eligible, state.ties(pick))
        state.take(pick)
    return Replay(len(picks), decided)


def check_diversity(
    visual: Tensor,
    indices: Tensor,
    k: int,
    *,
    bound: float,
    seeds: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
) -> Replay:
    """Replay the picks of `diversity` on one segment.

    Args:
        visual: `[N, D]`, as given to the op.
        indices: `[k]`, what the op returned.
        k: Number of picks asked for.
        bound: Largest error of a cosine, from `bounds.bound`; 0 demands the oracle's own picks.
        seeds: As given to the op.
        weights: As given to the op.
        mask: As given to the op.

    Returns:
        How many picks were replayed and how many had only one right answer.

    Raises:
        AssertionError: At the first pick that is wrong.
    """
    state = Diversity(Geometry(visual, mask), seeds, weights, bound)
    return replay("diversity", state, indices, k)


def _replay_core(op: str, geometry: Geometry, relevance: Relevance, indices: Tensor) -> Replay:
    eligible = geometry.valid.clone() if relevance.core else torch.zeros_like(geometry.valid)
    picks = _check_shape(op, indices, indices.shape[0], eligible, indices.shape[0])
    decided = 0
    for turn, pick in enumerate(picks):
        same = geometry.twin == geometry.twin[pick]
        decided += _check_turn(op, turn, pick, -relevance.scores, relevance.width, eligible, same)
        eligible[pick] = False
    return Replay(len(picks), decided)


def check_relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    indices: Tensor,
    scores: Tensor,
    *,
    bound: float,
    mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
) -> Replay:
    """Judge scores and indices of `relevance_topk` on one segment.

    The scores must be within the bound and exact where the contract fixes them; the indices must be
    the top-k of the returned scores by (falling score, index) without any tolerance.

    Args:
        visual: `[N, D]`, as given to the op.
        prompt: `[M, D]`, as given to the op.
        k: Number of indices asked for.
        indices: `[k]`, what the op returned.
        scores: `[N]` float32, what the op returned.
        bound: Largest error of a cosine, from `bounds.bound`; 0 demands the oracle's own picks.
        mask: As given to the op.
        prompt_mask: As given to the op.
        pooling: As given to the op.

    Returns:
        How many picks were replayed and how many had only one right answer.

    Raises:
        AssertionError: At the first score or index that is wrong.
    """
    op = "relevance_topk"
    geometry = Geometry(visual, mask)
    relevance = relevance_of(geometry, prompt, prompt_mask, pooling, bound)
    if scores.dtype != torch.float32 or tuple(scores.shape) != (geometry.n,):
        raise AssertionError(
            f"{op}: scores must be float32 [{geometry.n}], got {scores.dtype} {tuple(scores.shape)}"
        )
    if indices.dtype != torch.int64 or tuple(indices.shape) != (k,):
        raise AssertionError(
            f"{op}: indices must be int64 [{k}], got {indices.dtype} {tuple(indices.shape)}"
        )
    allowed = relevance.width if bound > 0 else FLOAT32_EPS * relevance.scores.abs()
    allowed = torch.where(torch.isfinite(allowed), allowed, 0.0)
    got = scores.detach().double()
    right = (got == relevance.scores) | ((got - relevance.scores).abs() <= allowed)
    if not bool(right.all()):
        token = int((~right).nonzero()[0, 0])
        raise AssertionError(
            f"{op}: score of token {token} is {float(got[token])!r}, must be "
            f"{float(relevance.scores[token])!r} (tolerance {float(allowed[token]):.1e})"
        )
    by_scores = topk64(scores, k) if relevance.core else padded([], k)
    if not torch.equal(indices, by_scores):
        slot = int((indices != by_scores).nonzero()[0, 0])
        raise AssertionError(
            f"{op}: index {slot} is {int(indices[slot])}, by the returned scores it is "
            f"{int(by_scores[slot])}"
        )
    return _replay_core(op, geometry, relevance, indices)


def check_select(
    visual: Tensor,
    prompt: Tensor | None,
    k_core: int,
    k_diverse: int,
    indices: Tensor,
    *,
    bound: float,
    mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
) -> Replay:
    """Replay the picks of `select(sorted=False)` on one segment.

    Args:
        visual: `[N, D]`, as given to the op.
        prompt: `[M, D]`, as given to the op, or None.
        k_core: As given to the op.
        k_diverse: As given to the op.
        indices: `[k_core + k_diverse]`, what the op returned.
        bound: Largest error of a cosine, from `bounds.bound`; 0 demands the oracle's own picks.
        mask: As given to the op.
        prompt_mask: As given to the op.
        pooling: As given to the op.

    Returns:
        How many picks were replayed and how many had only one right answer.

    Raises:
        AssertionError: At the first pick that is wrong.
    """
    op = "select"
    k = k_core + k_diverse
    geometry = Geometry(visual, mask)
    relevance, split, limit = None, 0, k
    if prompt is not None and k_core:
        relevance = relevance_of(geometry, prompt, prompt_mask, pooling, bound)
        if relevance.core:
            split = min(k_core, int(geometry.valid.sum()))
            limit = split + k_diverse
    _check_shape(op, indices, k, geometry.valid, limit)
    core = Replay(0, 0)
    if relevance is not None and split:
        core = _replay_core(f"{op} (core)", geometry, relevance, indices[:split])
    state = Diversity(geometry, indices[:split], None, bound)
    rest = replay(f"{op} (diversity)", state, indices[split:], k - split, limit - split)
    return Replay(core.picks + rest.picks, core.decided + rest.decided)


def check_sorted(indices: Tensor, unsorted: Tensor) -> None:
    """Check that `indices` are `unsorted` in ascending order with all -1 at the end.

    Raises:
        AssertionError: If they are not.
    """
    picks = sorted(i for i in unsorted.tolist() if i >= 0)
    expected = padded(picks, unsorted.shape[0])
    if not torch.equal(indices, expected):
        raise AssertionError(
            f"sorted: got {indices.tolist()}, the sorted picks are {expected.tolist()}"
        )
