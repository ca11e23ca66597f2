# SPDX-License-Identifier: Apache-2.0
"""Oracle and judge of `dpp`: Chen, Zhang and Zhou (2018), algorithm 1, in float64.

The factorisation runs on the cosines alone; weights scale the residuals when they are compared,
because the Schur complement of `W C W` is that of `C` between two `W`. Chen's algorithm stops where
no residual is left, at a threshold; here a residual below the threshold counts as 0 and such tokens
come last, by lowest index.

How far a float32 residual may be off: computed in floating point, the factorisation is the exact
one of a matrix whose entries differ from the cosines by at most `e`. The residual of token i after
the picks P is `x' C x` with `x = (-W_i, 1)`, `W_i` the coefficients that express i by the picks. To
first order the matrix's change moves it by at most `e (1 + |W_i|_1)^2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .bounds import FLOAT32_EPS
from .cases import Case
from .judge import Replay, replay
from .oracle import Geometry, greedy64, usable_weights

#: Below this share of its start a residual counts as 0.
DEPENDENT = 2.0**-16

#: (visual, k, weights, mask) -> indices, one segment.
Dpp = Callable[[Tensor, int, Tensor | None, Tensor | None], Tensor]


class Determinantal:
    """The determinantal greedy of one segment between two picks; see `oracle.Greedy`.

    `error` is the largest difference of an entry of the matrix, `e` above.
    """

    def __init__(self, geometry: Geometry, weights: Tensor | None, error: float) -> None:
        self.geometry, self.error = geometry, error
        self.eligible = geometry.valid.clone()
        self.weights = torch.ones(geometry.n, dtype=torch.float64)
        if weights is not None:
            self.weights, usable = usable_weights(weights)
            self.eligible &= usable
        self.residual = geometry.directed.double()  # [N], of the cosines
        self.factor = torch.zeros(0, geometry.n, dtype=torch.float64)  # [t, N], a row per pick
        self.coefficients = torch.zeros(0, geometry.n, dtype=torch.float64)  # [t, N]

    def take(self, token: int) -> None:
        """Add a pick."""
        self.eligible[token] = False
        left = float(self.residual[token])
        if left == 0:
            return
        own = self.factor[:, token]
        entry = self.geometry.cosines(token) - own @ self.factor
        row = entry / math.sqrt(left)
        share = entry / left  # of the new pick in every token
        rest = self.coefficients - torch.outer(self.coefficients[:, token], share)
        self.coefficients = torch.cat([rest, share[None]])
        self.factor = torch.cat([self.factor, row[None]])
        self.residual = self.residual - row.square()
        self.residual[self.residual <= DEPENDENT] = 0.0

    def costs(self) -> tuple[Tensor, Tensor]:
        """What the next pick minimises, and the allowed error of each cost.

        The cost is minus the square root of the weighted residual: no square of a weight overflows.
        """
        width = self.error * (1 + self.coefficients.abs().sum(0)).square() * self.geometry.directed
        if not len(self.factor):
            width.zero_()  # every residual is 1 or 0, and nothing was rounded
        low, high = self.residual - width, self.residual + width
        # On which side of the threshold a kernel sees a residual near it is open.
        low = torch.where(low <= DEPENDENT, 0.0, low)
        high = torch.where((high <= DEPENDENT) | (self.residual == 0) & (width == 0), 0.0, high)
        low, high = self.weights * low.sqrt(), self.weights * high.sqrt()
        rounding = FLOAT32_EPS * high * (width > 0)
        return -(low + high) / 2, (high - low) / 2 + rounding

    def ties(self, token: int) -> Tensor:
        """`[N]`: tokens whose float32 residual equals that of `token` whatever the rounding."""
        same = self.geometry.twin == self.geometry.twin[token]
        return same & (self.weights == self.weights[token])


def elimination_bound(k: int) -> float:
    """Largest error of an element of the factorisation beside that of its cosine.

    An element of a residual matrix is a chain of at most k float32 roundings of numbers that do not
    exceed 1; like the bound of a cosine this one grows with the square root of the chain.
    """
    return FLOAT32_EPS * math.sqrt(k + 2)


def dpp64(
    visual: Tensor, k: int, *, weights: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Pick `k` tokens, each with the largest residual.

    Args:
        visual: `[N, D]`, any floating dtype.
        k: Number of picks.
        weights: `[N]` factors of rows and columns of the kernel.
        mask: `[N]` bool, True = real token.

    Returns:
        `[k]` int64 in the order of picking, -1 where nothing was eligible.
    """
    return greedy64(Determinantal(Geometry(visual, mask), weights, 0.0), k)


def check_dpp(
    visual: Tensor,
    indices: Tensor,
    k: int,
    *,
    bound: float,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
) -> Replay:
    """Replay the picks of `dpp` on one segment.

    Args:
        visual: `[N, D]`, as given to the op.
        indices: `[k]`, what the op returned.
        k: Number of picks asked for.
        bound: Largest error of a cosine, from `bounds.bound`; 0 where cosines are exact.
        weights: As given to the op.
        mask: As given to the op.

    Returns:
        How many picks were replayed and how many had only one right answer.

    Raises:
        AssertionError: At the first pick that is wrong.
    """
    state = Determinantal(Geometry(visual, mask), weights, bound + elimination_bound(k))
    return replay("dpp", state, indices, k)


def judge_dpp(case: Case, run: Dpp, backend: str) -> Replay:
    """Run `case` without its seeds and judge the picks."""
    visual, mask, weights = case.visual, case.mask, case.weight_tensor()
    indices = run(visual, case.k_diverse, weights, mask)
    return check_dpp(
        visual,
        indices,
        case.k_diverse,
        bound=0.0 if case.tokens == "thresholds" else case.bound(backend),
        weights=weights,
        mask=mask,
    )
