# SPDX-License-Identifier: Apache-2.0
"""SensitivityPlan: the closed form against explicit Jacobians, its factor, its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from zspa_kernels._activations import NAMES
from zspa_kernels.sensitivity_plan import _leading_factor, _orthonormal, compact_output
from zspa_kernels.testing.sensitivity import jacobian_sensitivity, projector


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + len(shape)))


def weights(d: int = 24, h: int = 40, o: int = 33) -> tuple[Tensor, Tensor, Tensor]:
    return draw(h, d, seed=1) / math.sqrt(d), draw(h, seed=2), draw(o, h, seed=3) / math.sqrt(h)


def exact(w: tuple[Tensor, Tensor, Tensor], x: Tensor, activation: str, **given: Any) -> Tensor:
    w1, b1, w2 = (t.double() for t in w)
    project = projector(w1, b1, w2, None, activation)
    return jacobian_sensitivity(x.double(), project, **given)


def error(scores: Tensor, right: Tensor) -> float:
    return float(((scores - right) / right).abs().max())


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_closed_form_is_the_frobenius_norm(activation, backend, require_backend) -> None:
    require_backend(backend, "sensitivity_rms")
    w, x = weights(), draw(8, 24)
    plan = zk.SensitivityPlan(*w, activation)
    right = exact(w, x, activation)
    assert error(plan(x, backend=backend), right) < 1e-5
    assert error(plan(preactivation=x @ w[0].T + w[1], backend=backend), right) < 1e-5
    assert error(plan(x.view(2, 4, 24), backend=backend).view(-1), right) < 1e-5


def test_through_the_interpreter(require_backend) -> None:
    require_backend("triton", "sensitivity_rms")
    w, x = weights(), draw(8, 24)
    plan = zk.SensitivityPlan(*w, "gelu")
    assert error(plan(x, backend="triton"), exact(w, x, "gelu")) < 1e-5


def test_given_directions() -> None:
    w, x, u = weights(), draw(8, 24), draw(3, 24, seed=7)
    plan = zk.SensitivityPlan(*w, "silu", directions=u)
    assert error(plan(x), exact(w, x, "silu", directions=u.double())) < 1e-5


@pytest.mark.parametrize(
    ("d", "h", "o", "m"),
    [(3, 40, 2, None), (24, 40, 1, None), (24, 40, 33, 1), (1, 1, 1, None), (5, 64, 64, 2)],
)
def test_a_form_without_full_rank(d: int, h: int, o: int, m: int | None) -> None:
    """Fewer outputs x inputs than hidden units: no Cholesky factor, the eigenvalues serve."""
    w, x = weights(d, h, o), draw(6, d)
    u = None if m is None else draw(m, d, seed=7)
    plan = zk.SensitivityPlan(*w, "gelu", directions=u)
    assert plan.rank <= min(h, o * (m or d))
    given = {} if u is None else {"directions": u.double()}
    assert error(plan(x), exact(w, x, "gelu", **given)) < 1e-5


def test_dead_hidden_units() -> None:
    w, x = weights(), draw(6, 24)
    w[0][[0, 7, 39]] = 0.0
    w[2][:, [3, 7]] = 0.0
    plan = zk.SensitivityPlan(*w, "gelu_tanh")
    assert plan.rank == 36
    alive = plan.factor[:, plan.factor.any(0)]
    assert torch.equal(alive, alive.triu())
    assert error(plan(x), exact(w, x, "gelu_tanh")) < 1e-5
    nothing = zk.SensitivityPlan(w[0], w[1], torch.zeros_like(w[2]), "gelu")
    assert nothing(x).tolist() == [0.0] * 6


def test_the_factor_is_triangular_where_it_can_be() -> None:
    plan = zk.SensitivityPlan(*weights(), "gelu")
    assert plan.rank == 40
    assert torch.equal(plan.factor, plan.factor.triu())
    assert plan.diagonal is None
    assert plan.discarded == pytest.approx(0.0, abs=1e-12)
    assert plan.residual == 0.0


def spectrum(decay: float) -> tuple[Tensor, Tensor, Tensor]:
    w1, b1, w2 = weights(48, 96, 64)
    return w1 * torch.arange(1, 49) ** -decay, b1, w2 * torch.arange(1, 97) ** -decay


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_rank_keeps_the_trace_and_gets_better(decay: float) -> None:
    w, x = spectrum(decay), draw(20, 48)
    right = exact(w, x, "gelu")
    previous = 2.0
    for rank in (0, 1, 4, 16, 64):
        plan = zk.SensitivityPlan(*w, "gelu", rank)
        assert plan.factor.shape == (rank, 96)
        assert plan.rank == rank
        assert plan.diagonal is not None
        trace = plan.factor.double().square().sum() + plan.diagonal.double().sum()
        full = zk.SensitivityPlan(*w, "gelu").factor.double().square().sum()
        assert float(trace) == pytest.approx(float(full), rel=1e-5)
        in_factor = float(plan.factor.double().square().sum() / full)
        assert plan.discarded == pytest.approx(1.0 - in_factor, abs=1e-5)
        assert plan.residual < previous
        previous = plan.residual
        assert error(plan(x), right) < max(3.0 * plan.residual, 1e-5)
    assert zk.SensitivityPlan(*w, "gelu", 96).diagonal is None  # a full rank is exact


def test_few_rows_beside_a_diagonal_are_found() -> None:
    """As good as the rounds, iterations and columns that a plan takes: with fewer of any, worse."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 60, dtype=torch.float64, generator=generator)
    own = 20.0 * torch.rand(60, dtype=torch.float64, generator=generator)
    form = rows.T @ rows + own.diag()
    factor, diagonal = _leading_factor(form, 4)
    near = factor.T @ factor + diagonal.diag()
    assert float((form - near).norm() / form.norm()) < 0.0025


