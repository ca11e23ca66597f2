# SPDX-License-Identifier: Apache-2.0
"""The coverage greedy in Triton: groups of programs, gains bit for bit, the one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.triton_small import GROUPS, Runs
from zspa_kernels._segments import ragged_table
from zspa_kernels.backends.triton import facility_location
from zspa_kernels.testing import bound, tokens
from zspa_kernels.testing.coverage import check_facility_location, facility_location64

run = facility_location.facility_location
varlen = facility_location.facility_location_varlen


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    small = {"list_block": 16, "programs": 4, "soft_rows": 4, "soft_cols": 4}
    greedy = {"lanes": 2, "width": 8, "words": 2, "own": 2}
    return Runs(monkeypatch, facility_location, **small, **greedy)


def _uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_many_blocks_pick_what_one_does(temperature: float, runs: Runs) -> None:
    n, d, k = 36, 40, 12
    visual, weights, words = tokens("clusters", n, d, seed=1), _uniform(n), _uniform(5, n) / n
    got = run(visual[None], k, words[None], weights[None], None, temperature, 0.5)[0]
    given: dict[str, Any] = {"benefits": words, "weights": weights}
    given |= {"temperature": temperature, "scale": 0.5}
    replay = check_facility_location(visual, got, k, bound=bound(d, "triton"), **given)
    assert replay.decided > k / 2
    assert runs.rounds == [k]


def test_groups_of_any_size_pick_the_same(runs: Runs) -> None:
    """Which program owns a token, lanes, program order: none may show in the picks."""
    visual = torch.stack([tokens(model, 23, 40, seed=4) for model in ("vlm", "exact")])
    visual[0, 5], visual[1, 7] = 0.0, torch.nan
    want = run(visual, 6, None, None, None, 0.0, 1.0)
    for at, group in enumerate(GROUPS[1:]):
        for programs in {1, group.programs}:
            runs.group, runs.programs = group, programs
            runs.fields |= {"reverse": programs > 1, "lanes": 4 << at, "own": 1 << at}
            assert torch.equal(run(visual, 6, None, None, None, 0.0, 1.0), want)


def test_only_given_rows_are_covered(runs: Runs) -> None:
    """Tokens without a direction cover no token; what they give to rows still ages gains."""
    words = _uniform(5, 9)
    got = run(torch.zeros(1, 9, 8), 9, words[None], None, None, 0.0, 1.0)[0]
    assert torch.equal(got, facility_location64(torch.zeros(9, 8), 9, benefits=words))


def _mixed() -> list[Tensor]:
    visual = torch.stack([tokens(model, 16, 20, seed=6) for model in ("iid", "exact", "video")])
    starts, k = torch.tensor([0, 16, 19, 48]), torch.tensor([5, 2, 8])
    table = ragged_table(starts, None, k, 15, 29, 48)
    return [
        run(visual, 5, _uniform(3, 3, 16), None, None, 0.0, 1.0),
        varlen(visual.flatten(0, 1), table, 15, 29, None, _uniform(48), 0.2, 1.0),
    ]


def test_no_barrier_can_be_spared(runs: Runs) -> None:
    runs.every_barrier_is_needed(
        facility_location._facility_location_greedy_kernel, _mixed, count=1
    )
