# SPDX-License-Identifier: Apache-2.0
"""The min-sum greedy in Triton: passes, forecasts that fail, bits of the sums, the one launch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from python_tests.triton_small import GROUPS, Runs
from zspa_kernels._segments import ragged_table
from zspa_kernels.backends.triton import _scratch, min_sum
from zspa_kernels.testing import bound, tokens
from zspa_kernels.testing.min_sum import check_min_sum

run = min_sum.min_sum


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    small = {"own_rows": 8, "ahead": 2, "sum_rows": 2, "channels": 16}
    return Runs(monkeypatch, min_sum, forecast=8, **small)


def test_many_passes_pick_what_one_at_a_time_does(runs: Runs) -> None:
    n, d, k = 48, 33, 18
    visual = tokens("iid", n, d, seed=1)
    got = run(visual[None], k, None, None)[0]
    assert check_min_sum(visual, got, k, bound=bound(d, "triton")).decided > k / 2
    # A round for the first pick, then two a pass: not all that is foreseen is picked, some is.
    assert 1 + 2 * -(-(k - 1) // 8) < runs.rounds[0] < 2 * k - 1


def test_all_tokens_in_the_fewest_passes(runs: Runs) -> None:
    """All are candidates: forecasts hold."""
    visual = tokens("iid", 12, 20, seed=2)
    got = run(visual[None], 12, None, None)[0]
    check_min_sum(visual, got, 12, bound=bound(20, "triton"))
    assert runs.rounds == [1 + 2 * 2]  # 8 picks, 3 picks, and the last
    mask = torch.arange(12) != 4  # a slot more than there are tokens
    picks = run(visual[None], 12, None, mask[None])[0].tolist()
    assert picks[11] == -1
    assert sorted(picks[:11]) == mask.nonzero().flatten().tolist()


def test_seeds_go_on_where_picks_ended(runs: Runs) -> None:
    """More seeds than are added at a time; some twice, some that name nothing."""
    visual = tokens("clusters", 40, 24, seed=3)
    picks = run(visual[None], 24, None, None)
    odd = torch.tensor([-1, 40, 2**40, -(2**40)])
    again = torch.cat((picks[0, :7], odd, picks[0, :7], picks[0, 3:19], picks[0, 15:19]))[None]
    assert torch.equal(run(visual[None], 5, again, None), picks[:, 19:])
    late = torch.full((2, 59), -1)  # one image has none, the other none among its first
    late[1, 40:] = picks[0, :19]
    both = run(visual.expand(2, 40, 24), 5, late, None)
    assert torch.equal(both, torch.stack((picks[0, :5], picks[0, 19:])))


def test_a_token_that_float32_cannot_tell_apart_is_picked(runs: Runs) -> None:
    """Sums differ in float64 only: the best token is no candidate, and each forecast is wrong."""
    n = 24
    visual = torch.tensor([0.9, 0.0, 0.43]).repeat(n, 1)
    visual[:, 1] = 2.0**-10 + torch.arange(n, 0, -1) * 2.0**-33
    visual[[5, 20]] = torch.eye(3)[:2]
    picks = run(visual[None], 9, torch.tensor([[5, 20]]), None)[0]
    assert picks.tolist() == [23, 22, 21, 19, 18, 17, 16, 15, 14]
    assert runs.rounds[0] > 2 * 4  # a pass for each of the first


def test_zero_rows_and_equal_rows_follow_their_indices(runs: Runs) -> None:
    visual = torch.zeros(30, 20)
    visual[8:26] = torch.randn(20, generator=torch.Generator().manual_seed(1))
    picks = run(visual[None], 30, None, None)[0].tolist()
    assert picks == [*range(8, 26), *range(8), *range(26, 30)]
    visual = tokens("vlm", 12, 20, seed=1).abs()  # no cosine below 0
    visual[7] = 0.0
    first = [int(run(visual[None], 1, seeds, None)) for seeds in (None, torch.tensor([[7]]))]
    assert first[0] != first[1] == 0  # a seed without a direction is one
    beyond = torch.full((2, 1), 12)  # names no token, though one of the next image lies there
    assert run(visual.repeat(2, 1, 1), 1, beyond, None).tolist() == [first[:1]] * 2
    visual[first[0]] *= 9.0
    assert run(visual[None], 1, None, None).item() == first[0]
    alone = torch.eye(20)[[0, 0, 1]]  # no entry of a direction is larger than these
    assert run(alone[None], 1, None, None).item() == 2


def test_groups_of_any_size_make_the_same_sums(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates, forecasts, program order, tiles: none may show in a bit."""
    n, k = 24, 7
    visual = torch.stack([tokens(model, n, 40, seed=4) for model in ("vlm", "exact")])
    visual[0, 5], visual[0, 7], visual[1, 9] = 0.0, torch.nan, torch.inf
    allocate = _scratch.allocate
    used: dict[str, Tensor] = {}

    def kept(device: torch.device, plan: _scratch.Plan) -> dict[str, Tensor]:
        used.update(allocate(device, plan))
        return dict(used)

    monkeypatch.setattr(_scratch, "allocate", kept)
    seeds = torch.tensor([[1, 1, 17], [-1, -1, -1]])
    want = run(visual, k, seeds, None)
    total, sums = used["total"][40:], used["sums"]
    # +inf of seeds, of all picks but the last, of rows that are not finite
    assert int(sums.isfinite().sum()) == (n - 2 - (k - 1) - 1) + (n - (k - 1) - 1)
    for at, group in enumerate(GROUPS[1:]):
        for programs in {1, group.programs}:
            runs.group, runs.programs = group, programs
            runs.fields["reverse"] = programs > 1
            runs.fields |= {"own_rows": 4 << at, "ahead": 3 - at, "forecast": 4 << at}
            runs.fields |= {"sum_rows": 4 << at, "channels": 8 << at}
            assert torch.equal(run(visual, k, seeds, None), want)
            assert torch.equal(used["total"][40:], total)
            assert torch.equal(used["sums"], sums)


def _mixed() -> list[Tensor]:
    images = [tokens(model, 18, 20, seed=6) for model in ("iid", "exact", "video")]
    visual = torch.stack(images, 1).transpose(0, 1)  # an image does not begin where one ends
    starts, k = torch.tensor([2, 18, 21, 54]), torch.tensor([3, 2, 3])
    table = ragged_table(starts, None, k, 8, 33, 54)
    return [
        run(visual, 3, torch.tensor([[3, 4, 3], [-1, -1, -1], [0, 17, 9]]), None),
        min_sum.min_sum_varlen(visual.flatten(0, 1), table, 8, 33),
    ]


def test_no_barrier_can_be_spared(runs: Runs) -> None:
    runs.every_barrier_is_needed(min_sum._min_sum_greedy_kernel, _mixed, count=8)
