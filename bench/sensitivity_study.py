# SPDX-License-Identifier: Apache-2.0
"""What the study of ZOO-Prune's sensitivity compares: projectors, variants, and how they agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zspa_kernels import SensitivityPlan, unit_directions
from zspa_kernels._ops.call import call
from zspa_kernels.testing import tokens
from zspa_kernels.testing.sensitivity import Function, projector, published_sensitivity

ACTIVATION = "gelu"
RADIUS = 0.01  # of the published code, as are 64 directions

NORM = "norm of the output"

#: Exponents of the singular values of W1 and W2: equal, slowly and quickly falling.
SPECTRA = {"flat": 0.0, "mid": 0.5, "steep": 1.0}


@dataclass(frozen=True)
class Size:
    """Tokens, and the widths of a projector."""

    n: int
    d: int
    h: int
    o: int


SIZES = {
    "llava15": Size(576, 1024, 4096, 4096),  # what is timed
    "quarter": Size(576, 256, 1024, 1024),  # what float64 can follow for every variant
    "smoke": Size(40, 24, 64, 48),
}


@dataclass(frozen=True)
class Problem:
    """Features and weights with bfloat16 values, so that every dtype starts from the same."""

    features: Tensor  # [N, D]
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    @classmethod
    def draw(cls, size: Size, decay: float = 0.0, seed: int = 0) -> Problem:
        """Tokens `vlm` of unit variance, weights of a given spectrum and pre-activations near 1."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        x = tokens("vlm", size.n, size.d, seed)
        w1 = _with_decay(normal(size.h, size.d), decay)
        w2 = _with_decay(normal(size.o, size.h), decay)
        b1, b2 = normal(size.h) * 0.5, normal(size.o)
        values = (x / x.std(), w1 / math.sqrt(size.d), b1, w2 / math.sqrt(size.h), b2)
        return cls(*(value.bfloat16() for value in values))

    def to(self, dtype: torch.dtype) -> Problem:
        """The same values in another dtype."""
        return Problem(*(x.to(dtype) for x in vars(self).values()))

    @property
    def project(self) -> Function:
        """The whole projector."""
        return projector(self.w1, self.b1, self.w2, self.b2, ACTIVATION)

    @property
    def preactivation(self) -> Tensor:
        """What the projector's own forward pass has."""
        return torch.nn.functional.linear(self.features, self.w1, self.b1)

    def plan(self, rank: int | None = None, directions: Tensor | None = None) -> SensitivityPlan:
        """The form of this projector."""
        weights = (self.w1, self.b1, self.w2, ACTIVATION, rank)
        return SensitivityPlan(*weights, directions=directions)

    def estimate(
        self, directions: Tensor, radius: float = RADIUS, w2: Tensor | None = None
    ) -> Tensor:
        """This package's zeroth-order estimate."""
        last = self.w2 if w2 is None else w2
        arguments = (self.features, self.w1, self.b1, last, ACTIVATION, directions, radius)
        scores: Tensor = call("sensitivity", "auto", arguments)
        return scores

    def participation(self) -> float:
        """(sum s^2)^2 / sum s^4 of the singular values of the Jacobian, mean over eight tokens."""
        jacobian = torch.func.vmap(torch.func.jacrev(self.project))(self.features[:8])
        squares = torch.linalg.svdvals(jacobian).square()
        ratio: Tensor = squares.sum(1).square() / squares.square().sum(1)
        return float(ratio.mean())


def _with_decay(w: Tensor, decay: float) -> Tensor:
    """`w` with its singular values multiplied by rank^-decay, its Frobenius norm kept."""
    if decay == 0.0:
        return w
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    s = s * torch.arange(1, len(s) + 1) ** -decay
    scaled = (u * s) @ v
    return scaled * (w.norm() / scaled.norm())


