# SPDX-License-Identifier: Apache-2.0
"""The blocked greedy in Triton: passes, groups of programs, DivPrune's seed, the one launch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zspa_kernels._segments import ragged_table
from zspa_kernels.backends.triton import _common, diversity, diversity_config, diversity_steps
from zspa_kernels.backends.triton.diversity_config import Group
from zspa_kernels.testing import bound, check_diversity, tokens

SMALL = {
    "norm_block_n": 16,
    "least_rows": 4,
    "block": 16,
    "rows": 16,
    "cols": 16,
    "block_k": 16,
    "chunk": 32,
    "finished": 2,
}
GROUPS = (
    Group(programs=4, width=8, own=16, split=True),
    Group(programs=4, width=2, own=16, split=False),
    Group(programs=1, width=16, own=32, split=True),
)


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


class Runs:
    """Small blocks, any number of programs; `rounds` counts the runs of the phases."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.group = GROUPS[0]
        self.programs = 3
        self.fields: dict[str, Any] = dict(SMALL)
        self.rounds: list[int] = []
        config, steps = diversity_config.config, diversity_steps.greedy_in_steps

        def small(*args: Any, **kwargs: Any) -> diversity_config.Config:
            fields = {**self.fields, "groups": (self.group,)}
            return dataclasses.replace(config(*args, **kwargs), **fields)

        def grid(cfg: Any, segments: _common.Segments, device: Any) -> tuple[int, int]:
            return segments.count, min(self.programs, self.group.programs)

        def counted(*args: Any, **kwargs: Any) -> int:
            self.rounds.append(steps(*args, **kwargs))
            return self.rounds[-1]

        monkeypatch.setattr(diversity, "config", small)
        monkeypatch.setattr(diversity, "_grid", grid)
        monkeypatch.setattr(diversity, "greedy_in_steps", counted)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def _weights(n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("model", ["clusters", "video", "exact"])
def test_many_passes_pick_what_one_at_a_time_does(model: str, runs: Runs) -> None:
    n, d, k = 96, 40, 40
    visual = tokens(model, n, d, seed=1)
    got = diversity.diversity(visual[None], k, None, None, None)[0]
    check_diversity(visual, got, k, bound=bound(d, "triton"))
    assert runs.rounds[0] >= 8  # 16 candidates a pass, and the seed before


def test_weights_and_more_seeds_than_columns(runs: Runs) -> None:
    n, d, k = 90, 33, 20
    visual, weights = tokens("vlm", n, d, seed=2), _weights(n)
    seeds = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:37].clone()
    seeds[[3, 20]] = torch.tensor([-1, n])  # padding, and no token
    for given in (seeds, None):
        got = diversity.diversity(
            visual[None], k, None if given is None else given[None], weights[None], None
        )[0]
        check_diversity(visual, got, k, seeds=given, weights=weights, bound=bound(d, "triton"))


def test_groups_of_any_size_pick_the_same(runs: Runs) -> None:
    """Proposals, candidates, split Gram blocks, program order: none may show in the picks."""
    visual = torch.stack([tokens(model, 40, 40, seed=4) for model in ("vlm", "exact")])
    want = diversity.diversity(visual, 12, None, None, None)
    for group in GROUPS[1:]:
        for programs in {1, group.programs}:
            runs.group, runs.programs = group, programs
            runs.fields["reverse"] = programs > 1
            assert torch.equal(diversity.diversity(visual, 12, None, None, None), want)


def test_the_seed_is_found_without_all_pairs(runs: Runs) -> None:
    """Neighbours and a few columns settle a smooth image; 9 blocks of columns would be all."""
    visual = tokens("smooth", 144, 24, seed=5)
    got = diversity.diversity(visual[None], 1, None, None, None)[0]
    check_diversity(visual, got, 1, bound=bound(24, "triton"))
    assert runs.rounds[0] <= 4


def test_one_launch_does_what_the_steps_do(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cannot let programs wait, but groups of one program need not wait."""
    visual = torch.cat([tokens(model, 40, 40, seed=6) for model in ("iid", "exact", "video")])
    starts, k = torch.tensor([0, 40, 47, 47, 120]), torch.tensor([18, 9, 2, 25])
    table = ragged_table(starts, None, k, 54, 120, 120)
    weights = _weights(120)
    runs.programs = 1
    want = [diversity.diversity_varlen(visual, table, 54, w) for w in (None, weights)]
    seeds = torch.arange(40)[None]
    want.append(diversity.diversity(visual[None, :90], 20, seeds, None, None))

    def at_once(launch: Any, programs: int, device: torch.device, *args: Any, **o: Any) -> int:
        groups = min(programs, 2)  # segments take turns
        launch(diversity._diversity_greedy_kernel, groups, device, *args, together=True, **o)
        return 0

    monkeypatch.setattr(diversity, "greedy_in_steps", at_once)
    got = [diversity.diversity_varlen(visual, table, 54, w) for w in (None, weights)]
    got.append(diversity.diversity(visual[None, :90], 20, seeds, None, None))
    assert len(runs.rounds) == 3
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_the_grid_is_never_more_than_resident() -> None:
    cfg = diversity_config.config(4096, 2)
    for processors in (1, 56, 108, 132, 160):
        for segments in (1, 2, 3, 32, 131, 1000):
            for rows in (1, 8, 576, 2880, 100_000):
                groups, programs = diversity_config.grid(cfg, rows, segments, processors)
                assert 1 <= groups * programs <= processors
                assert groups <= segments
                size = diversity_config.group(cfg, programs)
                assert programs <= size.programs <= cfg.block
                assert programs * size.width >= min(cfg.block, rows) // 2


def test_a_smaller_table_of_proposals_would_not_bound() -> None:
    """What `choose` relies on: one key a program lies below the second best of all programs."""
    cfg = diversity_config.config(64, 4)
    assert all(2 <= g.width <= cfg.block for g in cfg.groups)
    assert all(g.programs & (g.programs - 1) == 0 for g in cfg.groups)
    assert cfg.block % cfg.rows == cfg.block % cfg.cols == 0
