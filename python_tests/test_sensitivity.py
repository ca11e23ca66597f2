# SPDX-License-Identifier: Apache-2.0
"""The sensitivity ops against the published formula and the Jacobian in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from python_tests.runners import BACKENDS, each_backend, strided_views
from zspa_kernels._activations import ACTIVATIONS, NAMES
from zspa_kernels._ops.call import call
from zspa_kernels.testing.sensitivity import (
    TORCH_ACTIVATIONS,
    jacobian_sensitivity,
    linearised_sensitivity,
    projector,
    published_sensitivity,
)

Require = Callable[..., None]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of a score, relative: what float32 and half-precision products are allowed.
BOUND = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}
each_activation = pytest.mark.parametrize("activation", NAMES)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + len(shape))).to(dtype)


@dataclass
class Problem:
    """A projector of unit-sized responses, tokens and directions, all of one dtype."""

    features: Tensor
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    directions: Tensor
    activation: str

    @classmethod
    def of(
        cls,
        n: int,
        d: int,
        h: int,
        o: int,
        m: int,
        activation: str = "gelu",
        dtype: torch.dtype = torch.float32,
        bias: bool = True,
        scale: float = 1.0,
    ) -> Problem:
        directions = torch.nn.functional.normalize(draw(m, d, seed=4), dim=1)
        return cls(
            (draw(n, d) * scale).to(dtype),
            (draw(h, d, seed=1) / math.sqrt(d)).to(dtype),
            draw(h, seed=2).to(dtype) if bias else None,
            (draw(o, h, seed=3) / math.sqrt(h)).to(dtype),
            directions.to(dtype),
            activation,
        )

    @property
    def exact(self) -> Callable[[Tensor], Tensor]:
        b1 = None if self.b1 is None else self.b1.double()
        return projector(self.w1.double(), b1, self.w2.double(), None, self.activation)

    @property
    def preactivation(self) -> Tensor:
        return torch.nn.functional.linear(self.features, self.w1, self.b1)

    @property
    def shifts(self) -> Tensor:
        return self.directions.float() @ self.w1.float().T

    def published(self, radius: float) -> Tensor:
        x, u = self.features.double(), self.directions.double()
        if radius == 0.0:
            return linearised_sensitivity(x, self.exact, u)
        return published_sensitivity(x, self.exact, u, radius)

    def score(self, radius: float, backend: str) -> Tensor:
        arguments = (self.features, self.w1, self.b1, self.w2, self.activation, self.directions)
        return call("sensitivity", backend, (*arguments, radius))

    def rms(
        self, factor: Tensor, backend: str, diagonal: Tensor | None = None, hidden: bool = False
    ) -> Tensor:
        form = (factor, self.activation, diagonal)
        if hidden:
            return call("sensitivity_rms_hidden", backend, (self.preactivation, *form))
        return call("sensitivity_rms", backend, (self.features, self.w1, self.b1, *form))

    def exact_rms(self, factor: Tensor, diagonal: Tensor | None = None) -> Tensor:
        """By PyTorch's own derivative of its own activation."""
        b1 = 0.0 if self.b1 is None else self.b1.double()
        a = (self.features.double() @ self.w1.double().T + b1).requires_grad_()
        TORCH_ACTIVATIONS[self.activation](a).sum().backward()
        g = a.grad
        assert g is not None
        form = (g @ factor.double().T).square().sum(-1)
        if diagonal is not None:
            form = form + (g * g) @ diagonal.double()
        return form.sqrt()


def error(scores: Tensor, exact: Tensor) -> float:
    """Largest relative error."""
    assert scores.dtype is torch.float32
    assert scores.shape == exact.shape
    return float(((scores - exact) / exact).abs().max())


# ---- the published estimate ---------------------------------------------------------------------


