# SPDX-License-Identifier: Apache-2.0
"""The determinantal greedy in Triton: passes, groups of programs, the factor's bits, one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.runners import growing_errors
from python_tests.triton_small import GROUPS, Runs
from zspa_kernels._segments import ragged_table
from zspa_kernels.backends.triton import _scratch, dpp
from zspa_kernels.backends.triton.diversity_config import Group
from zspa_kernels.testing import bound, tokens
from zspa_kernels.testing.dpp import check_dpp


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch, dpp, span=4, own_rows=8, own_cols=2, ahead=2)


def _weights(n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(3))


def test_many_passes_pick_what_one_at_a_time_does(runs: Runs) -> None:
    n, d, k = 72, 40, 30
    visual = tokens("clusters", n, d, seed=1)
    got = dpp.dpp(visual[None], k, None, None)[0]
    check_dpp(visual, got, k, bound=bound(d, "triton"))
    assert runs.rounds[0] >= 10  # a round of products for candidates, one for picks


def test_more_picks_than_tokens_are_independent(runs: Runs) -> None:
    """After 20 picks residuals are 0 or have a weight of 0, which is picked in between, by index.

    Then row 30, like no other, must not lose to a row without a residual what it has left.
    """
    draw = torch.Generator().manual_seed(1)
    visual = torch.randn(40, 20, generator=draw) @ torch.randn(20, 50, generator=draw)
    weights = _weights(40)
    weights[[3, 30]] = 0.0
    visual[0], visual[30, 7] = 0.0, 9.0
    picks = dpp.dpp(visual[None], 40, weights[None], None)[0]
    check_dpp(visual, picks, 40, weights=weights, bound=bound(50, "triton"))
    assert picks.sort().values.tolist() == list(range(40))
    assert picks[20:].tolist() == picks[20:].sort().values.tolist()


def test_what_has_become_dependent_waits_for_lower_indices(runs: Runs) -> None:
    """Candidates fall to 0 in a pass, where the best token outside is: its index is lower."""
    draw = torch.Generator().manual_seed(2)
    visual = torch.zeros(30, 12)
    visual[:20, 0] = 1.0
    visual[20:, 1:6] = torch.randn(10, 5, generator=draw)
    picks = dpp.dpp(visual[None], 30, None, None)[0].tolist()
    assert picks[0] == 0
    assert min(picks[1:6]) >= 20
    assert picks[6:] == sorted(picks[6:])
    # Of four programs that propose two rows each: row 4 is the first candidate, row 1 the edge.
    runs.group, runs.programs = GROUPS[1], 4
    visual = torch.eye(4)[[0, 0, 0, 0, 1, 1, 2, 3, 0, 0, 0, 0]]
    visual[4] = visual[5] + visual[6]
    weights = torch.where(torch.arange(12) == 4, 0.5, 1.0)
    picks = dpp.dpp(visual[None], 12, weights[None], None)[0].tolist()
    assert picks == [0, 5, 6, 7, 1, 2, 3, 4, 8, 9, 10, 11]


def test_each_program_has_a_candidate_where_there_are_as_many(runs: Runs) -> None:
    """What all propose first is better than the rest, and the last of it, row 3, is the best."""
    runs.group, runs.programs = GROUPS[1], 4
    runs.fields |= {"block": 4, "rows": 4, "cols": 4, "span": 1}
    visual, weights = torch.eye(12) / 16, torch.ones(12)
    visual[2], weights[:4] = visual[3], torch.arange(2.0, 6.0)
    picks = dpp.dpp(visual[None], 12, weights[None], None)[0].tolist()
    assert picks == [3, 1, 0, *range(4, 12), 2]


def test_errors_that_grow_beyond_all_numbers(runs: Runs) -> None:
    """Of rows that are candidates, and of rows that are not: none of their residuals is NaN."""
    runs.programs = 1
    for block, n in ((32, 28), (16, 36)):
        runs.fields["block"], runs.group = block, Group(1, width=block, own=32, split=False)
        visual, weights = growing_errors(n, 4)
        picks = dpp.dpp(visual[None], n + 4, weights[None], None)[0]
        assert picks.tolist() == list(range(n + 4))


def test_groups_of_any_size_make_the_same_factor(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates, split Gram blocks, program order, tiles: none may show in a bit."""
    n, k = 24, 12
    visual = torch.stack([tokens(model, n, 72, seed=4) for model in ("vlm", "exact")])
    allocate = _scratch.allocate
    used: dict[str, Tensor] = {}

    def kept(device: torch.device, plan: _scratch.Plan) -> dict[str, Tensor]:
        used.update(allocate(device, plan))
        return dict(used)

    def factor(programs: int, picks: Tensor) -> Tensor:
        """[2, k, n]; the rows of tokens that were picked end where they were."""
        token = torch.arange(n)
        places = 4 * -(-n // (4 * programs))
        rows = used["factor"].view(2, k, -1)[..., token % programs * places + token // programs]
        return rows.scatter(2, picks[:, None, :].expand(2, k, k), 0.0)

    monkeypatch.setattr(_scratch, "allocate", kept)
    want = dpp.dpp(visual, k, None, None)
    entries = factor(3, want)
    for at, group in enumerate(GROUPS[1:]):
        for programs in {1, group.programs}:
            runs.group, runs.programs = group, programs
            runs.fields["reverse"] = programs > 1
            runs.fields |= {"own_rows": 32, "own_cols": 4 << at, "ahead": 3 - at, "span": 1 + at}
            assert torch.equal(dpp.dpp(visual, k, None, None), want)
            again = factor(programs, want)
            made = entries.isfinite() & again.isfinite()  # the last picks' columns need not be
            assert made.sum() > k * n
            assert torch.equal(again[made], entries[made])


def _mixed() -> list[Tensor]:
    images = [tokens(model, 24, 40, seed=6) for model in ("iid", "exact", "video")]
    visual = torch.stack(images, 1).transpose(0, 1)  # an image does not begin where one ends
    packed, weights = visual.flatten(0, 1), _weights(72)
    # The first segment has fewer tokens than programs, and than slots. Of its two picks only the
    # second becomes a column: the first is a zero row, and the second weighs nothing.
    packed[2], weights[3] = 0.0, 0.0
    starts, k = torch.tensor([2, 4, 27, 72]), torch.tensor([4, 2, 8])
    table = ragged_table(starts, None, k, 14, 45, 72)
    return [
        dpp.dpp(visual, 8, None, None),
        dpp.dpp_varlen(packed, table, 14, 45, weights),
    ]


def test_no_barrier_can_be_spared(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = _scratch.allocate

    def filled(*arguments: Any) -> dict[str, Tensor]:
        scratch = allocate(*arguments)
        scratch["factor"].zero_()  # places behind the last own row are read, and count for nothing
        return scratch

    monkeypatch.setattr(_scratch, "allocate", filled)
    runs.every_barrier_is_needed(dpp._dpp_greedy_kernel, _mixed, count=5)
