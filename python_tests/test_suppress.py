# SPDX-License-Identifier: Apache-2.0
"""suppress and soft_suppress: the picks of float64 loops, whatever the input; and the laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zspa_kernels as zk
from python_tests.oracles.greedyprune import greedyprune
from python_tests.oracles.soft import soft_suppression
from python_tests.runners import same_bits, strided_views, threads
from python_tests.scenes import integer_tokens
from zspa_kernels import _native
from zspa_kernels.testing import MODELS, SPECIAL, special, tokens
from zspa_kernels.testing.cases import DTYPES
from zspa_kernels.testing.suppression import soft_suppress64, suppress64

Require = Callable[..., None]
each_backend = pytest.mark.parametrize("backend", ["reference", "cpp"])
RULES = ("subtract", "scale")

#: Of soft suppression: each rule with every pair of tokens, and with near ones only.
SOFT: tuple[dict[str, Any], ...] = (
    {"sharpness": 20.0},
    {"sharpness": 20.0, "rule": "scale"},
    {"sharpness": 2.0, "spread": 3.0},
    {"sharpness": 200.0, "rule": "scale", "spread": 1.5, "reach": 5.0},
)


def case(kind: str, n: int, d: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Any]:
    """Tokens of a model or a special input, and their mask."""
    if kind in MODELS:
        return tokens(kind, n, d, seed, dtype), None
    x = special(kind, n, d, seed)
    return x.visual.to(dtype), x.mask


def ratings(kind: str, n: int, seed: int = 0) -> Tensor:
    """Scores `[n]`: all different, few different, equal, or some of which do not count."""
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    if kind == "levels":
        return (uniform * 5).floor() / 4 - 0.25
    if kind == "equal":
        return torch.ones(n)
    if kind == "odd":
        uniform[::7], uniform[3::11], uniform[5::13] = torch.nan, -torch.inf, -0.0
    return uniform


SCORES = ("uniform", "levels", "equal", "odd")


def grid(n: int, columns: int = 25) -> Tensor:
    place = torch.arange(n)
    return torch.stack((place // columns, place % columns), -1)


def options(soft: dict[str, Any], n: int) -> dict[str, Any]:
    return {**soft, "positions": grid(n)} if "spread" in soft else soft


@each_backend
@given(visual=integer_tokens(), data=st.data())
def test_hard_integers(backend: str, visual: Tensor, data: st.DataObject) -> None:
    n = len(visual)
    k = data.draw(st.integers(0, n))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))).float()
    limit = data.draw(st.sampled_from([-1.0, 0.0, 0.5, 0.75, 1.0]))
    got = zk.suppress(visual, scores, k, threshold=limit, visual_mask=mask, backend=backend)
    assert got.tolist() == greedyprune(visual, scores, k, limit, True, mask)


@each_backend
@given(visual=integer_tokens(), data=st.data())
def test_soft_integers(backend: str, visual: Tensor, data: st.DataObject) -> None:
    n = len(visual)
    k = data.draw(st.integers(0, n))
    values = data.draw(st.lists(st.sampled_from([-1, 0, 1, 2, 3, 8]), min_size=n, max_size=n))
    places = data.draw(st.lists(st.integers(0, 2), min_size=2 * n, max_size=2 * n))
    positions, scores = torch.tensor(places).reshape(n, 2), torch.tensor(values).float()
    rule = data.draw(st.sampled_from(RULES))
    sharp, spread, reach = data.draw(st.sampled_from([(1.0, 1.5, 1.0), (0.1, 9.0, 2.0)]))
    near = {"positions": positions, "spread": spread, "reach": reach}
    for where in ({}, near):
        got = zk.soft_suppress(
            visual, scores, k, sharpness=sharp, rule=rule, **where, backend=backend
        )
        assert got.tolist() == soft_suppression(visual, scores, k, sharp, rule, **where)


@each_backend
def test_at_the_threshold(backend: str, require_backend: Require) -> None:
    """Cosines of exactly one half, of rows of every length: none of them is above one half."""
    require_backend(backend, "suppress")
    pairs = torch.combinations(torch.arange(9))[:30]
    rows = torch.zeros(30, 9).scatter_(1, pairs, 1.0) * (1 + torch.arange(30)[:, None] / 7)
    # Several blocks, and columns of earlier ones at the threshold as well.
    rows = torch.cat([rows, rows[::2], rows.flip(0)])
    scores = torch.arange(len(rows)).flip(0).float()
    for limit, count in ((0.5, 75), (0.4999999, 75)):
        for fill in (False, True):
            got = zk.suppress(rows, scores, count, threshold=limit, fill=fill, backend=backend)
            assert got.tolist() == greedyprune(rows, scores, count, limit, fill)
    alone = zk.suppress(rows[:30], scores[:30], 30, threshold=0.5, fill=False, backend=backend)
    assert alone.tolist() == list(range(30))


@each_backend
@pytest.mark.parametrize("tenths", range(-9, 10, 2))
def test_what_is_no_binary_fraction_is_not_above_itself(
    backend: str, tenths: int, require_backend: Require
) -> None:
    """Rows of ten ones and minus ones, whose cosine is so many tenths, and that threshold."""
    require_backend(backend, "suppress")
    rows, scores = torch.zeros(2, 20), torch.tensor([0.9, 0.8])
    rows[0, :10] = math.copysign(1.0, tenths)
    rows[1, 10 - abs(tenths) : 20 - abs(tenths)] = 1.0
    for limit, right in ((tenths / 10, [0, 1]), (tenths / 10 - 1e-9, [0, -1])):
        got = zk.suppress(rows, scores, 2, threshold=limit, fill=False, backend=backend)
        assert got.tolist() == suppress64(rows, scores, 2, threshold=limit, fill=False).tolist()
        assert got.tolist() == right


@each_backend
def test_at_the_threshold_of_earlier_blocks(backend: str, require_backend: Require) -> None:
    """Many rows at one half with each other, and a limit that float32 has on the wrong side."""
    require_backend(backend, "suppress")
    pairs = torch.combinations(torch.arange(24))
    n = len(pairs)
    rows = torch.zeros(n, 24).scatter_(1, pairs, 1.0) * (1 + torch.arange(n)[:, None] / 7)
    scores = torch.arange(n).flip(0).float()
    for limit, count in ((0.5, n), (0.49999999, 12)):
        got = zk.suppress(rows, scores, n, threshold=limit, fill=False, backend=backend)
        assert int((got >= 0).sum()) == count
        same_bits(got, suppress64(rows, scores, n, threshold=limit, fill=False))


@each_backend
@pytest.mark.parametrize("rule", RULES)
def test_what_takes_less_than_half_a_step_leaves_a_tie(
    backend: str, rule: str, require_backend: Require
) -> None:
    """Two equal scores, wherever they lie between two steps; the pick before lowers the first."""
    require_backend(backend, "soft_suppress")
    visual = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]])  # cosines 1/2 and 0
    scores = torch.full((32, 3), 2.0, dtype=torch.float64)
    scores[:, 1:] = torch.linspace(0.3, 1.1, 32, dtype=torch.float64)[:, None]
    for lost, order in ((0.2, [0, 1, 2]), (0.8, [0, 2, 1])):  # steps
        sharp = -4.0 * math.log(lost * 2.0**-40)
        got = zk.soft_suppress(
            visual.expand(32, 3, 4), scores, 3, sharpness=sharp, rule=rule, backend=backend
        )
        for row, own in zip(got.tolist(), scores, strict=True):
            assert row == order
            assert soft_suppression(visual, own, 3, sharp, rule) == order
            assert soft_suppress64(visual, own, 3, sharpness=sharp, rule=rule).tolist() == order


@each_backend
def test_scores_of_any_size_are_suppressed_alike(backend: str, require_backend: Require) -> None:
    require_backend(backend, "soft_suppress")
    visual = tokens("vlm", 20, 8)
    scores = torch.linspace(1.0, 2.0, 20)
    for rule in RULES:
        run = {"sharpness": 20.0, "rule": rule, "backend": backend}
        right = zk.soft_suppress(visual, scores, 20, **run)
        for size in (2.0**-120, 2.0**100):
            same_bits(zk.soft_suppress(visual, scores * size, 20, **run), right)
            oracle = soft_suppress64(visual, scores * size, 20, sharpness=20.0, rule=rule)
            assert oracle.tolist() == right.tolist()
        for tiny in (torch.zeros(20), torch.full((20,), 5e-324, dtype=torch.float64)):
            same = tokens("iid", 1, 8).expand(20, 8)
            got = zk.soft_suppress(same, tiny, 20, **run)
            oracle = soft_suppress64(same, tiny, 20, sharpness=20.0, rule=rule)
            assert got.tolist() == oracle.tolist() == list(range(20))


@each_backend
def test_scores_tie_within_a_step_of_the_largest(backend: str, require_backend: Require) -> None:
    require_backend(backend, "soft_suppress")
    for rule, size in (("subtract", 1.0), ("subtract", 2.0**-90), ("scale", 1.0)):
        for steps, first in ((0.4, 0), (1.6, 1)):
            scores = size * (1.0 + steps * 2.0**-40 * torch.tensor([0, 1, -1]).double())
            run = {"sharpness": 20.0, "rule": rule}
            got = zk.soft_suppress(torch.eye(3), scores, 1, **run, backend=backend)
            assert got.tolist() == soft_suppress64(torch.eye(3), scores, 1, **run).tolist()
            assert got.item() == first, (rule, steps)


@each_backend
def test_a_zero_row_beside_a_near_tie(backend: str, require_backend: Require) -> None:
    """A quarter of the first score is taken from the last: in float32 as much as the row's."""
    require_backend(backend, "soft_suppress")
    visual = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    for more, order in ((1e-9, [0, 1, 2]), (-1e-9, [0, 2, 1])):
        scores = torch.tensor([2.0, 0.5 + more, 1.0], dtype=torch.float64)
        got = zk.soft_suppress(visual, scores, 3, sharpness=math.log(4.0), backend=backend)
        assert got.tolist() == order


