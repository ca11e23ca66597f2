# SPDX-License-Identifier: Apache-2.0
"""The blocked greedy in Triton: passes, groups of programs, DivPrune's seed, the one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bench import gpu_seed
from python_tests.triton_small import GROUPS, Runs
from python_tests.triton_together import RaceError, World
from zspa_kernels._segments import ragged_table
from zspa_kernels.backends.triton import _common, _scratch, diversity, diversity_config
from zspa_kernels.testing import bound, check_diversity, tokens


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch, diversity)


def _frames(count: int, n: int, d: int = 24) -> Tensor:
    """Frames of the same tokens with some noise."""
    draw = torch.Generator().manual_seed(7)
    scene = torch.randn(n, d, generator=draw)
    return torch.cat([scene + 0.1 * torch.randn(n, d, generator=draw) for _ in range(count)])


def _weights(n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("model", ["clusters", "video"])
def test_many_passes_pick_what_one_at_a_time_does(model: str, runs: Runs) -> None:
    n, d, k = 96, 40, 40
    visual = tokens(model, n, d, seed=1)
    got = diversity.diversity(visual[None], k, None, None, None)[0]
    check_diversity(visual, got, k, bound=bound(d, "triton"))
    assert runs.rounds[0] >= 8  # 16 candidates a pass, and the seed before


def test_ties_with_tokens_outside_the_block(runs: Runs) -> None:
    """Cosines of few values, all exact: the lowest index decides, in the block or not."""
    visual = torch.stack([tokens("exact", 96, 16, seed=seed) for seed in range(2)])
    for one, got in zip(visual, diversity.diversity(visual, 40, None, None, None), strict=True):
        check_diversity(one, got, 40, bound=0.0)


def test_a_tie_with_the_first_candidate(runs: Runs) -> None:
    """Row 2 is a candidate and rises to what row 0 has, which is none and comes first."""
    runs.group, runs.programs = GROUPS[1], 2
    ones = ((0, 10), (0, 12), (2, 6), (0, 2), (0, 16))
    visual = torch.full((5, 16), -1.0)
    for row, (start, stop) in zip(visual, ones, strict=True):
        row[start:stop] = 1.0
    picks = diversity.diversity(visual[None], 3, torch.tensor([[4]]), None, None)
    assert picks.tolist() == [[3, 0, 2]]


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


@pytest.mark.parametrize("few", [0, 1024])
def test_a_seed_without_a_direction_is_one(few: int, runs: Runs) -> None:
    """It is like no token, so the lowest index comes first, and not DivPrune's seed.

    All keys tie: of as many programs as there are candidates, each proposes one.
    """
    runs.fields |= {"whole_rows": few, "whole_tiles": 99, "block": 4, "rows": 4, "cols": 2}
    runs.group, runs.programs = GROUPS[1], 4
    visual, seeds = tokens("vlm", 14, 24, seed=1).repeat(2, 1, 1), torch.tensor([[7], [7]])
    visual[0, 7], visual[1, 7] = torch.nan, 0.0  # no token, and one
    picks = diversity.diversity(visual, 4, seeds, None, None)
    assert picks[0, 0] != picks[1, 0] == 0
    for one, got in zip(visual, picks, strict=True):
        check_diversity(one, got, 4, seeds=seeds[0], bound=bound(24, "triton"))


def test_groups_of_any_size_pick_the_same(runs: Runs) -> None:
    """Proposals, candidates, split Gram blocks, program order: none may show in the picks."""
    visual = torch.stack([tokens(model, 28, 40, seed=4) for model in ("vlm", "exact")])
    want = diversity.diversity(visual, 8, None, None, None)
    for group in GROUPS[1:]:
        for programs in {1, group.programs}:
            runs.group, runs.programs = group, programs
            runs.fields["reverse"] = programs > 1
            assert torch.equal(diversity.diversity(visual, 8, None, None, None), want)


def test_the_seed_is_found_without_all_pairs(runs: Runs) -> None:
    """Neighbours and a few columns settle a smooth image; 9 blocks of columns would be all."""
    visual = tokens("smooth", 144, 24, seed=5)
    got = diversity.diversity(visual[None], 1, None, None, None)[0]
    check_diversity(visual, got, 1, bound=bound(24, "triton"))
    assert runs.rounds[0] <= 4


def test_the_seed_is_compared_with_finished_tokens(runs: Runs) -> None:
    """Rows 0 and 5 are like each other and nobody else; they are finished in two tiles."""
    runs.fields |= {"block": 4, "rows": 4, "cols": 2}
    runs.programs = 2
    visual = torch.eye(12)
    visual[5, 0] = 1.0
    visual[[2, 3, 6, 7, 9, 10, 11], [1, 1, 4, 4, 8, 8, 8]] = 0.5
    picks = diversity.diversity(visual[None], 1, None, None, None)
    assert picks.tolist() == [[1]]


def test_the_seed_of_frames_is_found_at_their_distance(runs: Runs) -> None:
    """What the first columns tell spares the others; rows of the first and the last frame count."""
    frames = _frames(3, 48)
    expected = {4: 5, 17: 9}  # votes -> runs of the phases; 9 blocks of columns would be all
    for votes, rounds in expected.items():
        runs.fields["votes"] = votes
        got = diversity.diversity(frames[None], 1, None, None, None)[0]
        check_diversity(frames, got, 1, bound=bound(24, "triton"))
        assert runs.rounds[-1] == rounds
        assert _simulated(frames, runs) == rounds


def _simulated(visual: Tensor, runs: Runs) -> int:
    """Runs of the phases as `bench.gpu_seed` counts them."""
    unit = torch.nn.functional.normalize(visual.double(), dim=-1).float()
    work = gpu_seed.search(unit @ unit.T, runs.module.config(visual.shape[1], 4), runs.programs)
    return 1 + work.finishes + 2 * (work.shift > 0)


@pytest.mark.parametrize("model", ["iid", "vlm"])
def test_counts_of_the_seed_are_those_of_the_kernel(model: str, runs: Runs) -> None:
    visual = tokens(model, 150, 24, seed=8)
    diversity.diversity(visual[None], 1, None, None, None)
    assert runs.rounds == [_simulated(visual, runs)]


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


def test_launches_are_sized_by_the_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the device that runs them: more programs than it has would never all be resident."""
    count, gpu = SimpleNamespace(multi_processor_count=20), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {gpu: count}.__getitem__)
    cfg, segments = diversity_config.config(4096, 2), _common.Segments(3, 576, 0, 9)
    monkeypatch.setattr(diversity, "multiprocessors", _common.multiprocessors.__wrapped__)
    assert diversity.group_grid(cfg, segments, gpu) == (3, 6)
    assert not diversity.few_tokens(cfg, segments, gpu)
    meta = torch.device("meta")
    assert diversity.group_grid(cfg, segments, meta) == (3, 44)
    assert diversity.few_tokens(cfg, segments, meta)
    table = torch.empty(3, 5, dtype=torch.int64, device=meta)
    assert not diversity.few_tokens(cfg, replace(segments, table=table), meta)


