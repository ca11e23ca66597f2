# SPDX-License-Identifier: Apache-2.0
"""Soft suppression in Triton: each pick is that of float64, groups of programs, the one launch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from python_tests.triton_small import GROUPS, Runs
from zspa_kernels.backends.triton import _common, _exact, _scratch, soft_suppress
from zspa_kernels.backends.triton import soft_suppress_phases as phases
from zspa_kernels.testing import MODELS, special, tokens
from zspa_kernels.testing.suppression import soft_suppress64


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch, soft_suppress, lanes=8, own_rows=4, wide=16, ahead=2)


def _places(n: int) -> Tensor:
    place = torch.arange(n)
    return torch.stack((place // 5, place % 5), -1)


def _run(
    visual: Tensor,
    scores: Tensor,
    k: int,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    rule: str = "subtract",
    sharpness: float = 20.0,
    spread: float = math.inf,
    reach: float = math.inf,
) -> Tensor:
    return soft_suppress.soft_suppress(
        visual, scores, k, sharpness, rule, positions, spread, reach, mask
    )


def _one(
    visual: Tensor, scores: Tensor, k: int, mask: Tensor | None = None, **given: Any
) -> Tensor:
    batched = {name: x[None] if isinstance(x, Tensor) else x for name, x in given.items()}
    got = _run(visual[None], scores[None], k, None if mask is None else mask[None], **batched)[0]
    right = soft_suppress64(visual, scores, k, mask=mask, **{"sharpness": 20.0, **given})
    assert torch.equal(got, right)
    return got


SCALE: dict[str, Any] = {"rule": "scale"}
NEAR: dict[str, Any] = {"spread": 1.5, "reach": 2.0, "sharpness": 0.1}


@pytest.mark.parametrize(
    ("kind", "dtype", "given"),
    [
        ("vlm", torch.bfloat16, {}),
        ("exact", torch.float16, SCALE),
        ("clusters", torch.float32, SCALE | NEAR),
        ("zero_rows", torch.float32, NEAR),
        ("huge_rows", torch.float32, SCALE | {"sharpness": 1.0}),
        ("masked", torch.float32, {"sharpness": 2.0}),
    ],
)
def test_picks_are_those_of_float64(
    kind: str, dtype: torch.dtype, given: dict[str, Any], runs: Runs
) -> None:
    n, d = 42, 36
    visual, mask = (tokens(kind, n, d), None) if kind in MODELS else special(kind, n, d)
    scores = (torch.rand(n, generator=torch.Generator().manual_seed(1)) * 9).floor() / 8
    scores[::11], scores[3::13], scores[5::17], scores[1] = torch.nan, torch.inf, -0.25, -torch.inf
    if "spread" in given:
        given = {**given, "positions": _places(n).to(dtype)}
        given["positions"][[9, 10, 12], [1, 1, 0]] = torch.tensor([math.nan, -math.inf, -math.inf])
        scores[[9, 10, 12]] = 2.0  # the first, were they anywhere
    _one(visual.to(dtype), scores, 14, mask, **given)


@pytest.mark.parametrize("rule", ["subtract", "scale"])
def test_scores_of_any_size(rule: str, runs: Runs) -> None:
    """Zeros, the smallest number, large ones: equal rows follow their index, others tie nowhere."""
    same = tokens("iid", 1, 8).expand(9, 8)
    for scores in (torch.zeros(9), torch.full((9,), 5e-324, dtype=torch.float64)):
        assert _one(same, scores, 9, rule=rule).tolist() == list(range(9))
    signs = torch.tensor([1.0, -1.0, 0.0] * 3)  # a factor has none to take from
    assert (_one(same, signs, 9, rule=rule) < 0).sum() == (3 if rule == "scale" else 0)
    visual, scores = tokens("vlm", 9, 8), torch.linspace(1.0, 2.0, 9, dtype=torch.float64)
    picks = [_one(visual, scores * size, 6, rule=rule) for size in (1.0, 2.0**-900, 2.0**900)]
    assert torch.equal(picks[0], picks[1])
    assert torch.equal(picks[0], picks[2])
    if rule == "subtract":
        _one(visual, -scores.flip(0) * 2.0**-900, 6)
        # The largest score, whose steps count, is not among the first ones.
        close = 1.0 + torch.arange(4, dtype=torch.float64) * 2.0**-45
        _one(tokens("iid", 12, 8), torch.cat((close[:1].expand(8) * 2.0**-60, close)), 12)
        # A score of one step of it takes that step from a row that is equal, and from no other.
        step = torch.tensor([1.0, 2.0**-40, 2.0**-40, 2.0**-40], dtype=torch.float64)
        taken = _one(torch.eye(3)[[0, 1, 1, 2]], step, 4, sharpness=1000.0)
        assert taken.tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize("rule", ["subtract", "scale"])
def test_what_takes_less_than_half_a_step_leaves_a_tie(rule: str, runs: Runs) -> None:
    """Two equal scores, wherever they lie between two steps; the pick before lowers the first."""
    visual = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]])  # cosines 1/2 and 0
    scores = torch.full((4, 3), 2.0, dtype=torch.float64)
    scores[:, 1:] = torch.linspace(0.3, 1.1, 4, dtype=torch.float64)[:, None]
    for lost, order in ((0.2, [0, 1, 2]), (0.8, [0, 2, 1])):  # steps
        sharp = -4.0 * math.log(lost * 2.0**-40)
        picks = _run(visual.expand(4, 3, 4), scores, 3, rule=rule, sharpness=sharp)
        assert picks.tolist() == [order] * 4


def test_options_at_their_ends(runs: Runs) -> None:
    """Arguments that float32 does not hold; nothing overflows."""
    visual = torch.cat([tokens("clusters", 4, 8), tokens("iid", 2, 8).repeat(2, 1)])
    scores, far = torch.arange(8).remainder(4) / 4, _places(8).float() * 1e30
    for turn, sharp in enumerate((1e-100, 0.1, 1e5, 1e100)):
        for where in (
            {"positions": _places(8), "spread": 1e-100, "reach": 0.0},
            {"positions": far, "spread": 1e30},
            {"positions": _places(8), "spread": 1e200, "reach": 1e200},
        ):
            rule = ("subtract", "scale")[turn % 2]
            _one(visual, scores, 6, sharpness=sharp, rule=rule, **where)


@triton.jit
def _logarithms_kernel(w, out, high, low, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, phases.logarithm(tl.load(w + i)))
    tl.store(out + SIZE, _exact.joined(high, low))


def test_logarithms_and_arguments_keep_all_digits() -> None:
    w = torch.cat((torch.logspace(-300, 0, 61, dtype=torch.float64), torch.zeros(3).double()))
    for number in (0.1, -1.0 / 3, 1e200, -0.0, 5e-324, float("-inf"), 1 - 2.0**-53):
        out = torch.empty(65, dtype=torch.float64)
        _common.launch(_logarithms_kernel, 1, w.device, w, out, *_exact.halves(number), SIZE=64)
        assert out[64] == number
        # Of int32 all: for an int64 Triton would compile another kernel.
        assert all(-(2**31) <= half < 2**31 for half in _exact.halves(number))
        right = (-w).log1p()
        assert torch.allclose(out[:64], right, rtol=2.0**-51, atol=0.0)


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    visual = torch.stack([tokens(model, 26, 40, seed=4) for model in ("vlm", "exact")])
    visual[0, 5], visual[0, 7], visual[1, 9], visual[1, 20] = 0, torch.nan, torch.inf, visual[1, 2]
    scores = torch.stack((torch.arange(26).remainder(7) / 4, torch.ones(26)))
    return visual, scores, torch.rand(2, 26, generator=torch.Generator().manual_seed(2)) < 0.9


def test_groups_of_any_size_lose_the_same(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs, their order and tiles: none may show in a pick or in a bit of what was lost."""
    visual, scores, mask = _batch()
    used: dict[str, Tensor] = {}
    allocate = _scratch.allocate

    def kept(device: torch.device, plan: _scratch.Plan) -> dict[str, Tensor]:
        used.update(allocate(device, plan))
        return dict(used)

    monkeypatch.setattr(_scratch, "allocate", kept)
    assert torch.empty(3).isnan().all()  # nothing is read before it is written
    want = _run(visual, scores, 7, mask, rule="scale")
    lost = used["lost"]
    for b in range(2):
        given: dict[str, Any] = {"sharpness": 20.0, "rule": "scale", "mask": mask[b]}
        assert torch.equal(want[b], soft_suppress64(visual[b], scores[b], 7, **given))
    for at, group in enumerate(GROUPS):
        for programs, reverse in ((3, True), (group.programs, False)):
            runs.group, runs.programs = group, programs
            runs.fields |= {"reverse": reverse, "lanes": 4 << at, "own_rows": 8 >> at}
            runs.fields |= {"wide": 16 << at, "ahead": 1 + at % 2}
            assert torch.equal(_run(visual, scores, 7, mask, rule="scale"), want)
            assert torch.equal(used["lost"], lost)