@each_backend
def test_options_at_their_ends(backend: str, require_backend: Require) -> None:
    """Nothing overflows, and a weight that vanishes suppresses nothing."""
    require_backend(backend, "soft_suppress")
    visual = torch.cat([tokens("clusters", 15, 8), tokens("iid", 3, 8).repeat(2, 1)])
    n = len(visual)
    scores, far = ratings("uniform", n), grid(n).float() * 1e30
    scores[1::4] = 0.0  # scaled by 0, others tie with these
    for rule in RULES:
        for sharp in (1e-100, 1e-3, 1e5, 1e100):
            for where in (
                {},
                {"positions": grid(n), "spread": 1e-100, "reach": 0.0},
                {"positions": far, "spread": 1e30},
                {"positions": grid(n), "spread": 1e200, "reach": 1e200},
            ):
                given = {"sharpness": sharp, "rule": rule, **where}
                got = zk.soft_suppress(visual, scores, n, **given, backend=backend)
                same_bits(got, soft_suppress64(visual, scores, n, **given))


@pytest.fixture(params=_native.module().isas() if _native.reason() is None else ["none"])
def native_isa(request: pytest.FixtureRequest, require_backend: Require) -> Iterator[str]:
    require_backend("cpp")
    _native.module().use_isa(request.param)
    yield request.param
    _native.module().use_isa("auto")