def test_a_smaller_table_of_proposals_would_not_bound() -> None:
    """What `choose` relies on: one key a program lies below the second best of all programs."""
    cfg = diversity_config.config(64, 4)
    assert all(2 <= g.width <= cfg.block for g in cfg.groups)
    assert all(g.programs & (g.programs - 1) == 0 for g in cfg.groups)
    assert cfg.block % cfg.rows == cfg.block % cfg.cols == 0


@pytest.mark.parametrize(
    ("rows", "d", "programs", "chunks"),
    [
        *((2880, 4096, 128, 4), (576, 4096, 4, 4), (16384, 3584, 128, 1), (1296, 3584, 128, 4)),
        *((2880, 512, 128, 1), (2880, 8192, 4, 1), (500_000, 8192, 128, 1)),
    ],
)
def test_an_update_is_cut_where_that_spares_more_than_it_costs(
    rows: int, d: int, programs: int, chunks: int
) -> None:
    cfg = diversity_config.config(d, 2)
    assert diversity_config.update_chunks(cfg, rows, d, programs) == chunks


# --- programs that wait for each other ------------------------------------------------------------


def _mixed() -> list[Tensor]:
    images = [tokens(model, 40, 40, seed=6) for model in ("iid", "exact")]
    visual = torch.stack([*images, _frames(2, 20, 40)])
    # The first segment has fewer tokens than programs, a later one fewer than each proposes.
    starts, k = torch.tensor([3, 4, 40, 47, 120]), torch.tensor([1, 8, 2, 25])
    table = ragged_table(starts, None, k, 36, 120, 120)
    seeds = torch.arange(0, 40, 2).repeat(3, 1)
    seeds[0, 3], seeds[1, 18] = 40, 55  # no tokens of these images
    return [
        diversity.diversity(visual, 6, None, None, None),
        diversity.diversity(visual, 8, seeds, _weights(120).view(3, 40), None),
        diversity.diversity_varlen(visual.flatten(0, 1), table, 36, None),
        _after_core(visual[:, :20]),
    ]


def _after_core(visual: Tensor) -> Tensor:
    """Core slots that are full in part, not at all, or with a token that does not count."""
    visual, indices = visual.clone(), torch.full((3, 6), -1)
    visual[2, 9] = torch.nan
    indices[0, :2], indices[2, 0] = torch.tensor([4, 11]), 9
    segments = _common.Segments(3, 20, 3, 3)
    scratch = _scratch.allocate(visual.device, diversity.greedy_plan(visual, segments))
    diversity.greedy(visual, segments, indices, None, None, None, scratch, after_core=True)
    assert [*indices[0, :2], indices[2, 0]] == [4, 11, 9]
    return indices


def test_no_barrier_can_be_spared(runs: Runs) -> None:
    runs.every_barrier_is_needed(diversity._diversity_greedy_kernel, _mixed, count=10)


@pytest.mark.parametrize("semantics", ["acquire", "release"])
def test_a_barrier_that_orders_nothing_is_found(
    semantics: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic = World.atomic

    def without(world: World, address: int, given: str) -> None:
        atomic(world, address, "" if semantics.upper() in given else given)

    monkeypatch.setattr(World, "atomic", without)
    with pytest.raises(RaceError, match="not ordered after"):
        runs.together(diversity._diversity_greedy_kernel, _mixed, seed=0)
