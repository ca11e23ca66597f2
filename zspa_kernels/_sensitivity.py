# SPDX-License-Identifier: Apache-2.0
"""Sensitivity of a projector: from the module and its features to one score per token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._contract import sensitivity as _rules
from ._contract import values as _values
from ._ops.call import call, check_backend
from .backends._blas import full_float32
from .projectors import Projector, read_projector
from .sensitivity_plan import SensitivityPlan, compact_output, unit_directions

SCORES = ("closed_form", "zeroth_order", "linearised", "norm")


@_values.naming("sensitivity")
def sensitivity(
    projector: nn.Module | Projector | SensitivityPlan,
    features: Tensor,
    *,
    score: str = "closed_form",
    rank: int | None = None,
    directions: Tensor | int = 64,
    seed: int = 0,
    radius: float = 0.01,
    backend: str = "auto",
) -> Tensor:
    """Score every token by how far the projector's output moves when its input does.

    Args:
        projector: the module between vision tower and language model, `[norm,] Linear, activation,
            Linear` or a single Linear; see `projectors`. With `"closed_form"`, a module is factored
            in every call, which takes seconds; for many calls, make a `SensitivityPlan` once.
        features: the projector's input, `[B, N, D]` or `[N, D]`. If the projector merges patches,
            there is one score for each merged token, and it is the merged token, after the norm,
            that is perturbed.
        score: `"closed_form"`: root mean square response over all unit directions,
            `||J||_F / sqrt(D)`. `"zeroth_order"`: ZOO-Prune's estimate, the mean over `directions`
            of `||P(x + r u) - P(x - r u)|| / (2 r)`. `"linearised"`: its limit for radius r = 0.
            `"norm"`: `||P(x)||`, a cheap proxy; how well it ranks depends on the projector.
        rank: rank of the closed form's factor; see `SensitivityPlan`.
        directions: `[m, D]`, used as given, or how many random unit vectors.
        seed: seed of the random directions; see `unit_directions`.
        radius: length of the perturbation, at least 0.
        backend: see `select`; `"norm"` and a single Linear need none.

    Returns:
        float32 `[B, N]` or `[N]`. NaN for tokens with NaN, Inf or a length beyond 2**40. One value
        for all tokens if the projector is linear, but for `"norm"`.

    Raises:
        TypeError, ValueError: arguments of a wrong kind or shape; a projector that is not
            understood; an unknown score.
        NotImplementedError, ImportError: as in `select`.

    Complexity: with N tokens, H hidden units, O outputs, m directions: N R H multiply-adds for the
    closed form with a factor of R rows, N m H O for the estimates; N D H for the first layer.

    Source: ZOO-Prune, arXiv 2509.24837; the closed form is its limit for many directions, as a root
    mean square.

    Example:
        >>> import torch
        >>> linear = torch.nn.Linear(2, 2, bias=False)
        >>> _ = linear.weight.data.copy_(torch.eye(2))
        >>> projector = torch.nn.Sequential(linear, torch.nn.ReLU(), linear)
        >>> sensitivity(projector, torch.tensor([[3.0, 3.0], [3.0, -3.0]]))
        tensor([1.0000, 0.7071])
    """
    check_backend("sensitivity", backend)
    scorer = Scorer.of("sensitivity", projector, score, rank, directions, seed, radius)
    return scorer(features, backend)


@dataclass(frozen=True, eq=False)
class Scorer:
    """A projector prepared for one kind of score."""

    op: str
    score: str
    projector: Projector | SensitivityPlan
    plan: SensitivityPlan | None  # made of the projector
    directions: Tensor | None
    radius: float

    @classmethod
    def of(
        cls,
        op: str,
        projector: nn.Module | Projector | SensitivityPlan,
        score: str,
        rank: int | None,
        directions: Tensor | int,
        seed: int,
        radius: float,
        reuse: bool = False,
    ) -> Scorer:
        """Check everything and prepare; `reuse`: also what pays only over several calls."""
        _values.option(op, "score", score, SCORES)
        radius = _values.ratio(op, "radius", radius)
        if isinstance(projector, SensitivityPlan):
            if score != "closed_form":
                raise ValueError(
                    f"{op}: projector must be a module for score {score!r}, got a SensitivityPlan"
                )
            return cls(op, score, projector, None, None, radius)
        read = read_projector(projector, op)
        if score == "norm":
            return cls(op, score, read, None, None, radius)
        if score == "closed_form":
            plan = None
            if read.w2 is not None:
                plan = SensitivityPlan(read.w1, read.b1, read.w2, read.activation, rank)
            return cls(op, score, read, plan, None, radius)
        if not isinstance(directions, Tensor):
            m = _values.integer_at_least(op, "directions", directions, 1)
            directions = unit_directions(m, read.w1.shape[1], seed)
        _rules.movable(op, "directions", directions)
        directions = directions.to(read.w1.device)
        _rules.directions(op, directions, read.w1)
        if reuse and read.w2 is not None:
            read = read.with_output(compact_output(read.w2))
        return cls(op, score, read, None, directions, 0.0 if score == "linearised" else radius)

    def __call__(self, features: Tensor, backend: str = "auto") -> Tensor:
        """Scores `[B, N]` of the projector's features."""
        p = self.projector
        if isinstance(p, SensitivityPlan):
            return p(features, backend=backend)
        _rules.features(self.op, features, p.w1)
        # The module may be one of the caller's own: a norm, whose dtype autocast would change.
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            x = p.inputs(features, self.op)
            if self.score == "norm":
                with full_float32(features.device):
                    size = row_lengths(p.layers(x))
                # An activation may make something finite of what is infinite.
                return size.masked_fill(row_lengths(x).isnan(), torch.nan)
            if p.w2 is None:
                return self._constant(x, p.w1.double())
        if self.plan is not None:
            return self.plan(x, backend=backend)
        arguments = (x, p.w1, p.b1, p.w2, p.activation, self.directions, self.radius)
        scores: Tensor = call("sensitivity", backend, arguments)
        return scores

    def _constant(self, x: Tensor, w: Tensor) -> Tensor:
        """The response of a linear projector: the same for every valid token."""
        if self.directions is None:
            response = w.norm() / w.shape[1] ** 0.5
        else:
            response = (self.directions.double() @ w.T).norm(dim=1).mean()
        return torch.where(row_lengths(x).isnan(), torch.nan, response.float())


def row_lengths(x: Tensor) -> Tensor:
    """Length of every row in float32, NaN for invalid ones."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    return length.masked_fill(length > 2.0**40, torch.nan)
