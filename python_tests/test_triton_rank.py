# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels that count: the k best of given scores, and picks in ascending order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.triton_small import with_fault
from zspa_kernels.backends.triton import (
    relevance_topk,
    relevance_topk_config,
    relevance_topk_rank,
    select,
)
from zspa_kernels.backends.triton._common import Segments

#: Fault -> (what stands in relevance_topk_rank.py, what is put there).
RANK = {
    "ties are ahead anywhere": ("(other > own)", "(other >= own)"),
    "ties are ahead nowhere": ("(other >= own)", "(other > own)"),
    "ties beside the rows come later": ("(level == own) &", "(level > own) &"),
    "ties to the highest index": ("(near + lane < i)", "(near + lane > i)"),
    "a row is ahead of itself": ("(near + lane < i)", "(near + lane <= i)"),
    "columns of the next block": ("block // COLUMNS * COLUMNS", "block // COLUMNS * COLUMNS + 1"),
    "columns before count twice": ("range(near, length,", "range(0, length,"),
    "columns before do not count": ("range(0, near, STEPS", "range(near, near, STEPS"),
    "the first load only": ("tl.static_range(STEPS)", "tl.static_range(1)"),
    "one score at each load": ("at + step * COLUMNS, mask", "at, mask"),
    "what lies behind the rows": ("left - step * COLUMNS", "left"),
    "masked tokens are chosen": ("(own > -INF) &", "(own == own) &"),
    "no prompt is one": ("only_if(heard > 0, chosen)", "chosen"),
    "one too many": ("(rank < k_core)", "(rank <= k_core)"),
    "places in the segment": ("base + i, mask", "i, mask"),
}
#: The same for select.py.
SORT = {
    "descending": ("(other < own)", "(other > own)"),
    "-1 first": ("tl.where(pick < 0, LAST", "tl.where(pick < 0, -1"),
    "the first load only": ("tl.static_range(STEPS)", "tl.static_range(1)"),
    "one pick at each load": ("c = c0 + step * COLUMNS + lane", "c = c0 + lane"),
    "places in the segment": ("base + own, mask", "own, mask"),
    "places in the batch": ("(pick - base).to", "pick.to"),
    "no -1": ("mask=empty)", "mask=empty & (s < 0))"),
    "a -1 at the last pick": ("(s >= tl.sum(some", "(s + 1 >= tl.sum(some"),
    "a -1 too many": ("& (s < slots)", "& (s <= slots)"),
    "-1s count": ("(other < LAST)", "(other <= LAST)"),
}


def _cut(monkeypatch: pytest.MonkeyPatch, module: Any, **fields: int) -> None:
    config: Callable[..., Any] = module.config
    monkeypatch.setattr(
        module, "config", lambda *a, **k: dataclasses.replace(config(*a, **k), **fields)
    )


@pytest.fixture(autouse=True)
def small(require_backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that few tokens lie before, beside and behind the rows of most."""
    require_backend("triton")
    _cut(monkeypatch, relevance_topk, rank_rows=2, rank_columns=8, rank_steps=2, programs=15)
    _cut(monkeypatch, select, slots=2, columns=4, steps=2, programs=9)


def _scores() -> Tensor:
    """Ties at all distances, zeros of both signs, neighbours in float32, masked tokens."""
    steps = torch.randint(-4, 5, (3, 45), generator=torch.Generator().manual_seed(0)) / 4
    steps[0, ::7] = -0.0
    tiny = torch.tensor([0.0, 2.0**-149, -(2.0**-149), -0.0, 1 + 2.0**-23, 1 - 2.0**-24, 1.0])
    steps[1] = tiny[torch.arange(45) % 7]
    steps[:, 5], steps[:, 41], steps[2, 24:36] = -torch.inf, -torch.inf, -torch.inf
    return steps


def _within(size: int, value: int) -> Tensor:
    """Memory before and behind it is the test's own: a fault may write there."""
    return torch.full((size + 256,), value)[128 : 128 + size]


def _best(scores: Tensor, k: int) -> list[int]:
    """By Python's own sort, which keeps the order of what is equal."""
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))
    picks = [i for i in order if scores[i] > -torch.inf][:k]
    return picks + [-1] * (k - len(picks))


