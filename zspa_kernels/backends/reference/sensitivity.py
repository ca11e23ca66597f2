# SPDX-License-Identifier: Apache-2.0
"""Perturbation sensitivity: how far a projector's output moves when its input does.

ZOO-Prune (arXiv 2509.24837), whose estimate is the mean over directions u_j of
`||P(x + h u_j) - P(x - h u_j)|| / (2 h)`, P(x) = W2 act(W1 x + b1) + b2. W1 is linear and b2
cancels: the difference is `W2 (act(a + h s_j) - act(a - h s_j))`, a = W1 x + b1, s_j = W1 u_j.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..._activations import ACTIVATIONS
from ._common import _VALID_UP_TO, row_sum

# Below this step the difference quotient loses more to cancellation than to curvature, both about
# 1e-10 of the result.
_SMALL_STEP = 2.0**-17
_TOO_LONG = 2.0**64  # the square of a longer response is infinite in float32


def sensitivity(
    features: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    activation: str,
    directions: Tensor,
    radius: float,
) -> Tensor:
    """Scores float32 `[B, N]` of `[B, N, D]`."""
    shifts = torch.stack([times(w1, u) for u in directions.double()])

    def score(x: Tensor) -> Tensor:
        return mean_response(preactivation(w1, b1, x), w2, activation, shifts, radius)

    return by_row(features, score)


def sensitivity_hidden(
    preactivation: Tensor, w2: Tensor, activation: str, shifts: Tensor, radius: float
) -> Tensor:
    """Scores float32 `[B, N]` of pre-activations `[B, N, H]`."""
    shifts = shifts.double()
    return by_row(preactivation, lambda a: mean_response(a, w2, activation, shifts, radius))


def sensitivity_rms(
    features: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    factor: Tensor,
    activation: str,
    diagonal: Tensor | None,
) -> Tensor:
    """Scores float32 `[B, N]` of `[B, N, D]`."""

    def score(x: Tensor) -> Tensor:
        return root_of_form(preactivation(w1, b1, x), factor, activation, diagonal)

    return by_row(features, score)


def sensitivity_rms_hidden(
    preactivation: Tensor, factor: Tensor, activation: str, diagonal: Tensor | None
) -> Tensor:
    """Scores float32 `[B, N]` of pre-activations `[B, N, H]`."""
    return by_row(preactivation, lambda a: root_of_form(a, factor, activation, diagonal))


def by_row(tokens: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """`score` of every row that is finite and not huge, rounded once; NaN for the others."""
    scores = torch.full(tokens.shape[:2], torch.nan, dtype=torch.float32, device=tokens.device)
    for out, rows in zip(scores, tokens, strict=True):
        for n, x in enumerate(rows.double()):
            if row_sum(x * x).float() <= _VALID_UP_TO:
                out[n] = score(x).float()
    return scores.masked_fill(scores > _TOO_LONG, torch.nan)


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """`matrix @ x` in float64, row by row."""
    return row_sum(matrix.double() * x)


def preactivation(w1: Tensor, b1: Tensor | None, x: Tensor) -> Tensor:
    """W1 x + b1 in float64 `[H]`."""
    a = times(w1, x)
    return a if b1 is None else a + b1.double()


def mean_response(a: Tensor, w2: Tensor, activation: str, shifts: Tensor, radius: float) -> Tensor:
    """Mean over the shifts `[m, H]` of the length of the response at `a` `[H]`."""
    act = ACTIVATIONS[activation]
    slope = act.slope(a)
    lengths = []
    for s in shifts:
        step = radius * s
        quotient = (act.value(a + step) - act.value(a - step)) / (2.0 * radius or 1.0)
        # A step that crosses 0, where relu has its kink, is never small: there nothing cancels.
        small = (step.abs() < a.abs().clamp(max=_SMALL_STEP)) | (step == 0.0)
        response = times(w2, torch.where(small, slope * s, quotient))
        lengths.append(row_sum(response * response).sqrt())
    return row_sum(torch.stack(lengths)) / len(shifts)


def root_of_form(a: Tensor, factor: Tensor, activation: str, diagonal: Tensor | None) -> Tensor:
    """sqrt(||factor g||^2 + sum(diagonal g^2)), g the activation's derivative at `a` `[H]`."""
    g = ACTIVATIONS[activation].slope(a)
    form = row_sum(times(factor, g) ** 2) if len(factor) else torch.zeros_like(g[0])
    if diagonal is not None:
        form = form + row_sum(diagonal.double() * g * g)
    return form.sqrt()
