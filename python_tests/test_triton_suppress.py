# SPDX-License-Identifier: Apache-2.0
"""Suppression in Triton: blocks, what float32 leaves open, groups of programs, the one launch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from python_tests.matrix_units import UNITS, unit_dots
from python_tests.triton_small import GROUPS, Runs
from zspa_kernels.backends.triton import _scratch, suppress, suppress_config
from zspa_kernels.testing import MODELS, special, tokens
from zspa_kernels.testing.suppression import suppress64

SMALL = {"rank_rows": 4, "rank_cols": 8, "pairs": 2, "wide": 16}


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch, suppress, **SMALL)


def _scores(n: int, seed: int = 0) -> Tensor:
    """Ties, both zeros, and some that do not count."""
    scores = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 9).floor() / 8
    scores[::7], scores[3::11], scores[5::13] = torch.nan, -torch.inf, -0.0
    return scores


def _one(
    visual: Tensor, scores: Tensor, k: int, limit: float, mask: Tensor | None = None, **given: bool
) -> None:
    fill = given.get("fill", True)
    masks = None if mask is None else mask[None]
    got = suppress.suppress(visual[None], scores[None], k, limit, fill, masks)[0]
    right = suppress64(visual, scores, k, threshold=limit, fill=fill, mask=mask)
    assert torch.equal(got, right), (limit, fill)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("vlm", torch.bfloat16),
        ("exact", torch.float16),
        ("clusters", torch.float32),
        ("duplicates", torch.float32),
        ("zero_rows", torch.float32),
        ("huge_rows", torch.float32),
        ("masked", torch.float32),
    ],
)
def test_many_blocks_decide_as_float64(kind: str, dtype: torch.dtype, runs: Runs) -> None:
    n, d = 70, 36
    visual, mask = (tokens(kind, n, d), None) if kind in MODELS else special(kind, n, d)
    visual = visual.to(dtype)
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for limit, k, scores, fill in (
        (0.3, 20, uniform, True),
        (0.9, n, _scores(n), False),
        (-1.0, 9, uniform.bfloat16(), True),
    ):
        _one(visual, scores, k, limit, mask, fill=fill)
    assert max(runs.rounds) >= 3  # blocks of 16


def test_scores_are_compared_in_float64(runs: Runs) -> None:
    """Where only the last bits of float64 differ, and where only the index does; whole blocks."""
    visual, n = tokens("iid", 32, 8), 32
    scores = 1.0 + torch.arange(n, dtype=torch.float64).flip(0).remainder(7) * 2.0**-52
    _one(visual, scores, n, 1.0)
    _one(visual, -scores, n, 0.2)  # what is left out follows behind the last block
    _one(visual, torch.tensor([0.0, -0.0] * 16), 16, 1.0)
    assert runs.rounds == [2, 2, 1]


@pytest.mark.parametrize("few", [True, False])
def test_at_the_threshold(few: bool, runs: Runs) -> None:
    """Cosines of exactly one half, of rows of every length: float32 can decide none of them.

    Of blocks of 16, and of one that is larger than the image.
    """
    if not few:
        runs.fields |= {"block": 64, "pairs": 4, "wide": 32}
    pairs = torch.combinations(torch.arange(7))
    rows = torch.zeros(21, 7).scatter_(1, pairs, 1.0) * (1 + torch.arange(21)[:, None] / 7)
    rows = torch.cat((rows, rows[::2], rows.flip(0)))
    scores = torch.arange(len(rows)).flip(0).float()
    for limit in (0.5, 0.5 - 2.0**-40)[few:]:
        _one(rows, scores, len(rows), limit, fill=True)
        _one(rows, scores, len(rows), limit, fill=False)
    got = suppress.suppress(rows[None, :21], scores[None, :21], 21, 0.5, False, None)
    assert got.tolist() == [list(range(21))]


def test_a_pair_at_a_threshold_below_0_is_settled_alone(runs: Runs) -> None:
    """Where pairs are settled four at a time and one is open, three are none."""
    runs.fields["pairs"] = 4
    rows = torch.tensor([1.0, 1.0, 0.0]).repeat(18, 1)
    rows[16], rows[17] = -rows[16], torch.tensor([-1.0, 0.0, 1.0])
    got = suppress.suppress(rows[None], -torch.arange(18.0)[None], 3, -0.5, False, None)
    assert got.tolist() == [[0, 16, -1]]


def test_what_is_open_does_not_matter(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs in float64, or only those that need it: the same picks."""
    visual, scores = tokens("vlm", 40, 24), _scores(40)
    for slack in (2.0, 1e-6):
        monkeypatch.setattr(suppress, "slack", lambda *_, slack=slack: slack)
        for limit in (0.2, 0.6):
            _one(visual, scores, 30, limit)