def _judge_ranks(rank: Callable[..., None]) -> None:
    scores, heard = _scores(), torch.tensor([1, 7, 2], dtype=torch.int32)
    for k in (1, 20, 45):
        picks = _within(3 * k, -1).view(3, k)
        rank(scores, heard, Segments(3, 45, k, 0), picks)
        assert picks.tolist() == [_best(row, k) for row in scores]
    # First row, length, k_core, k_diverse, first slot; then a segment whose prompt has no tokens.
    table = torch.tensor(
        [[3, 37, 9, 2, 0], [40, 21, 0, 3, 11], [70, 33, 33, 0, 14], [9, 5, 5, 0, 50]]
    )
    lengths = table[:, 1].tolist()
    ragged, heard = _scores().flatten()[: sum(lengths)], torch.tensor([1, 3, 1, 0]).int()
    picks, right = _within(55, -1), torch.full((55,), -1)
    rank(ragged, heard, Segments(4, len(ragged), 0, 0, table), picks)
    for (first, _, k, _, slot), part in zip(
        table[:3].tolist(), ragged.split(lengths), strict=False
    ):
        own = torch.tensor(_best(part, k), dtype=torch.int64)
        right[slot : slot + k] = torch.where(own < 0, own, own + first)
    assert picks.tolist() == right.tolist()


def _judge_sort(sort: Callable[..., None]) -> None:
    draw = torch.Generator().manual_seed(1)
    picks = torch.stack([torch.randperm(64, generator=draw)[:29] for _ in range(4)])
    picks[0, 3:20], picks[1, ::2], picks[2] = -1, -1, -1
    found = _within(4 * 29, -7).view(4, 29)
    sort(picks, found, Segments(4, 64, 9, 20), 29)
    assert found.tolist() == [_ascending(row) for row in picks.tolist()]
    # As for ranks; the tokens of the second segment have indices beyond 2^31.
    table = torch.tensor([[5, 64, 9, 4, 1], [2**31 + 3, 64, 0, 17, 14], [0, 9, 0, 0, 32]])
    packed = _within(34, -1)
    packed[1:14] = picks[3, :13] + 5
    packed[14:31:2] = picks[3, 13:22] + 2**31 + 3
    found = _within(34, -7)
    sort(packed, found, Segments(3, 0, 0, 0, table), 34)
    first, second = _ascending(packed[1:14].tolist()), _ascending(packed[14:31].tolist())
    assert found.tolist() == [-7, *first, *second, -7, -7, -7]


def _ascending(picks: list[int]) -> list[int]:
    return sorted(picks, key=lambda pick: (pick < 0, pick))


@pytest.mark.parametrize("fault", [None, *RANK])
def test_ranks(fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if fault is None:
        return _judge_ranks(relevance_topk.rank)
    mutant = with_fault(relevance_topk_rank, RANK[fault], tmp_path)
    kernel = "_relevance_topk_rank_kernel"
    monkeypatch.setattr(relevance_topk, kernel, vars(mutant)[kernel])
    with pytest.raises(AssertionError):
        _judge_ranks(relevance_topk.rank)
    return None


@pytest.mark.parametrize("fault", [None, *SORT])
def test_sort(fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if fault is None:
        return _judge_sort(select.sort)
    mutant = with_fault(select, SORT[fault], tmp_path)
    monkeypatch.setattr(select, "_select_sort_kernel", vars(mutant)["_select_sort_kernel"])
    with pytest.raises(AssertionError):
        _judge_sort(select.sort)
    return None


@pytest.mark.parametrize("programs", [1, 6, 200])
def test_programs_decide_nothing(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (relevance_topk, select):
        for reverse in (False, True):
            _cut(monkeypatch, module, programs=programs, reverse=reverse)
            _judge_ranks(relevance_topk.rank)
            _judge_sort(select.sort)


@pytest.mark.parametrize("hip", [False, True])
def test_a_count_is_exact(hip: bool) -> None:
    cfg = relevance_topk_config.config(4096, 2, hip=hip)
    assert cfg.rank_columns % cfg.rank_rows == 0  # the rows of a block stand among its columns
    assert cfg.rank_columns >= 2**31 >> 24  # of so many a float32 counts the tokens