def test_negative_eigenvalues_off_the_diagonal_take_no_row() -> None:
    """Many more of the largest size than a basis has columns, all below 0."""
    block = 1.5 * torch.eye(3, dtype=torch.float64) - 0.5
    factor, _ = _leading_factor(torch.block_diag(*[block] * 40), 4)
    assert float(factor.norm()) > 1.0


def test_a_basis_is_orthonormal_to_the_last_bits() -> None:
    for exponent in (0.0, 1.0, 2.0):  # the last is beyond what products can tell apart
        x = draw(60, 8).double() * 10.0 ** (-exponent * torch.arange(8))
        basis = _orthonormal(x)
        assert torch.allclose(basis.T @ basis, torch.eye(8).double(), rtol=0, atol=1e-14)


def test_calls_copy_no_matrix() -> None:
    """A factor or a W2 whose rows are not contiguous would be copied in every call."""
    w = weights()
    for x in (zk.SensitivityPlan(*w, "gelu"), zk.SensitivityPlan(*w, "gelu", 4)):
        assert x.factor.is_contiguous()
    assert compact_output(w[2]).is_contiguous()
    assert compact_output(draw(50, 40)).is_contiguous()


def test_residual_is_what_the_rank_leaves_out() -> None:
    w = spectrum(0.5)
    plan, full = zk.SensitivityPlan(*w, "gelu", 8), zk.SensitivityPlan(*w, "gelu")
    form = full.factor.double().T @ full.factor.double()
    assert plan.diagonal is not None
    near = plan.factor.double().T @ plan.factor.double() + plan.diagonal.double().diag()
    assert plan.residual == pytest.approx(float((form - near).norm() / form.norm()), rel=1e-4)


def test_a_plan_is_the_same_every_time_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = (zk.SensitivityPlan(*spectrum(0.5), "gelu", 5) for _ in range(2))
    assert torch.equal(first.factor, second.factor)
    assert torch.equal(torch.get_rng_state(), state)


def test_trained_weights_of_half_precision() -> None:
    w, x = weights(), draw(8, 24).bfloat16()
    w1, b1, w2 = (torch.nn.Parameter(t.bfloat16()) for t in w)
    half = w1, b1, w2
    plan = zk.SensitivityPlan(*half, "gelu")
    assert plan.b1 is not None
    for given in (plan.w1, plan.b1, plan.factor, compact_output(w2)):
        assert not given.requires_grad
    scores = plan(x)
    assert not scores.requires_grad
    assert error(scores, exact(half, x, "gelu").detach()) < 1e-2
    wide = zk.SensitivityPlan(*half, "gelu", dtype=torch.float32)
    assert wide.factor.dtype is torch.float32
    assert error(wide(x), exact(half, x, "gelu").detach()) < 1e-5
    narrow = zk.SensitivityPlan(*half, "gelu", dtype=torch.bfloat16)
    assert narrow.factor.dtype is torch.bfloat16
    for wrong in (torch.int8, torch.float64, "bfloat16"):
        with pytest.raises(TypeError, match="SensitivityPlan: dtype must be None, "):
            zk.SensitivityPlan(*half, "gelu", dtype=wrong)
    assert error(narrow(x), exact(half, x, "gelu").detach()) < 1e-2


@pytest.mark.parametrize("o", [5, 40, 77])
def test_compact_output_keeps_every_length(o: int) -> None:
    w2, y = draw(o, 40), draw(40, 9)
    w2[:, 3] = w2[:, 4] if o == 77 else w2[:, 3]  # not of full rank
    r = compact_output(w2)
    assert r.shape == (min(o, 40), 40)
    assert torch.equal(r, r.triu())
    assert torch.allclose((r @ y).norm(dim=0), (w2 @ y).norm(dim=0), rtol=1e-5)