@pytest.mark.parametrize("target", UNITS)
def test_what_matrix_units_cut_off_is_open(target: str) -> None:
    """Worst is one channel that outweighs all others, and is a power of two."""
    for dtype, d in itertools.product((torch.bfloat16, torch.float16), (1, 33, 256, 1024, 4096)):
        rows = torch.randn(32, d, generator=torch.Generator().manual_seed(d)).abs()
        rows[:, 0] = 2.0 ** math.ceil(math.log2(30 * d**0.5))
        rows = rows.to(dtype).double()
        other = rows.roll(1, 0)
        norms = rows.norm(dim=1) * other.norm(dim=1)
        error = (unit_dots(rows, other, target, 1024) - (rows * other).sum(1)).abs() / norms
        assert error.max() < suppress_config.slack(d, 1024), (dtype, d)


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    visual = torch.stack([tokens(model, 34, 40, seed=4) for model in ("vlm", "exact")])
    visual[0, 5], visual[0, 7], visual[1, 9], visual[1, 30] = 0, torch.nan, torch.inf, visual[1, 2]
    scores = torch.stack((_scores(34), torch.ones(34)))
    return visual, scores, torch.rand(2, 34, generator=torch.Generator().manual_seed(2)) < 0.9


def test_groups_of_any_size_take_the_same(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs, their order and tiles: none may show in the order or the picks."""
    visual, scores, mask = _batch()
    used: dict[str, Tensor] = {}
    allocate = _scratch.allocate

    def kept(device: torch.device, plan: _scratch.Plan) -> dict[str, Tensor]:
        used.update(allocate(device, plan))
        return dict(used)

    monkeypatch.setattr(_scratch, "allocate", kept)
    assert torch.empty(3).isnan().all()  # nothing is read before it is written
    want = suppress.suppress(visual, scores, 31, 0.4, True, mask)
    order = used["order"]
    for b in range(2):
        right = suppress64(visual[b], scores[b], 31, threshold=0.4, mask=mask[b])
        assert torch.equal(want[b], right)
    for at, group in enumerate(GROUPS):
        for programs, reverse in ((3, True), (group.programs, False)):
            runs.group, runs.programs = group, programs
            runs.fields |= {"reverse": reverse, "rank_rows": 2 << at, "rank_cols": 16 >> at}
            assert torch.equal(suppress.suppress(visual, scores, 31, 0.4, True, mask), want)
            assert torch.equal(used["order"], order)


def test_rows_are_alone_in_a_batch_and_fewer_are_the_first(runs: Runs) -> None:
    visual, scores, mask = _batch()
    want = suppress.suppress(visual, scores, 30, 0.4, True, mask)
    for b in range(2):
        one = slice(b, b + 1)
        for k in (1, 16, 29):
            got = suppress.suppress(visual[one], scores[one], k, 0.4, True, mask[one])
            assert torch.equal(got, want[one, :k])
    assert suppress.suppress(visual, scores, 0, 0.4, True, mask).shape == (2, 0)
    assert suppress.suppress(visual[:0], scores[:0], 3, 0.4, True, None).shape == (0, 3)


def test_no_barrier_can_be_spared(runs: Runs) -> None:
    """Pairs of `exact` tokens are open, in both groups; the first block fills more than one tile.

    An image does not begin where one ends; slots fill no whole number of tiles.
    """
    images = [tokens(model, 24, 20, seed=6) for model in ("exact", "exact", "video")]
    visual = torch.stack(images, 1).transpose(0, 1)
    scores = torch.arange(72).view(3, 24).remainder(5) / 4
    runs.fields["cols"] = 8

    def work() -> list[Tensor]:
        one = (visual[2:], scores[2:], 24)  # what the last block leaves out fills slots
        few = (visual, scores, 5)  # fewer than a block has columns
        limit = 0.25 - 2.0**-40  # so that open pairs are close
        calls = ((visual, scores, 15), one, few)
        return [suppress.suppress(*call, limit, True, None) for call in calls]

    runs.every_barrier_is_needed(suppress._suppress_greedy_kernel, work, count=4)
