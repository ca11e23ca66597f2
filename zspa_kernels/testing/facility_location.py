# SPDX-License-Identifier: Apache-2.0
"""Oracle and judge of `facility_location`: the gains from their definition, in float64.

    gain_j = w_j (sum_m max(0, b_mj - best_m) + scale / V sum_i max(0, c_ij - best_i))

`c_ij` is the cosine of tokens i and j where positive, or its softmax over j; `best` is the largest
entry of its row over the picks so far, at least 0. Without benefits the factor of the second sum
changes no pick and is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .bounds import FLOAT32_EPS
from .cases import Case
from .judge import Replay, replay
from .oracle import Geometry, greedy64, usable_weights

#: (visual, k, benefits, weights, mask, temperature, scale) -> indices, one segment.
FacilityLocation = Callable[
    [Tensor, int, Tensor | None, Tensor | None, Tensor | None, float, float], Tensor
]


class Coverage:
    """The coverage greedy of one segment between two picks; see `oracle.Greedy`."""

    def __init__(
        self,
        geometry: Geometry,
        benefits: Tensor | None,
        weights: Tensor | None,
        temperature: float,
        scale: float,
        bound: float = 0.0,
    ) -> None:
        n = geometry.n
        self.geometry, self.bound = geometry, bound
        self.eligible = geometry.valid.clone()
        self.weights = torch.ones(n, dtype=torch.float64)
        if weights is not None:
            self.weights, usable = usable_weights(weights)
            self.eligible &= usable
        rows, error = _covering(geometry, geometry.directed & self.eligible, temperature, bound)
        if benefits is not None and len(benefits):
            words = benefits.detach().cpu().double()
            words = torch.where(torch.isfinite(words) & (words > 0), words, 0.0)
            factor = scale / max(1, len(rows))
            rows = torch.cat([words, factor * rows])
            error = torch.cat([torch.zeros_like(words), factor * error])
        self.rows, self.error = rows, error  # [R, N]
        self.best, self.best_error = (torch.zeros(len(rows), dtype=torch.float64) for _ in "ab")
        # What ties whatever the rounding: equal rows, equal weights, equal benefits.
        columns = None if benefits is None else benefits.detach().cpu().T
        self.benefits = torch.zeros(n, 0) if columns is None else columns

    def take(self, token: int) -> None:
        """Add a pick."""
        self.eligible[token] = False
        self.best_error = torch.maximum(self.best_error, self.error[:, token])
        self.best = torch.maximum(self.best, self.rows[:, token])

    def costs(self) -> tuple[Tensor, Tensor]:
        """What the next pick minimises, and the allowed error of each cost.

        Errors of entries add up over the rows that can count. Sums of a column are rounded like the
        products of a cosine: 1e-6 of the sum up to 4096 terms.
        """
        left = self.rows - self.best[:, None]
        error = self.error + self.best_error[:, None]
        gain = left.clamp_min(0.0).sum(0)
        width = torch.where(left + error > 0, error, 0.0).sum(0)
        if self.bound > 0:
            rounding = 1e-6 * max(1.0, (len(self.rows) / 4096) ** 0.5)
            width = width + rounding * gain + FLOAT32_EPS * self._touched(left)
        return -self.weights * gain, self.weights * width

    def _touched(self, left: Tensor) -> Tensor:
        """What the differences of a column subtract: each is rounded at that size."""
        return torch.where(left > 0, self.rows, 0.0).sum(0)

    def ties(self, token: int) -> Tensor:
        """`[N]`: tokens whose float32 gain equals that of `token` whatever the rounding."""
        same = self.geometry.twin == self.geometry.twin[token]
        same = same & (self.weights == self.weights[token])
        return same & (self.benefits == self.benefits[token]).all(-1)


def _covering(
    geometry: Geometry, directed: Tensor, temperature: float, bound: float
) -> tuple[Tensor, Tensor]:
    """How well each token covers every directed one, `[V, N]`, and the largest errors."""
    places = directed.nonzero()[:, 0]
    if not len(places):
        empty = torch.zeros(0, geometry.n, dtype=torch.float64)
        return empty, empty
    cosines = torch.stack([geometry.cosines(int(i)) for i in places])
    if temperature == 0.0:
        rows = torch.where(directed, cosines.clamp_min(0.0), 0.0)
        error = torch.full_like(rows, bound)
    else:
        rows = torch.softmax(torch.where(directed, cosines / temperature, -torch.inf), dim=-1)
        # Numerator and denominator are each off by the error of a cosine over the temperature; and
        # by the roundings of the exponent, at most 2 / temperature, of exp and of the sum.
        relative = 2 * (bound + FLOAT32_EPS) / temperature + 2e-6 * (bound > 0)
        error = rows * (relative if bound > 0 else 0.0)
    return rows, torch.where(directed, error, 0.0)


def facility_location64(
    visual: Tensor,
    k: int,
    *,
    benefits: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """Pick `k` tokens, each with the largest gain.

    Args:
        visual: `[N, D]`, any floating dtype.
        k: Number of picks.
        benefits: `[M, N]` further rows to be covered.
        weights: `[N]` factors of the gains.
        mask: `[N]` bool, True = real token.
        temperature: 0 for cosines, else of the softmax.
        scale: Of the coverage of tokens beside `benefits`.

    Returns:
        `[k]` int64 in the order of picking, -1 where nothing was eligible.
    """
    state = Coverage(Geometry(visual, mask), benefits, weights, temperature, scale)
    return greedy64(state, k)


def check_facility_location(
    visual: Tensor,
    indices: Tensor,
    k: int,
    *,
    bound: float,
    benefits: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 0.0,
    scale: float = 1.0,
) -> Replay:
    """Replay the picks of `facility_location` on one segment.

    Args:
        visual: `[N, D]`, as given to the op.
        indices: `[k]`, what the op returned.
        k: Number of picks asked for.
        bound: Largest error of a cosine, from `bounds.bound`; 0 demands the oracle's own picks.
        benefits: As given to the op.
        weights: As given to the op.
        mask: As given to the op.
        temperature: As given to the op.
        scale: As given to the op.

    Returns:
        How many picks were replayed and how many had only one right answer.

    Raises:
        AssertionError: At the first pick that is wrong.
    """
    state = Coverage(Geometry(visual, mask), benefits, weights, temperature, scale, bound)
    return replay("facility_location", state, indices, k)


def benefits_of(case: Case, rows: int) -> Tensor:
    """`[rows, N]` float32 benefits of a case, some of them not positive or not finite."""
    draw = torch.Generator().manual_seed(case.n + rows)
    benefits = torch.rand(rows, case.n, generator=draw, dtype=torch.float32).square() / case.n
    for start, value in enumerate((torch.nan, torch.inf, -1.0, 0.0)):
        benefits.view(-1)[start::31] = value
    return benefits


def judge_facility_location(
    case: Case,
    run: FacilityLocation,
    backend: str,
    *,
    words: int = 0,
    temperature: float = 0.0,
    scale: float = 1.0,
) -> Replay:
    """Run `case` without its seeds, with `words` rows of benefits, and judge the picks.

    Coverage by cosines of `exact` tokens alone is exact: there the tie rule decides.
    """
    visual, mask, weights = case.visual, case.mask, case.weight_tensor()
    benefits = benefits_of(case, words) if words else None
    indices = run(visual, case.k_diverse, benefits, weights, mask, temperature, scale)
    exact = (
        temperature == 0.0 and not words and case.weights in ("none", "ones", "eighths", "zeros")
    )
    bound = case.bound(backend) if exact else Case("iid", 1, case.d, 0, 0).bound(backend)
    return check_facility_location(
        visual,
        indices,
        case.k_diverse,
        bound=bound,
        benefits=benefits,
        weights=weights,
        mask=mask,
        temperature=temperature,
        scale=scale,
    )