def test_rows_are_alone_in_a_batch_and_fewer_are_the_first(runs: Runs) -> None:
    visual, scores, mask = _batch()
    want = _run(visual, scores, 14, mask)
    for b in range(2):
        one = slice(b, b + 1)
        assert torch.equal(_run(visual[one], scores[one], 5, mask[one]), want[one, :5])
    few = torch.arange(26) < 6
    want = _run(visual[:1], scores[:1], 9, few[None])
    assert want[0, 6:].tolist() == [-1] * 3
    assert _run(visual, scores, 0).shape == (2, 0)
    assert _run(visual[:0], scores[:0], 3).shape == (0, 3)


def test_the_barrier_cannot_be_spared(runs: Runs) -> None:
    # Tiles of rows go beyond the last one.
    images = [tokens(model, 13, 20, seed=6) for model in ("iid", "exact", "video")]
    visual = torch.stack(images, 1).transpose(0, 1)  # an image does not begin where one ends
    scores = torch.arange(39).view(3, 13).remainder(5) / 4

    def work() -> list[Tensor]:
        near: dict[str, Any] = {"positions": _places(13).expand(3, 13, 2), "spread": 1.5}
        # All tokens by scaling: those of score 0 come last.
        return [_run(visual, scores, 13, rule="scale"), _run(visual, scores, 5, reach=2.0, **near)]

    runs.every_barrier_is_needed(soft_suppress._soft_suppress_greedy_kernel, work, count=1)
