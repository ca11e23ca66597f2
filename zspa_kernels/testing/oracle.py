# SPDX-License-Identifier: Apache-2.0
"""The contract in float64, one segment at a time, one pick at a time.

The oracle works from the values a backend was given (already rounded to bfloat16 or float16). The
judges in `judge` compare results with it.

Cosines come from one float64 Gram matrix for N <= 3000 and from one matrix-vector product a pick
beyond. Their error is below 1e-13, far under any bound; so that it cannot break a tie, identical
rows are given identical cosines.

Sources: ZSPAPrune (arXiv 2510.17197) equations 4 to 9 for relevance, core and diversity; DivPrune
(arXiv 2503.02175) for the first pick; ties, masks and zero rows as in this project's contract.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .bounds import FLOAT32_EPS

_ZERO_BELOW = 2.0**-80
_HUGE_ABOVE = 2.0**80
_GRAM_LIMIT = 3000
POOLINGS = ("mean", "max", "none_mean", "none_max")


class Geometry:
    """Directions of one segment in float64."""

    def __init__(self, visual: Tensor, mask: Tensor | None) -> None:
        if visual.dim() != 2:
            raise ValueError(f"oracle: visual must be [N, D], got shape {tuple(visual.shape)}")
        rows, self.valid = _checked_rows(visual, mask)
        self.n = rows.shape[0]
        square = rows.square().sum(-1)
        self.zero = self.valid & (square < _ZERO_BELOW)
        self.directed = self.valid & ~self.zero
        self.rows = rows
        self.inverse = square.rsqrt().masked_fill(~self.directed, 0.0)
        self.twin = _twins(rows)
        self._gram: Tensor | None = None

    def cosines(self, token: int) -> Tensor:
        """`[N]`: cosines with `token`; 0 for rows without direction."""
        if self.n > _GRAM_LIMIT:
            return self.cosines_of(self.twin[token : token + 1])[0]
        if self._gram is None:
            gram = self.cosines_of(torch.arange(self.n))
            gram = (gram + gram.T) / 2
            # A product rounds a row by where it stands: rows that are equal take the first one's.
            self._gram = gram[self.twin][:, self.twin]
        return self._gram[token]

    def cosines_of(self, rows: Tensor) -> Tensor:
        """`[R, N]`: cosines of the tokens `rows` with all tokens."""
        dots = self.rows[rows] @ self.rows.T
        return (dots * torch.outer(self.inverse[rows], self.inverse))[:, self.twin]


def _checked_rows(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows in float64 with everything invalid replaced by zero, and which rows are valid."""
    rows = x.detach().cpu().double()
    square = rows.square().sum(-1)
    valid = square <= _HUGE_ABOVE  # False for NaN
    if mask is not None:
        valid = valid & mask.cpu()
    return torch.where(valid[:, None], rows, 0.0), valid


def _twins(rows: Tensor) -> Tensor:
    """`[N]`: for each row the lowest index of a row with the same values."""
    if rows.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64)
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    index = torch.arange(rows.shape[0])
    first = torch.full_like(index, rows.shape[0]).scatter_reduce(0, group, index, "amin")
    return first[group]


class Relevance(NamedTuple):
    """Relevance of one segment."""

    scores: Tensor  # float64 [N]; -inf for invalid tokens
    width: Tensor  # float64 [N]: allowed error of each score
    core: bool  # False: no valid prompt token, so nobody is selected by relevance


