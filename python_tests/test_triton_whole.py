# SPDX-License-Identifier: Apache-2.0
"""Diversity of few tokens in Triton, by all cosines at once: the picks are the blocked greedy's."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zspa_kernels.backends.triton import (
    _scratch,
    diversity,
    diversity_config,
    diversity_whole,
    select,
)
from zspa_kernels.backends.triton._common import Segments
from zspa_kernels.testing import bound, check_diversity, tokens

SMALL = {"norm_block_n": 16, "block": 32, "rows": 16, "cols": 16, "block_k": 16, "chunk": 32}
SEVERAL = {"whole_alone": 0, "whole_warps": 4, "whole_span": 4}  # warps, and tokens of a thread
#: Fault -> (what stands in diversity_whole.py, what is put there).
FAULTS = {
    "picked again": ("j[None, :], INF, c)", "j[None, :], -INF, c)"),
    "half of the matrix only": ("if one != other", "if one == other"),
    "another row of the matrix": ("square + pick * padded(N)", "square + pick"),
    "ties to the highest index": (
        "tl.min(tl.min(who, 0), 1)",
        "tl.max(tl.max(who % LAST_ROW, 0), 1)",
    ),
    "the threads' first tokens only": ("tl.min(value, 0)", "tl.max(value, 0)"),
    "the first warp only": ("tl.min(key[None, :], 1)", "tl.max(key[None, :], 1)"),
    "places without a token are picked": (
        "mask=i < N, other=-1.0))\n    w",
        "mask=i < N, other=1.0))\n    w",
    ),
    "one tile of the seed": ("range(tiles)", "range(1)"),
    "the seed's tiles of the first image": ("* tiles + tile) * pad", "* 0 + tile) * pad"),
    "the last seeds forgotten": ("s0 + step < count_seeds, other", "s0 + step < 5, other"),
    "padding among seeds wraps": ("inside = (j >= 0)", "inside = (j >= -9)"),
    "core slots are filled again": ("in_slots != 0, filled, 0)", "in_slots != 0, 0, 0)"),
    "weights ignored at first": ("cost(tl.where(m < INF, 0.0, m), w)", "m"),
}


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets fields of the configuration, and whether the matrix of cosines is made."""
    config = diversity_config.config

    def to(few: bool, **fields: Any) -> None:
        new = {**SMALL, "groups": (diversity_config.Group(4, 16, 16, True),), **fields}
        monkeypatch.setattr(
            diversity, "config", lambda *a, **k: dataclasses.replace(config(*a, **k), **new)
        )
        monkeypatch.setattr(diversity, "few_tokens", lambda *_: few)

    return to


def _batch(n: int = 35, d: int = 24) -> Tensor:
    """Two images; among the tokens a zero row, some without a value, and twins."""
    visual = torch.stack([tokens(model, n, d, seed=3) for model in ("vlm", "exact")])
    visual[0, 5], visual[:, 9], visual[1, 30] = 0, torch.nan, visual[1, 11]
    return visual


def _weights(*shape: int) -> Tensor:
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    weights[..., 7], weights[..., 9] = torch.nan, 2.0  # the heaviest one has no value
    return weights


def _seeds() -> Tensor:
    """Nine: padding, what is no token, the row without a value; the second image has none."""
    seeds = torch.arange(9).repeat(2, 1) * 3
    seeds[0, 1:4], seeds[1] = torch.tensor([-1, 35, 9]), -1
    return seeds


def _runs() -> list[Tensor]:
    """Every way to begin, and one to the end."""
    visual, weights = _batch(), _weights(2, 35)
    mask = torch.rand(2, 35, generator=torch.Generator().manual_seed(2)) < 0.8
    prompt = tokens("iid", 4, 24, seed=5).view(2, 2, 24)
    words = torch.tensor([[True, True], [False, False]])  # without one there is no core
    nothing = torch.zeros(1, 12, dtype=torch.bool)
    return [
        diversity.diversity(visual, 35, None, None, mask),
        diversity.diversity(visual[:1, :12], 2, None, weights[:1, :12].contiguous(), nothing),
        diversity.diversity(visual, 5, _seeds(), weights, None),
        select.select(visual, prompt, 11, 4, mask, words, "mean", False),
    ]


def test_few_tokens_pick_what_the_blocked_greedy_does(change: Callable[..., None]) -> None:
    change(False)
    want = _runs()
    assert bool((want[0][:, -4:] == -1).all())
    for fields in ({}, {"reverse": True, **SEVERAL}):
        change(True, **fields)
        for got, expected in zip(_runs(), want, strict=True):
            assert torch.equal(got, expected)