@each_backend
@each_activation
@pytest.mark.parametrize("radius", [0.0, 0.01, 0.7])
def test_published_formula(
    activation: str, radius: float, backend: str, require_backend: Require
) -> None:
    """float32; radius 0 is the directional derivative, 0.7 has steps beyond the series."""
    require_backend(backend, "sensitivity")
    problem = Problem.of(7, 19, 37, 23, 5, activation)
    assert error(problem.score(radius, backend), problem.published(radius)) < 1e-6


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype, backend: str, require_backend: Require) -> None:
    """The oracle is given the rounded values, so what is left is the arithmetic."""
    require_backend(backend, "sensitivity")
    problem = Problem.of(5, 33, 64, 48, 3, "gelu_tanh", dtype)
    assert error(problem.score(0.01, backend), problem.published(0.01)) < BOUND[dtype]
    factor = draw(20, 64, seed=5).to(dtype) / 8
    assert error(problem.rms(factor, backend), problem.exact_rms(factor)) < BOUND[dtype]


@pytest.mark.parametrize("radius", [1e-2, 1e-5, 1e-12, 1e-30])
def test_a_small_radius_loses_nothing(radius: float, require_backend: Require) -> None:
    """The difference of two float32 values would be noise from about 1e-5 on."""
    problem = Problem.of(6, 16, 40, 24, 3, "silu", scale=3.0)
    limit = problem.published(0.0) if radius < 1e-3 else problem.published(radius)
    for backend in BACKENDS:
        require_backend(backend, "sensitivity")
        assert error(problem.score(radius, backend), limit) < 1e-6, backend


@each_backend
@each_activation
def test_every_step_of_one_unit(activation: str, backend: str, require_backend: Require) -> None:
    """One hidden unit: the score is |act(a + r s) - act(a - r s)| / 2r, for steps of every size."""
    require_backend(backend, "sensitivity_hidden")
    a = torch.linspace(-9.0, 9.0, 61)[:, None]
    one = torch.ones(1, 1)
    act = TORCH_ACTIVATIONS[activation]
    for step in (0.003, 0.0624, 0.0626, 0.4, 5.0, 200.0):
        shifts = torch.tensor([[-step / 0.5]])
        scores = call("sensitivity_hidden", backend, (a, one, activation, shifts, 0.5))
        exact = (act(a.double() + step) - act(a.double() - step)).abs()[:, 0]
        assert float((scores - exact).abs().max()) < 3e-6 * max(1.0, step), step


@each_backend
def test_relu_is_exact_across_its_kink(backend: str, require_backend: Require) -> None:
    require_backend(backend, "sensitivity_hidden")
    a = torch.tensor([[-2.0], [-0.5], [0.0], [0.25], [2.0]])
    for radius, part in ((1.0, [0.0, 0.25, 0.5, 0.625, 1.0]), (0.0, [0.0, 0.0, 0.0, 1.0, 1.0])):
        arguments = (a, torch.ones(1, 1), "relu", torch.tensor([[1.0]]), radius)
        scores = call("sensitivity_hidden", backend, arguments)
        assert scores.tolist() == part


@each_backend
def test_directions_are_used_as_given(backend: str, require_backend: Require) -> None:
    require_backend(backend, "sensitivity")
    problem = Problem.of(4, 8, 12, 6, 3)
    single = problem.score(0.0, backend)
    problem.directions = problem.directions * 3.0
    assert torch.allclose(problem.score(0.0, backend), 3.0 * single, rtol=1e-6)
    problem.directions = problem.directions.flip(0).repeat(4, 1)  # more of the same
    assert torch.allclose(problem.score(0.0, backend), 3.0 * single, rtol=1e-6)


# ---- the quadratic form -------------------------------------------------------------------------


@each_backend
@each_activation
def test_form(activation: str, backend: str, require_backend: Require) -> None:
    require_backend(backend, "sensitivity_rms")
    problem = Problem.of(9, 21, 45, 30, 1, activation, scale=2.0)
    factor = draw(70, 45, seed=5)  # more rows than the Triton backend takes at a time
    diagonal = torch.rand(45, generator=torch.Generator().manual_seed(0))
    for d in (None, diagonal):
        exact = problem.exact_rms(factor, d)
        assert error(problem.rms(factor, backend, d), exact) < 1e-6
        assert error(problem.rms(factor, backend, d, hidden=True), exact) < 1e-6
    nothing = factor[:0]
    assert (
        error(problem.rms(nothing, backend, diagonal), problem.exact_rms(nothing, diagonal)) < 1e-6
    )
    assert problem.rms(nothing, backend).tolist() == [0.0] * 9