def relevance_of(
    geometry: Geometry, prompt: Tensor, prompt_mask: Tensor | None, pooling: str, bound: float
) -> Relevance:
    """Cosines of all tokens with the prompt, and the allowed error of each."""
    if pooling not in POOLINGS:
        raise ValueError(f"oracle: pooling must be one of {POOLINGS}, got {pooling!r}")
    words, valid = _checked_rows(prompt, prompt_mask)
    words = words[valid]
    scores = torch.zeros(geometry.n, dtype=torch.float64)
    width = 0.0
    if words.shape[0]:
        if pooling in ("mean", "max"):
            pooled = words.mean(0) if pooling == "mean" else words.amax(0)
            length = math.sqrt(float(pooled.square().sum()))
            if length >= math.sqrt(_ZERO_BELOW):
                scores = (geometry.rows @ pooled) * (geometry.inverse / length)
                width = bound
                if pooling == "mean" and bound > 0:
                    # Each component of the mean is rounded at the size of what was added up; where
                    # tokens cancel, that is large beside what is left of them.
                    added = math.sqrt(float(words.abs().mean(0).square().sum()))
                    width += FLOAT32_EPS * added / length
        else:
            square = words.square().sum(-1)
            directed = square >= _ZERO_BELOW
            inverse = square.rsqrt().masked_fill(~directed, 0.0)
            cosines = (geometry.rows @ words.T) * torch.outer(geometry.inverse, inverse)
            scores = cosines.mean(-1) if pooling == "none_mean" else cosines.amax(-1)
            width = bound if bool(directed.any()) else 0.0
    scores = scores[geometry.twin] if geometry.n else scores
    scores = torch.where(geometry.zero, -1.0, scores)
    scores = torch.where(geometry.valid, scores, -torch.inf)
    widths = torch.where(geometry.directed, width, 0.0).to(torch.float64)
    return Relevance(scores, widths, words.shape[0] > 0)


class Greedy(Protocol):
    """A greedy selection of one segment between two picks: what an op's oracle and judge share."""

    eligible: Tensor  # [N] bool, what can still be picked

    def take(self, token: int) -> None:
        """Add a pick."""

    def costs(self) -> tuple[Tensor, Tensor]:
        """What the next pick minimises, `[N]`, and the allowed error of each cost."""

    def ties(self, token: int) -> Tensor:
        """`[N]`: tokens whose float32 cost equals that of `token` whatever the rounding."""


def greedy64(state: Greedy, k: int) -> Tensor:
    """Up to `k` picks of the smallest cost, the lowest index on ties; `[k]`, -1 padded."""
    picks: list[int] = []
    while len(picks) < k and bool(state.eligible.any()):
        pick = first_best(state.costs()[0], state.eligible)
        state.take(pick)
        picks.append(pick)
    return padded(picks, k)


def usable_weights(weights: Tensor) -> tuple[Tensor, Tensor]:
    """`[N]` float64 weights, 0 where not usable, and `[N]` bool: finite and not negative."""
    given = weights.detach().cpu().double()
    usable = torch.isfinite(given) & (given >= 0)
    return torch.where(usable, given, 0.0), usable


class Diversity:
    """The max-min greedy of one segment between two picks; see `Greedy`."""

    def __init__(
        self, geometry: Geometry, seeds: Tensor | None, weights: Tensor | None, bound: float
    ) -> None:
        self.geometry = geometry
        self.bound = bound
        self.eligible = geometry.valid.clone()
        self.weights: Tensor | None = None
        if weights is not None:
            self.weights, usable = usable_weights(weights)
            self.eligible &= usable
        self.valid = self.eligible.clone()
        self.directed = geometry.directed & self.valid
        self.largest = torch.where(self.directed, -1.0, 1.0).to(torch.float64)
        self.touched = False  # has anything with a direction been selected?
        self.started = False  # has anything been selected?
        for seed in [] if seeds is None else seeds.tolist():
            if 0 <= seed < geometry.n and bool(self.valid[seed]):
                self.take(seed)

    def take(self, token: int) -> None:
        """Add a seed or a pick to what is selected."""
        self.started = True
        self.eligible[token] = False
        if bool(self.directed[token]):
            self.touched = True
            seen = torch.maximum(self.largest, self.geometry.cosines(token))
            self.largest = torch.where(self.directed, seen, 1.0)

    def costs(self) -> tuple[Tensor, Tensor]:
        """What the next pick minimises, and the allowed error of each cost."""
        uncertain = self.directed.double() * self.bound
        if not self.started and self.weights is None:
            return self._isolation(), uncertain
        if not self.started and self.weights is not None:
            return -self.weights, torch.zeros_like(self.weights)
        if not self.touched:
            uncertain = torch.zeros_like(uncertain)
        if self.weights is None:
            return self.largest, uncertain
        distance = 1.0 - self.largest
        rounding = FLOAT32_EPS * distance.abs() * (uncertain > 0)
        return -self.weights * distance, self.weights * (uncertain + rounding)

    def _isolation(self) -> Tensor:
        """DivPrune's seed: the largest similarity to any other token that has a direction."""
        n, twin = self.geometry.n, self.geometry.twin
        largest = torch.empty(n, dtype=torch.float64)
        for start in range(0, n, _GRAM_LIMIT):
            rows = torch.arange(start, min(start + _GRAM_LIMIT, n))
            cosines = torch.where(self.directed, self.geometry.cosines_of(rows), -1.0)
            cosines[torch.arange(len(rows)), rows] = -1.0
            largest[rows] = cosines.amax(-1).clamp_min(-1.0)
        return torch.where(self.directed, largest[twin], 1.0)

    def ties(self, token: int) -> Tensor:
        """`[N]`: tokens whose float32 score equals that of `token` whatever the rounding."""
        same = self.geometry.twin == self.geometry.twin[token]
        if self.weights is not None:
            same &= self.weights == self.weights[token]
        return same


