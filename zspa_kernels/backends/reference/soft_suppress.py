# SPDX-License-Identifier: Apache-2.0
"""Soft suppression: tokens in the order of scores that fall where tokens like them were taken.

ID-Selection (arXiv 2604.05601) and AdaptPrune (arXiv 2503.08019).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._blas import full_float32
from ._image import Image, images, on_grid, padded, twins

_BLOCK = 64  # tokens that are compared with each other
_FRESH = 128  # at least a block: brought up to date together, each further time twice as many
_GRID = 2.0**40  # steps of a score of 1: coarser than the rounding of float64
_NOTHING = -1e300  # the logarithm of 0
_ONE = (1.0, 1.0)


def soft_suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    sharpness: float,
    rule: str,
    positions: Tensor | None,
    spread: float,
    reach: float,
    visual_mask: Tensor | None,
) -> Tensor:
    """Indices int64 `[B, k]` in the order of taking. Waits for the device often."""
    usable = scores.isfinite() if rule == "subtract" else scores.isfinite() & (scores >= 0)
    if visual_mask is not None:
        usable = usable & visual_mask
    if positions is not None:
        usable = usable & positions.isfinite().all(-1)
    picks = []
    with full_float32(visual.device):
        for b, image in enumerate(images(visual, usable)):
            where = None if positions is None else positions[b, image.index].double()
            start = _start(scores[b, image.index].double(), rule)
            weight = _Weight(sharpness, where, spread, reach)
            picks.append(image.index[_Suppression(image, start, rule, weight, k).take(k)])
    return padded(picks, k, visual)


def _start(scores: Tensor, rule: str) -> Tensor:
    """Scores of which something can be subtracted: relative to the largest, or logarithms.

    In steps of the grid.
    """
    if rule == "scale":
        return (scores.log() * _GRID).round().clamp_(min=_NOTHING)
    largest = scores.abs().amax() if len(scores) else 1.0
    return (scores / (largest + (largest == 0)) * _GRID).round()


class _Weight:
    """How strongly two tokens suppress each other."""

    def __init__(
        self, sharpness: float, positions: Tensor | None, spread: float, reach: float
    ) -> None:
        self.sharpness = sharpness
        self.positions = positions
        self.spread = spread
        self.reach = reach

    def near(self, rows: Tensor, columns: Tensor) -> Tensor | float:
        """The factor `[R, C]` of the distance."""
        if self.positions is None:
            return 1.0
        apart = self.positions[rows].unsqueeze(1) - self.positions[columns]
        square = apart.square().sum(-1)
        factor = (square / (-2.0 * self.spread * self.spread)).exp()
        return factor.masked_fill_(square > self.reach * self.reach, 0.0)

    def of(self, cosines: Tensor, near: Tensor | float) -> Tensor:
        """The weight at cosines of at most 1."""
        return (1.0 - cosines).square_().mul_(-self.sharpness).exp_().mul_(near)


class _Suppression:
    """Scores as intervals `[low, high]` in steps of the grid, and what has lowered them.

    A float32 cosine is off by up to `image.slack`; the interval is what that leaves open. Where two
    tokens could both come first, their scores are computed anew in float64.
    """

    def __init__(self, image: Image, start: Tensor, rule: str, weight: _Weight, k: int) -> None:
        self.image = image
        self.start = start
        self.subtract = rule == "subtract"
        self.weight = weight
        #: `[2, V]`: low and minus high, so that both are rounded down.
        self.bounds = torch.stack((start, -start))
        self.live = torch.ones(len(image), dtype=torch.bool, device=start.device)
        #: How many of those that suppress each token has been compared with.
        self.seen = torch.zeros(len(image), dtype=torch.int64, device=start.device)
        #: Tokens that suppress others, float32 rows, and the interval of the score when taken.
        self.taken: list[int] = []
        self.rows = torch.empty(k, image.tokens.shape[-1], device=start.device, dtype=torch.float32)
        self.strength: list[tuple[float, float]] = []
        self.exact_strength = start.new_empty(0)
        self.exact_rows = start.new_empty(0, image.tokens.shape[-1])

    def take(self, k: int) -> Tensor:
        """The first k tokens."""
        picks: list[int] = []
        width = _FRESH
        while len(picks) < min(k, len(self.image)):
            free = self.live.nonzero()[:, 0]
            order = free[self.bounds[1, free].sort(stable=True).indices]
            stale = self.seen[order[:width]] < len(self.taken)
            if bool(stale[:_BLOCK].any()):
                self.refresh(order[:width][stale])
                width *= 2
            else:
                block, beyond = order[:_BLOCK], order[_BLOCK : _BLOCK + 1]
                picks += self.compare(block, beyond, k - len(picks))
                width = _FRESH
        return torch.tensor(picks, dtype=torch.int64, device=self.start.device)

    def refresh(self, tokens: Tensor) -> None:
        """Bring tokens up to date."""
        seen = self.seen[tokens]
        first, last = int(seen.min()), len(self.taken)
        taken = torch.tensor(self.taken[first:], device=tokens.device)
        dots = self.image.tokens[tokens].float() @ self.rows[first:last].T
        penalty = self.penalties(dots, tokens, taken)
        if self.subtract:  # low loses of the highest score there may have been, high of the lowest
            strong = torch.tensor(self.strength[first:], dtype=torch.float64, device=tokens.device)
            penalty *= strong.T.unsqueeze(1)
        fresh = torch.arange(first, last, device=tokens.device) >= seen[:, None]
        lost = penalty.masked_fill_(~fresh, 0.0).sum(-1)
        self.bounds[:, tokens] = self.lower(self.bounds[:, tokens] + lost)
        self.seen[tokens] = last

    def penalties(self, dots: Tensor, tokens: Tensor, taken: Tensor) -> Tensor:
        """float64 `[2, R, C]`: what is added to both bounds of `tokens` for each of `taken`.

        By the rule `"subtract"` as a share of the score it was taken with.
        """
        image = self.image
        cosines = dots.mul_(image.inverse[tokens, None] * image.inverse[taken]).double()
        both = torch.stack((cosines + image.slack, cosines - image.slack)).clamp_(max=1.0)
        weights = self.weight.of(both, self.weight.near(tokens, taken))
        weights *= image.directed[tokens, None] & image.directed[taken]
        if not self.subtract:
            weights = weights.neg_().log1p_().mul_(-_GRID).clamp_(max=-_NOTHING)
        weights[0].neg_()
        return weights

    @staticmethod
    def lower(bounds: Tensor) -> Tensor:
        """Bounds on the grid; a score of 0 has no logarithm."""
        bounds = bounds.floor_()
        bounds[0].clamp_(min=_NOTHING)
        bounds[1].clamp_(max=-_NOTHING)
        return bounds

    def compare(self, block: Tensor, beyond: Tensor, left: int) -> list[int]:
        """Take tokens of `block` while one of them must come first; `beyond` is the next one."""
        rows = self.image.tokens[block].float()
        most, least = self.penalties(rows @ rows.T, block, block).mT.tolist()
        low, minus = self.bounds[:, block].tolist()
        place = block.tolist()
        alive = list(range(len(place)))
        # Minus the highest score of those not in the block, and its place: less comes first.
        rival = (float(self.bounds[1, beyond]), int(beyond)) if len(beyond) else (math.inf, 0)
        picks: list[int] = []
        while alive and len(picks) < left:
            top = max(low[i] for i in alive)
            first = [i for i in alive if minus[i] <= -top]
            if len(first) > 1 and any(low[i] != -minus[i] for i in first):
                # Where nothing is suppressed any more, all of the block is settled at once.
                over = self.subtract and min(minus[i] for i in first) >= 0
                which = alive if over else first
                for i, score in zip(which, self.exact(block[which]).tolist(), strict=True):
                    low[i], minus[i] = score, -score
                continue
            chosen = min(first, key=lambda i: place[i])
            if (-low[chosen], place[chosen]) > rival:
                break
            alive.remove(chosen)
            picks.append(place[chosen])
            strong = (max(-minus[chosen], 0.0), max(low[chosen], 0.0)) if self.subtract else _ONE
            if strong[0] > 0:
                self.rows[len(self.taken)] = rows[chosen]
                self.taken.append(place[chosen])
                self.strength.append(strong)
                low = [
                    max((a + x * strong[0]) // 1, _NOTHING)
                    for a, x in zip(low, most[chosen], strict=True)
                ]
                minus = [
                    min((a + x * strong[1]) // 1, -_NOTHING)
                    for a, x in zip(minus, least[chosen], strict=True)
                ]
        both = torch.tensor((low, minus), dtype=torch.float64, device=block.device)
        self.bounds[:, block] = self.lower(both)
        self.live[torch.tensor(picks, dtype=torch.int64, device=block.device)] = False
        self.seen[block] = len(self.taken)
        return picks

    def exact(self, tokens: Tensor) -> Tensor:
        """float64 `[R]`: scores on the grid; equal for equal rows that started with the same."""
        heads, group = twins(self.image.tokens[tokens]).unique(return_inverse=True)
        own = self.image.exact_unit(tokens[heads])
        taken = torch.tensor(self.taken, dtype=torch.int64, device=tokens.device)
        self.know(taken)
        cosines = on_grid(own @ self.exact_rows.T)[group]
        lost = self.lost(tokens, taken, cosines, self.exact_strength)
        return (self.start[tokens] - lost).round().clamp_(min=_NOTHING)

    def know(self, taken: Tensor) -> None:
        """Exact rows of all that suppress, and the scores they were taken with."""
        known = len(self.exact_rows)
        if known == len(taken):
            return
        new = torch.cat([self.image.exact_unit(part) for part in taken[known:].split(64)])
        self.exact_rows = torch.cat((self.exact_rows, new))
        if not self.subtract:
            return
        cosines = on_grid(new @ self.exact_rows.T)
        strength = torch.cat((self.exact_strength, self.start[taken[known:]]))
        for i in range(known, len(taken)):
            row = cosines[i - known, None, :i]
            lost = self.lost(taken[i : i + 1], taken[:i], row, strength[:i])
            strength[i] = (strength[i] - lost[0]).round().clamp_min(0.0)
        self.exact_strength = strength

    def lost(self, tokens: Tensor, taken: Tensor, cosines: Tensor, strength: Tensor) -> Tensor:
        """float64 `[R]`: what `taken` took from `tokens`, of exact cosines `[R, P]`."""
        weights = self.weight.of(cosines.clamp(max=1.0), self.weight.near(tokens, taken))
        weights *= self.image.directed[tokens, None] & self.image.directed[taken]
        if self.subtract:
            return (weights * strength).sum(-1)
        return weights.neg_().log1p_().sum(-1).mul_(-_GRID)