@each_backend
@each_activation
def test_the_derivative_everywhere(activation: str, backend: str, require_backend: Require) -> None:
    """A factor of one entry: the score is |act'(a)|, far beyond where anything overflows."""
    require_backend(backend, "sensitivity_rms_hidden")
    a = torch.cat([torch.linspace(-14.0, 14.0, 225), torch.tensor([-1e12, -1e4, -90.0, 90.0, 1e9])])
    x = a.double().requires_grad_()
    TORCH_ACTIVATIONS[activation](x).sum().backward()
    arguments = (a[:, None], torch.ones(1, 1), activation)
    scores = call("sensitivity_rms_hidden", backend, arguments)
    assert x.grad is not None
    assert float((scores - x.grad.abs()).abs().max()) < 3e-7
    below = float(activation == "identity")
    for bias, slope in ((1e25, 1.0), (-1e25, below), (torch.nan, torch.nan)):
        layer = (torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([bias]), torch.ones(1, 1))
        (score,) = call("sensitivity_rms", backend, (*layer, activation)).tolist()
        assert score == pytest.approx(slope, rel=0.0, abs=1e-30, nan_ok=True)


def test_the_table_of_derivatives() -> None:
    x = torch.linspace(-100.0, 100.0, 2001, dtype=torch.float64, requires_grad=True)
    for name, activation in ACTIVATIONS.items():
        y = TORCH_ACTIVATIONS[name](x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert torch.allclose(activation.value(x), y, rtol=1e-12, atol=1e-14), name
        assert torch.allclose(activation.slope(x), slope, rtol=1e-12, atol=1e-14), name


@each_backend
def test_zeros_of_the_factor_change_nothing(backend: str, require_backend: Require) -> None:
    """Triangular, block-triangular, empty rows: where zeros are skipped, only zeros are."""
    require_backend(backend, "sensitivity_rms")
    h = 1100 if backend == "cpp" else 40
    problem = Problem.of(3, 8, h, 4, 1)
    upper = draw(h, h, seed=5).triu() / math.sqrt(h)
    gap = upper.clone()
    gap[h // 3 : h // 2] = 0.0
    for factor in (upper, upper.T.contiguous(), upper.bfloat16(), gap):
        exact = problem.exact_rms(factor)
        assert error(problem.rms(factor, backend), exact) < BOUND[factor.dtype]


# ---- tokens -------------------------------------------------------------------------------------


@each_backend
def test_invalid_tokens_score_nan_and_disturb_nobody(
    backend: str, require_backend: Require
) -> None:
    require_backend(backend, "sensitivity")
    problem = Problem.of(9, 12, 20, 10, 2)
    factor = draw(6, 20, seed=5)
    run = (lambda: problem.score(0.01, backend), lambda: problem.rms(factor, backend))
    plain = [f() for f in run]
    hidden = problem.rms(factor, backend, hidden=True)
    problem.features[1, 3] = torch.nan
    problem.features[4, 0] = torch.inf
    problem.features[6] = 2.0**40
    problem.features[8] = 0.0
    rest = [0, 2, 3, 5, 7]
    for f, before in zip(run, plain, strict=True):
        after = f()
        assert after.isnan().nonzero().flatten().tolist() == [1, 4, 6]
        assert torch.equal(after[rest], before[rest])
    after = problem.rms(factor, backend, hidden=True)
    assert torch.equal(after[rest], hidden[rest])
    assert after[[1, 4, 6]].isnan().all()


@each_backend
def test_a_score_beyond_float32_is_nan(backend: str, require_backend: Require) -> None:
    require_backend(backend, "sensitivity")
    problem = Problem.of(3, 6, 8, 5, 2)
    problem.w2 = problem.w2 * 1e38
    assert problem.score(0.01, backend).isnan().all()
    assert problem.rms(problem.w2, backend).isnan().all()


@each_backend
def test_batches_and_strides(backend: str, require_backend: Require) -> None:
    require_backend(backend, "sensitivity")
    problem = Problem.of(10, 12, 20, 10, 2, dtype=torch.bfloat16)
    factor = draw(6, 20, seed=5)
    tokens = problem.features
    alone = problem.score(0.01, backend), problem.rms(factor, backend)
    views = {
        "a batch": tokens.view(2, 5, 12),
        "a repeated row": tokens[:1].expand(6, -1),
        "a repeated batch": tokens.expand(3, -1, -1),
        **strided_views(tokens),
    }
    for name, view in views.items():
        problem.features = view
        for got, plain in zip(
            (problem.score(0.01, backend), problem.rms(factor, backend)), alone, strict=True
        ):
            assert got.shape == view.shape[:-1], name
            expected = plain[:1].expand(6) if name == "a repeated row" else plain
            expected = expected.view(2, 5) if name == "a batch" else expected.expand_as(got)
            assert torch.allclose(got, expected, rtol=1e-5), name
    for weight in ("w1", "w2", "directions"):
        problem.features = tokens
        for name, view in strided_views(getattr(problem, weight)).items():
            changed = Problem(**{**vars(problem), weight: view})
            assert torch.allclose(changed.score(0.01, backend), alone[0], rtol=1e-5), (weight, name)
    shifts, steps = problem.shifts, (problem.w2, "gelu")
    hidden = [
        call("sensitivity_hidden", backend, (problem.preactivation, *steps, each, 0.01))
        for each in (shifts, *strided_views(shifts).values())
    ]
    for each in hidden[1:]:
        assert torch.equal(each, hidden[0])
    for name, view in strided_views(factor).items():
        assert torch.allclose(problem.rms(view, backend), alone[1], rtol=1e-5), name


@each_backend
@pytest.mark.parametrize("shape", [(0, 12), (0, 5, 12), (3, 0, 12)])
def test_no_tokens(shape: tuple[int, ...], backend: str, require_backend: Require) -> None:
    require_backend(backend, "sensitivity")
    problem = Problem.of(1, 12, 20, 10, 2)
    problem.features = torch.empty(shape)
    assert problem.score(0.01, backend).shape == shape[:-1]
    for hidden in (False, True):
        assert problem.rms(draw(6, 20), backend, hidden=hidden).shape == shape[:-1]


@pytest.mark.parametrize(("n", "m"), [(1700, 2), (3, 1700), (800, 3)])
def test_more_than_one_chunk(n: int, m: int, require_backend: Require) -> None:
    """More tokens, directions and weight rows than the CPU backend takes at a time."""
    require_backend("cpp", "sensitivity")
    problem = Problem.of(n, 8, 24, 1100, m, "quick_gelu")
    assert error(problem.score(0.01, "cpp"), problem.published(0.01)) < 1e-6
    factor = draw(1030, 24, seed=5)
    assert error(problem.rms(factor, "cpp"), problem.exact_rms(factor)) < 1e-6


def test_tokens_in_several_launches(require_backend: Require) -> None:
    """More tokens than pre-activations exist for at a time on a GPU."""
    require_backend("triton", "sensitivity")
    problem = Problem.of(2100, 2, 3, 2, 1)
    assert error(problem.score(0.01, "triton"), problem.published(0.01)) < 1e-6


# ---- the closed form is the Jacobian's ----------------------------------------------------------


@each_activation
def test_rms_of_directions_is_the_jacobian(activation: str, require_backend: Require) -> None:
    """sqrt(mean ||J u||^2) = the form with (W2'W2) o (V'V) / m, here through its square root."""
    problem = Problem.of(6, 10, 14, 9, 4, activation)
    v, w2 = problem.shifts.double(), problem.w2.double()
    form = (w2.T @ w2) * (v.T @ v) / len(v)
    values, vectors = torch.linalg.eigh(form)
    factor = (values.clamp(min=0.0).sqrt() * vectors).T.float()
    exact = jacobian_sensitivity(
        problem.features.double(), problem.exact, problem.directions.double()
    )
    for backend in BACKENDS:
        require_backend(backend, "sensitivity_rms")
        assert error(problem.rms(factor, backend), exact) < 1e-5, backend