def _judge() -> None:
    visual = _batch()
    for seeds, weights in ((None, None), (_seeds(), None), (None, _weights(2, 35))):
        picks = diversity.diversity(visual, 9, seeds, weights, None)
        assert weights is not None or (11 in picks[1] and 30 not in picks[1])  # its twin
        for b in range(2):
            given = {
                name: None if value is None else value[b]
                for name, value in (("seeds", seeds), ("weights", weights))
            }
            check_diversity(visual[b], picks[b], 9, **given, bound=bound(24, "triton"))
    prompt = tokens("iid", 4, 24, seed=5).view(2, 2, 24)
    whole = select.select(visual, prompt, 11, 4, None, None, "mean", False)
    rest = diversity.diversity(visual, 4, whole[:, :11].contiguous(), None, None)
    assert torch.equal(whole[:, 11:], rest)


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_faults(
    fault: str | None,
    change: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The judge accepts the kernels and rejects them with a fault."""
    change(True, **(SEVERAL if fault == "the first warp only" else {}))
    if fault is None:
        return _judge()
    text = Path(diversity_whole.__file__).read_text()
    before, after = FAULTS[fault]
    assert before in text
    path = tmp_path / "mutant.py"
    path.write_text(text.replace(before, after))
    spec = importlib.util.spec_from_file_location(f"{diversity_whole.__package__}.mutant", path)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    monkeypatch.setattr(diversity, "diversity_whole", mutant)
    with pytest.raises(AssertionError):
        _judge()
    return None


@pytest.mark.parametrize("n", [16, 35, 50])
def test_each_pair_of_blocks_is_met_once(n: int, change: Callable[..., None]) -> None:
    """One block, three and four: entries both ways, and the largest of each token in each block."""
    change(True)
    visual = torch.stack([tokens("vlm", n, 24, seed) for seed in range(2)])
    segments = Segments(2, n, 0, 1)
    scratch = _scratch.allocate(visual.device, diversity.greedy_plan(visual, segments))
    picks = torch.full((2, 1), -1)
    diversity.greedy(visual, segments, picks, None, None, None, scratch, False)
    matrix = scratch["matrix"][:, :, :n]
    assert torch.equal(matrix, matrix.mT)
    unit = torch.nn.functional.normalize(visual.double(), dim=-1)
    want = (unit @ unit.mT).diagonal_scatter(torch.full((2, n), torch.inf), 0, 1, 2)
    torch.testing.assert_close(matrix.double(), want, rtol=0, atol=1e-6)
    others = matrix.diagonal_scatter(torch.full((2, n), -torch.inf), 0, 1, 2)
    blocks = torch.stack([block.amax(1) for block in others.split(16, 1)], 1)
    assert torch.equal(scratch["largest"][:, :, :n], blocks)


def test_chunks_of_channels_are_added_one_after_another(change: Callable[..., None]) -> None:
    """Blocks of 16 channels add 1 and thrice 2^-24, which 1 alone does not see; a chunk has two."""
    change(True)
    visual = torch.zeros(1, 2, 80)
    visual[..., :64:16] = torch.tensor([1.0, 2.0**-12, 2.0**-12, 2.0**-12])
    segments = Segments(1, 2, 0, 1)
    scratch = _scratch.allocate(visual.device, diversity.greedy_plan(visual, segments))
    picks = torch.full((1, 1), -1)
    diversity.greedy(visual, segments, picks, None, None, None, scratch, False)
    scale = scratch["inv_norm"].flatten()[:2].prod()
    assert scratch["matrix"][0, 0, 1] == torch.tensor(1.0 + 2.0**-23) * scale


def test_which_batches_take_the_matrix() -> None:
    """No square matrix beyond 1024 tokens; no more tiles than a GPU does in two rounds."""
    half, single = (diversity_config.config(4096, size) for size in (2, 4))
    for rows, images, taken in ((576, 1, 1), (576, 5, 1), (576, 6, 0), (64, 264, 1), (64, 265, 0)):
        assert diversity_config.whole(half, rows, images, 132) == bool(taken)
    for cfg, images in ((half, 1), (single, 1)):
        assert cfg.rows == cfg.cols  # a tile transposed is a tile
        assert diversity_config.whole(cfg, 1024, images, 132)
        assert not diversity_config.whole(cfg, 1024, images + 1, 132)
        assert not diversity_config.whole(cfg, 1025, images, 10_000)
    for rows in (1, 256, 257, 1024):
        rounds, warps = diversity_config.whole_lanes(half, rows)
        assert rows <= rounds * warps * half.whole_span <= half.whole_rows
