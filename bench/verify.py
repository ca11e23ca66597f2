# SPDX-License-Identifier: Apache-2.0
"""No verification, no figure: picks are judged in float64 before their time is written down.

Small images go through the judge of the tests. Beyond `JUDGE_LIMIT` tokens the same rule is applied
with one blocked product of the picks with all tokens, and DivPrune's first pick is proved by
witnesses instead of all N^2 cosines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contenders import Contender
from bench.problem import Image, Problem
from zspa_kernels.testing import Replay, bound, check_select, check_sorted
from zspa_kernels.testing.oracle import Geometry, relevance_of

JUDGE_LIMIT = 1500
_BLOCK = 256
_WITNESSES = 512


@dataclass(frozen=True)
class Verdict:
    """What was verified.

    Attributes:
        judge: "oracle" for the judge of the tests, "replay" for the blocked one.
        images: How many images.
        picks: How many picks were replayed.
        decided: How many of them had only one right answer within float32; the others were near
            ties, and what was picked is within the error bound of the best.
    """

    judge: str
    images: int
    picks: int
    decided: int


class Verifier:
    """Judges the results of all contenders on one problem."""

    def __init__(
        self, problem: Problem, judge_limit: int = JUDGE_LIMIT, backend: str = "reference"
    ) -> None:
        self._problem = problem
        # On these tokens every cosine is exact in any order and dtype, so nothing is tolerated.
        exact = problem.workload.tokens == "exact"
        self._bound = 0.0 if exact else bound(problem.workload.d, backend)
        self._limit = judge_limit
        self._accepted: dict[int, tuple[Tensor, Verdict]] = {}

    def check(self, contender: Contender, result: Tensor) -> Verdict:
        """Judge one result of a contender.

        This package's own results are held to the contract: ties go to the lowest index, and the
        timed result is the sorted form of the picks that are replayed. Of a baseline every pick
        must be the best within float32, whichever it takes of equals.

        Raises:
            AssertionError: At the first pick that is wrong.
        """
        ordered = contender.picks(result)
        if contender.unsorted is not None:
            for given, picks in zip(contender.split(result), ordered, strict=True):
                check_sorted(given, picks)
        lowest_index = contender.kind == "ours"
        verdicts = [self._image(i, picks, lowest_index) for i, picks in enumerate(ordered)]
        if len(verdicts) != len(self._problem.images):
            raise AssertionError(f"{contender.name}: {len(verdicts)} images in the result")
        return Verdict(
            "replay" if any(v.judge == "replay" for v in verdicts) else "oracle",
            len(verdicts),
            sum(v.picks for v in verdicts),
            sum(v.decided for v in verdicts),
        )

    def _image(self, index: int, picks: Tensor, lowest_index: bool) -> Verdict:
        if index in self._accepted and torch.equal(self._accepted[index][0], picks):
            return self._accepted[index][1]
        image = self._problem.images[index]
        if lowest_index and len(image.visual) <= self._limit:
            seen = check_select(
                image.visual, image.prompt, image.k_core, image.k_diverse, picks, bound=self._bound
            )
            verdict = Verdict("oracle", 1, seen.picks, seen.decided)
        else:
            seen = replay(image, picks, bound=self._bound, lowest_index=lowest_index)
            verdict = Verdict("replay", 1, seen.picks, seen.decided)
        if lowest_index:
            # The stricter judgement also answers for a baseline that picked the same.
            self._accepted[index] = (picks.clone(), verdict)
        return verdict


def replay(image: Image, picks: Tensor, *, bound: float, lowest_index: bool) -> Replay:
    """Replay picks in their order; each may be at most 2 `bound` worse than the best at its turn.

    Args:
        image: What was selected from; every row must have a direction.
        picks: `[K]`, core by falling relevance, then diversity picks in order.
        bound: Largest error of a cosine; 0 demands the lowest index among equal costs.
        lowest_index: Whether identical rows must be picked in the order of their indices.

    Raises:
        AssertionError: At the first pick that is wrong.
        ValueError: If a row has no direction.
    """
    n, geometry = len(image.visual), image.tokens.geometry
    if not bool(geometry.directed.all()):
        raise ValueError("replay: every row must have a direction")
    if picks.dtype != torch.int64 or tuple(picks.shape) != (image.k,):
        raise AssertionError(f"picks must be int64 [{image.k}], got {picks.dtype} {picks.shape}")
    if image.k and not bool(((picks >= 0) & (picks < n)).all()):
        raise AssertionError(f"picks must be in [0, N={n}), got {int(picks.min())} or more")
    if len(picks.unique()) != image.k:
        raise AssertionError("picks must be different")
    turns = _Turns(geometry, lowest_index)
    core = picks[: image.k_core]
    largest = torch.full((n,), -1.0, dtype=torch.float64)
    if image.k_core:
        relevance = relevance_of(geometry, image.prompt, None, "mean", bound)
        for pick in core.tolist():
            turns.check(pick, -relevance.scores, float(relevance.width.max()))
        for block in core.split(_BLOCK):
            largest = torch.maximum(largest, geometry.cosines_of(block).amax(0))
    elif image.k_diverse:
        _check_first(geometry, int(picks[0]), bound, lowest_index)
    for block in picks[image.k_core :].split(_BLOCK):
        for pick, cosines in zip(block.tolist(), geometry.cosines_of(block), strict=True):
            if turns.done or image.k_core:
                turns.check(pick, largest, bound)
            else:
                turns.take(pick)
            largest = torch.maximum(largest, cosines)
    return Replay(turns.done, turns.decided)


class _Turns:
    """Which tokens are left, turn by turn."""

    def __init__(self, geometry: Geometry, lowest_index: bool) -> None:
        self._twin = geometry.twin
        self._lowest_index = lowest_index
        self._eligible = torch.ones(geometry.n, dtype=torch.bool)
        self.done = 0
        self.decided = 0

    def take(self, pick: int) -> None:
        self._eligible[pick] = False
        self.done += 1

    def check(self, pick: int, cost: Tensor, width: float) -> None:
        open_cost = torch.where(self._eligible, cost, torch.inf)
        best = float(open_cost.min())
        lost = float(cost[pick]) - best
        if lost > 2 * width:
            raise AssertionError(
                f"pick {self.done} is token {pick}, token {int(open_cost.argmin())} is better by "
                f"{lost:.3e} (tolerance {2 * width:.1e})"
            )
        if self._lowest_index:
            equal = self._twin == self._twin[pick]
            equal = equal | (cost == cost[pick]) if width == 0 else equal
            earlier = (equal & self._eligible)[:pick].nonzero()
            if len(earlier):
                raise AssertionError(
                    f"pick {self.done} is token {pick}, which ties with token "
                    f"{int(earlier[0, 0])}: the lowest index must win"
                )
        self.decided += int((open_cost <= best + 2 * width).sum()) == 1
        self.take(pick)


def _check_first(geometry: Geometry, pick: int, bound: float, lowest_index: bool) -> None:
    """DivPrune's seed: no other token may have a smaller largest similarity to the rest.

    The largest similarity to some of the tokens is a lower bound of that to all, so a token is
    refuted by the first witness that is similar enough to it.
    """
    if lowest_index and int(geometry.twin[pick]) != pick:
        raise AssertionError(f"pick 0 is token {pick}: the lowest index must win")
    own = geometry.cosines_of(torch.tensor([pick]))[0]
    own[pick] = -1.0
    limit = float(own.max()) - 2 * bound
    index = torch.arange(geometry.n)

    def unrefuted(low: Tensor) -> Tensor:
        left = low < limit
        if lowest_index and bound == 0:
            left |= (low == limit) & (index < pick)
        left[pick] = False
        return left.nonzero()[:, 0]

    low = own.clone()  # [N] lower bounds
    order = torch.randperm(geometry.n, generator=torch.Generator().manual_seed(0))
    left = unrefuted(low)
    for witnesses in order.split(_WITNESSES):
        if not len(left):
            return
        cosines = geometry.rows[left] @ geometry.rows[witnesses].T
        cosines *= torch.outer(geometry.inverse[left], geometry.inverse[witnesses])
        cosines[left[:, None] == witnesses] = -1.0
        low[left] = torch.maximum(low[left], cosines.amax(-1))
        left = unrefuted(low)
    if len(left):
        raise AssertionError(
            f"pick 0 is token {pick}, token {int(left[0])} is better by "
            f"{float(own.max() - low[left[0]]):.3e} (tolerance {2 * bound:.1e})"
        )