def first_best(cost: Tensor, eligible: Tensor) -> int:
    """Index of the smallest cost among the eligible tokens, the lowest index on ties."""
    best = torch.where(eligible, cost, torch.inf)
    return int((eligible & (best == best.min())).nonzero()[0, 0])


def padded(picks: list[int], k: int) -> Tensor:
    """`[k]` int64: the picks, then -1."""
    return torch.tensor(picks + [-1] * (k - len(picks)), dtype=torch.int64)


def relevance64(
    visual: Tensor,
    prompt: Tensor,
    *,
    mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
) -> Tensor:
    """Cosine of every token with the prompt.

    Args:
        visual: `[N, D]`, any floating dtype.
        prompt: `[M, D]`.
        mask: `[N]` bool, True = real token.
        prompt_mask: `[M]` bool.
        pooling: One of "mean", "max", "none_mean", "none_max".

    Returns:
        `[N]` float64: -1 for zero rows, -inf for invalid tokens, 0 for all others if the prompt has
        no direction.
    """
    return relevance_of(Geometry(visual, mask), prompt, prompt_mask, pooling, 0.0).scores


def topk64(scores: Tensor, k: int) -> Tensor:
    """The `k` largest of `scores` `[N]` by (falling score, index), -inf never; `[k]`, -1 padded."""
    order = sorted((-s, i) for i, s in enumerate(scores.tolist()) if s != -math.inf)
    return padded([i for _, i in order[:k]], k)


def divprune_seed64(visual: Tensor, *, mask: Tensor | None = None) -> int:
    """The token whose largest cosine to any other is smallest; -1 if no token is valid."""
    return int(diversity64(visual, 1, mask=mask)[0])


def diversity64(
    visual: Tensor,
    k: int,
    *,
    seeds: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Pick `k` tokens, each the least similar to everything selected so far.

    Args:
        visual: `[N, D]`, any floating dtype.
        k: Number of picks.
        seeds: `[S]` integers, selected already; those that are no valid token are ignored.
        weights: `[N]` factors of the distance `1 - similarity`.
        mask: `[N]` bool, True = real token.

    Returns:
        `[k]` int64 in the order of picking, -1 where nothing was eligible.
    """
    return greedy64(Diversity(Geometry(visual, mask), seeds, weights, 0.0), k)


def select64(
    visual: Tensor,
    prompt: Tensor | None,
    k_core: int,
    k_diverse: int,
    *,
    mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
    sort: bool = False,
) -> Tensor:
    """Core by relevance, then tokens by diversity.

    Args:
        visual: `[N, D]`, any floating dtype.
        prompt: `[M, D]` or None.
        k_core: Tokens by relevance.
        k_diverse: Tokens by diversity.
        mask: `[N]` bool, True = real token.
        prompt_mask: `[M]` bool.
        pooling: See `relevance64`.
        sort: Return the indices in ascending order.

    Returns:
        `[k_core + k_diverse]` int64, -1 at the end.
    """
    k = k_core + k_diverse
    geometry = Geometry(visual, mask)
    core: list[int] = []
    if prompt is not None and k_core:
        relevance = relevance_of(geometry, prompt, prompt_mask, pooling, 0.0)
        if relevance.core:
            core = [i for i in topk64(relevance.scores, k_core).tolist() if i >= 0]
        else:
            k_diverse = k
    state = Diversity(geometry, torch.tensor(core, dtype=torch.int64), None, 0.0)
    picks = core + [i for i in greedy64(state, k_diverse).tolist() if i >= 0]
    return padded(sorted(picks) if sort else picks, k)