# ---- agreement with the published formula in float64 ---------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far a variant ranks tokens as the published formula does.

    Attributes:
        spectrum: Of the projector.
        m: Directions of the published formula, and of the variant if it has any.
        variant: What is compared.
        spearman: Correlation of the ranks.
        top10: Share of the ten per cent most sensitive tokens that are the same.
        error: Median relative difference of the scores; None for the norm, another quantity.
    """

    spectrum: str
    m: int
    variant: str
    spearman: float
    top10: float
    error: float | None


def agreement(size: Size, spectrum: str, counts: tuple[int, ...], seed: int) -> Iterator[Agreement]:
    """Every variant against float64, with the same directions and as many of them."""
    problem = Problem.draw(size, SPECTRA[spectrum], seed)
    exact = problem.to(torch.float64)
    single = problem.to(torch.float32)
    rank = size.h // 16
    alone = single.plan(rank)
    alone.diagonal = None  # what a truncated factor is without the diagonal beside it
    without_directions = {
        "closed form": single.plan(),
        f"closed form, rank H/16 = {rank}": single.plan(rank),
        "closed form, diagonal only": single.plan(0),
        f"closed form, rank {rank} without diagonal": alone,
    }
    fixed = {name: plan(single.features) for name, plan in without_directions.items()}
    fixed[NORM] = exact.project(exact.features).norm(dim=-1)
    for m in counts:
        u, other = (unit_directions(m, size.d, s) for s in (seed, seed + 1))
        right = published_sensitivity(exact.features, exact.project, u.double(), RADIUS, 8)
        halves = {
            f"published in {str(half).removeprefix('torch.')}": published_sensitivity(
                problem.to(half).features, problem.to(half).project, u, RADIUS, 8
            )
            for half in (torch.float16, torch.bfloat16)
        }
        variants: dict[str, Tensor] = {
            "zeroth order": single.estimate(u),
            "zeroth order, bfloat16 input": problem.estimate(u),
            "linearised": single.estimate(u, 0.0),
            "root mean square of the directions": single.plan(directions=u)(single.features),
            "published, other directions": published_sensitivity(
                exact.features, exact.project, other.double(), RADIUS, 8
            ),
            **halves,
            **fixed,
        }
        for name, scores in variants.items():
            spearman, top, error = compare(scores.double(), right)
            other_quantity = name == NORM
            yield Agreement(spectrum, m, name, spearman, top, None if other_quantity else error)


def compare(scores: Tensor, right: Tensor) -> tuple[float, float, float]:
    """(Spearman's correlation, share of the top tenth, median relative difference)."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (scores, right)])
    spearman = float(torch.corrcoef(ranks)[0, 1])
    k = max(1, round(len(right) / 10))
    top = [set(x.topk(k).indices.tolist()) for x in (scores, right)]
    error = float(((scores - right) / right).abs().median())
    return spearman, len(top[0] & top[1]) / k, error


# ---- what is timed ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """One contender: its call, the work it does and a check of what it returns."""

    call: Callable[[], Tensor]
    gflop: float
    exact: Callable[[], Tensor] | None = None  # of the first tokens, in float64
    bound: float = 0.0


def form_gflop(size: Size, rows: int, features: bool, triangular: bool = False) -> float:
    """Of a quadratic form with a factor of `rows` rows."""
    product = size.n * rows * size.h * (0.5 if triangular else 1.0)
    return 2e-9 * (product + (size.n * size.d * size.h if features else 0))


def estimate_gflop(size: Size, m: int) -> float:
    """Of one W1 and one W2 product of the difference."""
    return 2e-9 * size.h * (size.n * size.d + m * size.d + size.n * m * size.o)


def published_gflop(size: Size, m: int) -> float:
    """Of two passes of the projector for every direction."""
    return 2 * m * forward_gflop(size)


def forward_gflop(size: Size) -> float:
    """Of one pass of the projector."""
    return 2e-9 * size.n * size.h * (size.d + size.o)


def closed_form64(problem: Problem, count: int) -> Tensor:
    """||W2 diag(g) W1||_F / sqrt(D) of the first tokens in float64."""
    p = problem.to(torch.float64)
    a = p.preactivation[:count].detach().requires_grad_()
    with torch.enable_grad():
        torch.nn.functional.gelu(a).sum().backward()
    if a.grad is None:
        raise RuntimeError("no gradient")
    lengths = [((p.w2 * g) @ p.w1).norm() for g in a.grad]
    return torch.stack(lengths) / math.sqrt(p.w1.shape[1])
