# SPDX-License-Identifier: Apache-2.0
"""The coverage greedy in Triton: groups of programs, gains bit for bit, the one launch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.triton_small import GROUPS, Runs, with_fault
from python_tests.triton_together import RaceError
from zspa_kernels._segments import ragged_table
from zspa_kernels.backends.triton import (
    _common,
    _scratch,
    facility_location,
    facility_location_config,
    facility_location_matrix,
    facility_location_phases,
    facility_location_steps,
)
from zspa_kernels.testing import MODELS, bound, tokens
from zspa_kernels.testing.facility_location import check_facility_location, facility_location64

run = facility_location.facility_location
varlen = facility_location.facility_location_varlen
#: Fault -> (module, what stands there, what is put there).
FAULTS = {
    "tokens of the first turn": (
        facility_location_matrix, "x = visual + origin +", "x = visual + turn * stride_b +",
    ),
    "covered as in the first turn": (
        facility_location_matrix, "directed + seg)\n    across", "directed + turn)\n    across",
    ),
    "sums as in the first turn": (
        facility_location_matrix, "directed + seg)\n    own", "directed + turn)\n    own",
    ),
    "gains as in the first turn": (facility_location_steps, "directed + seg)", "directed + group)"),
    "one place for all": (facility_location_phases, "(first - before) *", "(first - first) *"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    small = {"list_block": 16, "rows": 32, "programs": 4, "soft_rows": 4, "soft_cols": 4}
    greedy = {"lanes": 2, "width": 8, "words": 2, "own": 4}
    return Runs(monkeypatch, facility_location, **small, **greedy)


def _uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_many_blocks_pick_what_one_does(temperature: float, runs: Runs) -> None:
    n, d, k = 38, 40, 12
    visual, weights, words = tokens("clusters", n, d, seed=1), _uniform(n), _uniform(5, n) / n
    visual[::3] = 0.0  # these cover nothing, and need not be covered
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
            # Without given rows there is nothing to scale against.
            assert torch.equal(run(visual, 6, None, None, None, 0.0, 1e-45), want)


def test_only_given_rows_are_covered(runs: Runs) -> None:
    """Tokens without a direction cover no token; what they give to rows still ages gains."""
    words = _uniform(5, 9)
    got = run(torch.zeros(1, 9, 8), 9, words[None], None, None, 0.0, 1.0)[0]
    assert torch.equal(got, facility_location64(torch.zeros(9, 8), 9, benefits=words))


@pytest.mark.raw_memory
def test_columns_beyond_two_to_the_31_elements(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Columns are 2**30 elements apart, in files of which only what is written takes room."""
    allocate = _scratch.allocate

    def sparse(device: torch.device, plan: _scratch.Plan) -> dict[str, Tensor]:
        size = {name: math.prod(shape) for name, (_, shape) in plan.items()}
        large = {name for name in plan if size[name] >= 2**30}
        assert large == {"matrix", "covered"}
        return allocate(device, {name: plan[name] for name in plan.keys() - large}) | {
            name: torch.from_file(str(tmp_path / name), shared=True, size=size[name])
            for name in large
        }

    runs.programs, n = 1, 3
    visual, picks = 1.0 + 0.3 * tokens("iid", n, 16, seed=2), torch.full((1, n), -1)
    temperature = 0.01  # exp(1 / 0.01) would not be finite
    monkeypatch.setattr(_scratch, "allocate", sparse)
    given = (None, None, None, temperature, 1.0)
    facility_location._greedy(visual[None], _common.Segments(1, n, 0, n), 2**30, picks, *given)
    assert torch.equal(picks[0], facility_location64(visual, n, temperature=temperature))
    assert picks.tolist() == [[0, 2, 1]]  # nor is it the order of the columns