def judge(visual: Tensor, scores: Tensor, mask: Tensor | None, k: int, soft: int) -> None:
    """Every pick is the one of float64."""
    for limit in (0.2, 0.9):
        got = zk.suppress(visual, scores, k, threshold=limit, visual_mask=mask)
        same_bits(got, suppress64(visual, scores, k, threshold=limit, mask=mask))
    given = options(SOFT[soft], len(visual))
    got = zk.soft_suppress(visual, scores, k, visual_mask=mask, **given)
    same_bits(got, soft_suppress64(visual, scores, k, mask=mask, **given))


def test_instruction_sets_decide_as_float64(native_isa: str) -> None:
    """Many passes and blocks; inputs, dtypes, scores and rules are dealt out."""
    isas = _native.module().isas()
    for turn, kind in enumerate((*MODELS, *SPECIAL)):
        if kind not in ("vlm", "exact") and turn % len(isas) != isas.index(native_isa):
            continue
        n, d, dtype = (230, 420)[turn % 2], (33, 130, 64)[turn % 3], DTYPES[turn % 3]
        visual, mask = case(kind, n, d, dtype)
        for x in range(2):
            scores = ratings(SCORES[(turn + 2 * x + turn // 4) % 4], n, turn)
            judge(visual, scores, mask, (n // 3, n)[x], (turn + x + turn // 4) % 4)


@pytest.mark.parametrize("model", MODELS)
def test_threads_batches_strides_and_counts(model: str, require_backend: Require) -> None:
    """One thread or several, alone, in a batch, strided, padded, fewer picks: the same."""
    require_backend("cpp", "suppress")
    n, d, k = 1300, 96, 260
    turn = MODELS.index(model)
    visual, scores = tokens(model, n, d, dtype=DTYPES[turn % 3]), ratings("uniform", n)
    given = options(SOFT[turn % 4], n)

    def both(x: Tensor, s: Tensor, k: int, mask: Tensor | None = None, **soft: Any) -> Tensor:
        soft = soft or given
        hard = zk.suppress(x, s, k, threshold=0.7, visual_mask=mask)
        return torch.stack((hard, zk.soft_suppress(x, s, k, visual_mask=mask, **soft)))

    with threads(1):
        one = both(visual, scores, k)
    for count in (2, 3):
        with threads(count):
            same_bits(both(visual, scores, k), one)
    for fewer in (0, 1, 37, 259):
        same_bits(both(visual, scores, fewer), one[:, :fewer])
    for view in list(strided_views(visual).values())[turn % 2 :: 2]:
        same_bits(both(view, scores.double().repeat(2, 1).T.contiguous().T[1], k), one)
    wide, own = torch.full((n + 9, d), torch.nan, dtype=visual.dtype), torch.zeros(n + 9)
    wide[5 : n + 5], own[5 : n + 5] = visual, scores
    wide[:2], own[:2] = 1.0, 9.0  # masked, and of the highest scores
    mask = (torch.arange(n + 9) >= 2) & (torch.arange(n + 9) < n + 5)
    soft = dict(given)
    if "positions" in soft:
        soft["positions"] = torch.nn.functional.pad(given["positions"], (0, 0, 5, 4))
    same_bits(both(wide, own, k, mask, **soft) - 5, one)
    pairs = {name: torch.stack((x, x)) if isinstance(x, Tensor) else x for name, x in soft.items()}
    batch = both(
        torch.stack((wide.flip(0), wide)),
        torch.stack((own, own)),
        k,
        torch.stack((mask.flip(0), mask)),
        **pairs,
    )
    same_bits(batch[:, 1] - 5, one)


@pytest.mark.parametrize("kind", ["narrow", "constant", "duplicates", "zero_rows"])
def test_ties_and_near_ties_over_many_passes(kind: str, require_backend: Require) -> None:
    require_backend("cpp", "suppress")
    visual, mask = case(kind, 620, 40, torch.float32)
    for x, name in enumerate(("equal", "levels")):
        judge(visual, ratings(name, 620), mask, 170, 2 * x)
        judge(visual, ratings(name, 620), mask, 170, 2 * x + 1)


def test_limits_of_distances_need_positions() -> None:
    visual, scores = tokens("iid", 5, 3), ratings("uniform", 5)
    for name, limit in (("spread", 1.5), ("reach", 0.0)):
        text = f"^soft_suppress: positions must be given with a finite {name}, got None"
        with pytest.raises(TypeError, match=text):
            zk.soft_suppress(visual, scores, 2, sharpness=1.0, **{name: limit})
        zk.soft_suppress(visual, scores, 2, sharpness=1.0, **{name: math.inf})


def test_all_tokens_of_a_few(require_backend: Require) -> None:
    """Every N from 0 to 9 and a block's size, with every k."""
    require_backend("cpp", "suppress")
    for n in (*range(10), 63, 64, 65):
        visual, scores = tokens("clusters", n, 7), ratings("levels", n)
        for k in {0, min(1, n), n // 2, n}:
            judge(visual, scores, None, k, n % 4)


@pytest.mark.parametrize(
    ("model", "hard", "soft"), [("iid", 0.6, 0.3), ("vlm", 0.3, 0.7), ("clusters", 0.6, 0.8)]
)
def test_work_is_less_than_that_of_the_plain_greedy(
    model: str, hard: float, soft: float, require_backend: Require
) -> None:
    """Dots beside N k."""
    require_backend("cpp", "suppress")
    from zspa_kernels.backends.cpp.soft_suppress import soft_suppress
    from zspa_kernels.backends.cpp.suppress import suppress

    n, k = 1296, 130
    visual, scores = tokens(model, n, 256)[None], ratings("uniform", n)[None]
    stats = torch.zeros(3, dtype=torch.int64)
    suppress(visual, scores, k, 0.9, True, None, stats)
    assert 0 < int(stats[1]) <= hard * n * k
    inf = float("inf")
    soft_suppress(visual, scores, k, 20.0, "scale", None, inf, inf, None, stats)
    assert 0 < int(stats[1]) <= soft * n * k