def test_unit_directions() -> None:
    state = torch.get_rng_state()
    u = zk.unit_directions(5, 30, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(u, zk.unit_directions(5, 30, seed=3))
    assert not torch.equal(u, zk.unit_directions(5, 30, seed=4))
    assert u.dtype is torch.float32
    assert torch.allclose(u.norm(dim=1), torch.ones(5))
    with torch.device("meta"):
        assert zk.unit_directions(2, 3).device.type == "cpu"


W1, B1, W2 = weights(4, 6, 5)
NAN = torch.full((6, 4), torch.nan)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"w1": None}, TypeError, "w1 must be a tensor, got None"),
    ({"w1": W1.double()}, TypeError, "w1 must be float32, float16 or bfloat16, got torch.float64"),
    ({"w1": W1[0]}, ValueError, "w1 must be [H, D=4], got [4]"),
    ({"w1": W1[:0]}, ValueError, "w1 must have H >= 1, got [0, 4]"),
    ({"w1": W1[:, :0]}, ValueError, "w1 must have D >= 1, got [6, 0]"),
    ({"w1": NAN}, ValueError, "w1 must be finite, got 24 elements that are not"),
    ({"b1": B1[:2]}, ValueError, "b1 must be [H=6], got [2]"),
    ({"b1": B1 / 0}, ValueError, "b1 must be finite, got 6 elements that are not"),
    ({"w2": W2[:, :3]}, ValueError, "w2 must be [O, H=6], got [5, 3]"),
    ({"w2": W2.to("meta")}, ValueError, "w2 must be on cpu, got meta"),
    ({"w2": W2 * torch.inf}, ValueError, "w2 must be finite, got 30 elements that are not"),
    ({"w1": 1e30 * W1, "w2": 1e30 * W2}, ValueError, "factor in torch.float32 must be finite, "),
    ({"w1": 1e6 * W1, "dtype": torch.half}, ValueError, "factor in torch.float16 must be finite, "),
    (
        {"w1": 1e12 * W1, "w2": 1e12 * W2, "rank": 0},
        ValueError,
        "diagonal in torch.float32 must be finite, got 6 elements that are not",
    ),
    ({"activation": "tanh"}, ValueError, "activation must be one of gelu, gelu_tanh, "),
    ({"activation": None}, TypeError, "activation must be one of gelu, gelu_tanh, "),
    ({"rank": 1.5}, TypeError, "rank must be an int, got float 1.5"),
    ({"rank": True}, TypeError, "rank must be an int, got bool True"),
    ({"rank": -1}, ValueError, "rank must be at least 0, got -1"),
    ({"directions": W1[:0]}, ValueError, "directions must have m >= 1, got [0, 4]"),
    ({"directions": W2}, ValueError, "directions must be [m, D=4], got [5, 6]"),
]


@pytest.mark.parametrize(("bad", "kind", "text"), BAD, ids=[text[:40] for _, _, text in BAD])
def test_bad_plans(bad: dict[str, Any], kind: type[Exception], text: str) -> None:
    arguments = {"w1": W1, "b1": B1, "w2": W2, "activation": "gelu", **bad}
    with pytest.raises(kind) as caught:
        zk.SensitivityPlan(**arguments)
    assert str(caught.value).startswith(f"SensitivityPlan: {text}")


def test_bad_calls() -> None:
    plan = zk.SensitivityPlan(W1, B1, W2, "gelu")
    x = draw(3, 4)
    for arguments, kind, text in (
        ({}, TypeError, "features must be given, or preactivation, got neither"),
        ({"features": x, "preactivation": x}, ValueError, r"features must be given, .* got both"),
        ({"features": [1.0]}, TypeError, "features must be a tensor, got list"),
        ({"features": x[:, :3]}, ValueError, r"features must have 4 channels, got \[3, 3\]"),
        ({"features": x[0, 0]}, ValueError, r"features must have 4 channels, got \[\]"),
        ({"preactivation": x}, ValueError, r"preactivation must have 6 channels, got \[3, 4\]"),
        ({"features": x[0]}, ValueError, r"features must be \[N, D\] or \[B, N, D\], got \[4\]"),
        ({"features": x, "backend": "fast"}, ValueError, "backend must be one of auto, "),
    ):
        with pytest.raises(kind, match=text):
            plan(**arguments)


def test_bad_directions() -> None:
    for m, d, kind in ((0, 3, ValueError), (2, 0, ValueError), (2.5, 3, TypeError)):
        with pytest.raises(kind, match=r"unit_directions: [md] must be"):
            zk.unit_directions(m, d)
    for seed in (1.5, None, True):
        with pytest.raises(TypeError, match="unit_directions: seed must be an int, got"):
            zk.unit_directions(2, 3, seed)


def test_repr_says_what_was_left_out() -> None:
    text = repr(zk.SensitivityPlan(*weights(), "gelu", 4))
    assert text.startswith("SensitivityPlan(D=24, H=40, activation='gelu', rank=4, discarded=0.")
    assert "residual=0." in text


def test_a_projector_of_zeros_answers_with_zeros() -> None:
    plan = zk.SensitivityPlan(torch.ones(4, 3), None, torch.zeros(2, 4), "gelu")
    assert (plan.discarded, plan.residual) == (0.0, 0.0)
    assert plan(torch.ones(5, 3)).tolist() == [0.0] * 5
    few = zk.SensitivityPlan(torch.ones(4, 3), None, torch.zeros(2, 4), "gelu", 2)
    assert few(torch.ones(5, 3)).tolist() == [0.0] * 5