def _bytes(n: int, images: int) -> int:
    """Of the matrices of so many images of `n` tokens."""
    return images * n * 16 * -(-n // 16) * 4


def _turns() -> list[Tensor]:
    """Three images, padded and ragged; the first has a token less to cover."""
    visual = torch.stack([tokens(MODELS[b], 9, 16, seed=b) for b in range(3)])
    visual[0, 7], visual[1, 3] = torch.nan, 0.0
    table = ragged_table(
        torch.tensor([0, 5, 5, 12, 21]), None, torch.tensor([2, 1, 2, 3]), 8, 9, 27
    )
    return [
        run(visual, 4, None, None, None, 0.2, 1.0),
        varlen(visual.flatten(0, 1)[:21], table, 8, 9, None, None, 0.0, 1.0),
    ]


def _in_flight(runs: Runs, images: int) -> list[Tensor]:
    runs.fields["matrix_bytes"] = _bytes(9, images)
    return _turns()


def test_images_in_flight_do_not_show(runs: Runs) -> None:
    """One image at a time, two, or all: the picks are the same, padded and ragged."""
    want = _turns()
    assert len(runs.rounds) == 2
    assert all(int((picks >= 0).sum()) == count for picks, count in zip(want, (12, 7), strict=True))
    for images, turns in ((1, 3 + 4), (2, 2 + 2)):
        runs.rounds.clear()
        for got, expected in zip(_in_flight(runs, images), want, strict=True):
            assert torch.equal(got, expected)
        assert len(runs.rounds) == turns


def test_matrices_are_bounded() -> None:
    """Scratch of 32 images of 2880 tokens is that of eight, and of one image whatever it takes."""
    cfg = facility_location_config.config(4096, 2)
    for images, n, flying in ((32, 2880, 8), (32, 576, 32), (8, 2880, 8), (2, 16384, 1)):
        stride = 16 * -(-n // 16)
        assert facility_location_config.in_flight(cfg, images * n, n, stride, images) == flying
        visual = torch.empty(images, n, 64, dtype=torch.bfloat16, device="meta")
        plan = facility_location._plan(visual, images, flying, n, stride, 0, 4, 32)
        kind, shape = plan["matrix"]
        assert kind.itemsize * math.prod(shape) <= max(2**28, 4 * n * stride)
        others = [k.itemsize * math.prod(s) for name, (k, s) in plan.items() if name != "matrix"]
        assert sum(others) < 32 * images * n + 128 * stride * 4 + 2**16
    # Many short images beside a long one: all rows fit, though as many long images would not.
    assert facility_location_config.in_flight(cfg, 20_000, 2880, 2880, 100) == 100
    packed = torch.empty(20_000, 64, dtype=torch.bfloat16, device="meta")
    plan = facility_location._plan(packed, 100, 100, 2880, 2880, 0, 4, 32)
    assert plan["matrix"] == (torch.float32, (20_000 * 2880,))
    assert facility_location_config.in_flight(cfg, 30_000, 2880, 2880, 100) == 8


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_turns(
    fault: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What goes wrong with an image that is not in the first turn, or not its first, is seen."""
    runs.programs = 1
    want = _in_flight(runs, 2)
    module, *texts = FAULTS[fault]
    mutant = with_fault(module, (texts[0], texts[1]), tmp_path)
    if module is facility_location_matrix:
        monkeypatch.setattr(facility_location, "matrices", mutant)
    elif module is facility_location_steps:
        monkeypatch.setattr(
            facility_location, "facility_location_step", mutant.facility_location_step
        )
    else:
        monkeypatch.setattr(facility_location_steps, "phases", mutant)
        monkeypatch.setattr(facility_location_matrix, "own_matrix", mutant.own_matrix)
    got = _in_flight(runs, 2)
    assert not all(torch.equal(*pair) for pair in zip(got, want, strict=True))


def test_turns_meet_anew(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of a later turn wait for each other; were arrivals counted on, not all would."""
    want = _in_flight(runs, 2)
    kernel = facility_location._facility_location_greedy_kernel
    for got, expected in zip(runs.together(kernel, _turns, seed=1), want, strict=True):
        assert torch.equal(got, expected)
    allocate = _scratch.allocate

    def one_counter(*args: Any) -> dict[str, Tensor]:
        scratch = allocate(*args)
        scratch["control"] = scratch["control"][:1].expand(2, -1)
        return scratch

    monkeypatch.setattr(_scratch, "allocate", one_counter)
    with pytest.raises(RaceError):
        runs.together(kernel, _turns, seed=1)


def _mixed() -> list[Tensor]:
    images = [tokens(model, 16, 20, seed=6) for model in ("iid", "exact", "video")]
    visual = torch.stack(images, 1).transpose(0, 1)  # an image does not begin where one ends
    starts, k = torch.tensor([3, 16, 19, 48]), torch.tensor([5, 2, 4])
    table = ragged_table(starts, None, k, 11, 29, 48)
    return [
        run(visual, 5, _uniform(3, 3, 16), None, None, 0.0, 1.0),
        varlen(visual.flatten(0, 1), table, 11, 29, _uniform(3, 48), _uniform(48), 0.2, 1.0),
    ]


def test_no_barrier_can_be_spared(runs: Runs) -> None:
    runs.every_barrier_is_needed(
        facility_location._facility_location_greedy_kernel, _mixed, count=1
    )
