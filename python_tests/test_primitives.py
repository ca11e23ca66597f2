# SPDX-License-Identifier: Apache-2.0
"""The primitives: bad calls, gradients, and properties that hypothesis tries to break."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zspa_kernels as zk
from python_tests.oracles.scoredtopk import scoredtopk
from python_tests.oracles.todre import check_todre
from python_tests.oracles.tome import tome
from python_tests.oracles.vispruner import thinned
from python_tests.scenes import integer_tokens
from zspa_kernels.primitives import (
    _image,
    alignment,
    ascending,
    assign,
    centred,
    distinctiveness,
    match,
    merge,
    merging,
    min_max,
    min_sum,
    quotas,
    scores,
    similarity,
    soft_suppress,
    suppress,
    thin,
    thinning,
    topk,
)
from zspa_kernels.primitives._image import Image

X = torch.eye(4)
S = torch.ones(4)


@contextlib.contextmanager
def path(name: str) -> Iterator[None]:
    """With the native kernels, where they are built, or by the operations of torch."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "torch":
            for module in (_image, merging, scores, similarity, thinning):
                patch.setattr(module, "native", lambda *x, **y: False)
        yield


PATHS = ("native", "torch")


@pytest.fixture(params=PATHS)
def either(request: pytest.FixtureRequest) -> Iterator[None]:
    with path(request.param):
        yield


@given(integer_tokens(), st.data())
def test_min_sum(visual: Tensor, data: st.DataObject) -> None:
    n = len(visual)
    k = data.draw(st.integers(0, n))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    check_todre(visual, min_sum(visual, k, visual_mask=mask).tolist(), k, mask)


@given(integer_tokens(), st.data())
def test_match(keys: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(keys)))
    groups = tome(keys, k)
    for name in PATHS:
        with path(name):
            indices, owner = match(keys, k)
        assert indices.tolist() == sorted(groups)
        assert owner.tolist() == [
            next(slot for slot, head in enumerate(sorted(groups)) if i in groups[head])
            for i in range(len(keys))
        ]


@given(integer_tokens(), st.data())
def test_thin(features: Tensor, data: st.DataObject) -> None:
    n = len(features)
    k, step = data.draw(st.integers(0, n)), data.draw(st.integers(1, 3))
    levels = st.sampled_from([0.0, -0.0, 1.0, 2.0, float("inf")])
    scores = torch.tensor(data.draw(st.lists(levels, min_size=n, max_size=n)))
    right = thinned(features, scores, k, step)
    for name in PATHS:
        with path(name):
            assert thin(features, scores, k, step=step).tolist() == right


@given(st.data())
def test_topk(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))

    def values(choices: list[Any]) -> Tensor:
        return torch.tensor(data.draw(st.lists(st.sampled_from(choices), min_size=n, max_size=n)))

    scores = values([0.0, -0.0, 1.0, 2.0, torch.nan, torch.inf])
    mask, force = values([True, True, False]), values([True, False, False])
    segments = values([-1, 0, 1, 2])
    first = data.draw(st.integers(0, n))
    second = data.draw(st.integers(0, n - first))
    k = first + second
    for name, division in product(PATHS, (None, [first, second, 0])):
        given = (mask, force, segments if division else None, division)
        right = scoredtopk(scores, k, *given)
        named = dict(zip(("mask", "force_keep", "segments", "quotas"), given, strict=True))
        ascending = sorted(right, key=lambda i: i if i >= 0 else n)
        with path(name):
            assert topk(scores, k, **named).tolist() == right
            assert topk(scores, k, **named, sorted=True).tolist() == ascending


def test_forced_tokens_come_before_quotas() -> None:
    rating, force = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, False])
    segments = torch.tensor([1, 0, 0], dtype=torch.int32)
    named = {"force_keep": force, "segments": segments}
    assert topk(rating, 1, **named, quotas=[1, 0]).tolist() == [0]
    assert topk(rating, 2, **named, quotas=[2, 0]).tolist() == [0, 2]
    assert topk(rating, 2, segments=segments, quotas=[1, 1]).tolist() == [2, 0]


def test_quotas_are_even_and_no_larger_than_a_segment() -> None:
    assert quotas(10, [2, 9, 9]) == [2, 4, 4]
    assert quotas(12, [1, 1, 4, 9]) == [1, 1, 4, 6]
    assert quotas(9, [2, 0, 3]) == [2, 0, 3]


@pytest.mark.usefixtures("either")
def test_ascending_leaves_out_what_is_no_index() -> None:
    picks = torch.tensor([[4, 0, -1, 7, 2], [3, -9, 1, 5, 4]])
    for chosen in (picks, picks.int()):  # the native kernel takes int64
        right = [[0, 2, -1, -1, -1], [1, 3, -1, -1, -1]]
        assert ascending(chosen, 4).tolist() == right
        assert ascending(chosen[None], 4).tolist() == [right]


@pytest.mark.usefixtures("either")
def test_match_at_a_tie() -> None:
    """Ten pairs of rows of every length at 60 degrees, each at a right angle to all others."""
    pair = torch.tensor([[1.0, 1, 0], [1, 0, 1]])
    rows = torch.block_diag(*[pair * size for size in torch.linspace(0.3, 9.7, 10)])
    _, owner = match(rows, 17)
    groups = tome(rows, 17)
    assert sorted(groups) == [1, 3, 5, *range(6, 20)]
    assert owner.tolist() == [0, 0, 1, 1, 2, 2, *range(3, 17)]
    # Angles of 1.1e-4 and 1e-4: to float32 both pairs are equally similar.
    pairs = [torch.tensor([[1.0, 0.0], [1.0, angle]]) for angle in (1.1e-4, 1e-4)]
    assert match(torch.block_diag(*pairs), 3)[1].tolist() == [0, 1, 2, 2]


def test_thin_at_a_tie() -> None:
    """The same pairs; and a zero row at an odd place, which the others are less unlike than 3."""
    pairs = torch.block_diag(*[torch.tensor([[1.0, 0], [1, angle]]) for angle in (1.1e-4, 1e-4)])
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.2, 1.0], [-1.0, -0.5]])
    scores = torch.tensor([0.4, 0.3, 0.2, 0.1])
    for name in PATHS:
        with path(name):
            assert thin(pairs, scores, 3).tolist() == [0, 1, 3]
            assert thin(rows, scores, 3).tolist() == [0, 1, 3]
            assert thin(torch.zeros(4, 2), scores, 3).tolist() == [2, 1, 3]
            assert thin(rows[:3], scores[:3], 2).tolist() == [2, 1]  # nothing is like either


@pytest.mark.parametrize("n", [30, 80])
def test_thin_where_float32_sees_no_difference(n: int) -> None:
    """Cosines differ by less than 1e-7; of as many tokens as one remembers, and of more."""
    draw = torch.Generator().manual_seed(0)
    features = 1 + 4.5e-4 * torch.randn(n, 64, generator=draw)
    scores = torch.rand(n, generator=draw)
    right = thinned(features, scores, n // 4)
    for name in PATHS:
        with path(name):
            assert thin(features, scores, n // 4).tolist() == right


def test_thin_by_a_double_that_stands_last() -> None:
    """More doubles at even places than a token remembers; only one is at an odd place."""
    base = torch.eye(3)
    near = torch.tensor([[0.0, 0.9, 0.4], [0.0, 0.4, 0.9]])
    rows = torch.cat((base[[0, 2]].repeat(36, 1), near, base[[1, 0]]))
    scores = torch.arange(len(rows), 0.0, -1.0)
    right = thinned(rows, scores, len(rows) - 1, 1)
    for name in PATHS:
        with path(name):
            assert thin(rows, scores, len(rows) - 1, step=1).tolist() == right


def test_twins() -> None:
    """The lowest index of a row with the same bits, whatever its dtype."""
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.5], [3.0, 4.0]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert Image(rows.to(dtype)).twin.tolist() == [0, 1, 0, 3, 1]


@pytest.mark.usefixtures("either")
def test_assign_prefers_the_own_slot_and_the_lowest() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [torch.nan, 0.0]])
    assert assign(rows, torch.tensor([1, 0, -1, 2])).tolist() == [1, 0, 3, 0, -1]
    assert assign(rows, torch.tensor([4, -1])).tolist() == [-1] * 5
    assert assign(rows, torch.tensor([2, 2])).tolist() == [0, 0, 0, 0, -1]
    # Angles of 1e-3 and 5e-4: float32 cannot tell their cosines apart.
    close = torch.tensor([[1.0, 0.0], [1.0, 1e-3], [1.0, 5e-4]])
    assert assign(close, torch.tensor([1, 2])).tolist() == [1, 0, 1]
    ends = torch.tensor([[2.0**40, 0.0], [2.0**41, 0.0], [0.0, 1.0]])  # the longest, one beyond
    assert assign(ends, torch.tensor([0, 2])).tolist() == [0, -1, 1]


def test_merge_is_differentiable_and_leaves_out_what_nobody_owns() -> None:
    x = torch.tensor([[[1.0], [3.0], [torch.nan]]], requires_grad=True)
    weights = torch.tensor([[0.5, 2.0, 1.0]], requires_grad=True)
    owner = torch.tensor([[1, 1, -1]])
    out = merge(x, owner, 3, weights=weights)
    assert out.tolist() == [[[0.0], [6.5], [0.0]]]
    out.sum().backward()
    assert x.grad is not None
    assert weights.grad is not None
    assert x.grad.flatten().tolist() == [0.5, 2.0, 0.0]
    assert weights.grad[0, :2].tolist() == [1.0, 3.0]
    assert merge(x.detach(), owner, 3, weights=weights).requires_grad
    alone = merge(x[0, :1], owner[0, :1], 2)
    assert alone.tolist() == [[0.0], [1.0]]
    assert merge(x[0, :0], owner[0, :0], 2).tolist() == [[0.0], [0.0]]
    half = torch.full((300, 2), 1.0, dtype=torch.float16)
    assert merge(half, torch.zeros(300, dtype=torch.int64), 1)[0, 0] == 1.0
    many, nowhere = torch.ones(3000, 1, dtype=torch.float16), torch.zeros(3000, dtype=torch.int64)
    total = merge(many, nowhere, 1, weights=torch.full((3000,), 1e-8))
    assert total.item() == torch.tensor(3e-5).half()  # in float16 each of them is 0
    assert merge(torch.zeros(2, 3, 0), torch.zeros(2, 3, dtype=torch.int64), 4).shape == (2, 4, 0)


@pytest.mark.usefixtures("either")
def test_cosines_with_words_of_one_image() -> None:
    visual = torch.tensor([[3.0, 4.0], [0.0, 0.0], [torch.nan, 0.0]])
    words = torch.tensor([[1.0, 0.0], [0.0, 2.0], [torch.inf, 0.0]])
    cosine, valid, real = similarity.word_cosines(visual, words)
    right = [[0.6, 0.0, -torch.inf], [0.8, 0.0, -torch.inf]]
    assert torch.allclose(cosine[:2], torch.tensor(right))
    assert valid.tolist() == [True, True, False]
    assert real.tolist() == [True, True, False]


@pytest.mark.usefixtures("either")
def test_a_core_and_more_picks_combine() -> None:
    core, picks = torch.tensor([[-1, 0, 2], [-1, -1, -1]]), torch.tensor([[3, -1, 1], [2, 0, -1]])
    indices, in_core = scores.combined(core, picks, 4, False)
    assert indices.tolist() == [[0, 2, 3, 1], [2, 0, -1, -1]]
    assert in_core.tolist() == [[True, True, False, False], [False] * 4]
    indices, in_core = scores.combined(core, picks, 5, True)
    assert indices.tolist() == [[0, 1, 2, 3, -1], [0, 2, -1, -1, -1]]
    assert in_core.tolist() == [[True, False, True, False, False], [False] * 5]


@pytest.mark.usefixtures("either")
def test_alignment_and_distinctiveness_of_odd_rows() -> None:
    visual = torch.tensor([[3.0, 4.0], [torch.nan, 0.0], [0.0, 0.0]])
    got = alignment(visual, torch.tensor([[1.0, 0.0], [torch.inf, 0.0]]))
    assert got.tolist() == [-20.0, -torch.inf, -1.0]
    assert alignment(visual, visual[:0]).tolist() == [0.0, -torch.inf, 0.0]
    words = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    assert alignment(visual, words).tolist() == [-12.0, -torch.inf, -7.0]
    many = alignment(visual.repeat(100, 1), words).reshape(100, 3)
    assert (many == torch.tensor([-12.0, -torch.inf, -7.0])).all()
    assert distinctiveness(visual)[2] == -1.0
    assert distinctiveness(torch.tensor([[1.0, 0], [1, 0], [0, 1]])).tolist() == [-0.5, -0.5, 0.0]
    assert distinctiveness(visual)[1].isnan()
    assert distinctiveness(visual[:1]).tolist() == [0.0]
    assert centred(visual)[1].isnan().all()
    assert centred(visual)[[0, 2]].tolist() == [[1.5, 2.0], [-1.5, -2.0]]
    assert visual[[0, 2]].tolist() == [[3.0, 4.0], [0.0, 0.0]]
    for kept in (alignment(visual, visual), distinctiveness(visual), centred(visual)[:, 0]):
        assert kept.dtype is (torch.float64 if kept[1] == -torch.inf else torch.float32)
    # The longest valid row, and one beyond; one just too short for a direction.
    ends = torch.tensor([[2.0**40, 0.0], [2.0**41, 0.0], [2.0**-41, 0.0]])
    assert alignment(ends, visual[2:]).tolist() == [-(2.0**80), -torch.inf, -(2.0**-82)]
    assert centred(ends).isnan().any(-1).tolist() == [False, True, False]
    assert distinctiveness(ends)[[0, 2]].tolist() == [0.0, -1.0]
    # The float32 mean of cosines of equal rows is a little above 1.
    equal = torch.tensor([[1.5409960746765137, -0.293428897857666, -2.1787893772125244]] * 2)
    assert distinctiveness(equal).tolist() == [-1.0, -1.0]
    # Nobody to take a mean of.
    nobody = torch.zeros(3, dtype=torch.bool)
    assert centred(visual, visual_mask=nobody).isnan().all()
    assert distinctiveness(visual, visual_mask=nobody).isnan().all()
    assert alignment(visual, visual, visual_mask=nobody).tolist() == [-torch.inf] * 3


def test_scores_are_scaled_where_they_differ() -> None:
    every = torch.ones(3, dtype=torch.bool)
    close = torch.tensor([1.0, 1.005, 9.0])
    assert min_max(close, close < 9.0)[:2].tolist() == [0.0, 1.0]
    assert min_max(torch.tensor([3.0, 3.0, 3.002]), every).tolist() == [1.0] * 3
    assert min_max(torch.tensor([3.0, 3.0, 3.0]), every, 0.0).tolist() == [1.0] * 3
    for sign in (1.0, -1.0):  # the range is 5 / 6 of the largest magnitude
        assert min_max(torch.tensor([0.5, 3.0, 3.0]) * sign, every, 1.0).tolist() == [1.0] * 3
    # Their range is no float32.
    assert min_max(torch.tensor([3e38, -3e38, 0.0]), every).tolist() == [1.0, 0.0, 0.5]
    assert min_max(torch.tensor([1.0, 2.0, 9.0]), ~every).isnan().all()
    assert min_max(close.half(), every).dtype is torch.float32
    for bad in (torch.nan, torch.inf, -torch.inf):  # counts as invalid, and scales nobody else
        scaled = min_max(torch.tensor([1.0, bad, 5.0, 2.0]), torch.ones(4, dtype=torch.bool))
        assert scaled[[0, 2, 3]].tolist() == [0.0, 1.0, 0.25]
        assert scaled[1].isnan()
    empty = min_max(torch.zeros(2, 0).half(), torch.ones(2, 0, dtype=torch.bool))
    assert (empty.shape, empty.dtype) == ((2, 0), torch.float32)


@pytest.mark.usefixtures("either")
def test_ambient_state_changes_nothing() -> None:
    rows = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept, ranked = torch.arange(0, 40, 3), torch.arange(40)

    def every() -> list[Tensor]:
        found = centred(rows), distinctiveness(rows), alignment(rows, rows[:3]), assign(rows, kept)
        return [
            *found,
            thin(rows, rows[:, 0], 9),
            *match(rows, 9),
            similarity.until_novel(rows, ranked, 9, 0.7, 5),
        ]

    expected = every()
    with torch.autocast("cpu", torch.bfloat16):
        for ours, right in zip(every(), expected, strict=True):
            assert torch.equal(ours, right)
            assert not ours.requires_grad


BAD = [
    (min_sum, (X, 5), {}, ValueError, r"min_sum: k must be in \[0, N=4\], got 5"),
    (min_sum, (None, 1), {}, TypeError, "min_sum: visual must be a tensor, got None"),
    (min_sum, (X.double(), 1), {}, TypeError, "min_sum: visual must be float32, float16 or bf"),
    (min_sum, (X, 1), {"seeds": S}, TypeError, "min_sum: seeds must be int64, got torch.float32"),
    (min_sum, (X, 1), {"visual_mask": S}, TypeError, "min_sum: visual_mask must be bool"),
    (suppress, (X, S[:3], 1), {"threshold": 1}, ValueError, r"scores must have shape \[4\], got"),
    (suppress, (X, S, 1), {"threshold": 2}, ValueError, r"threshold must be in \[-1, 1\], got 2"),
    (suppress, (X, S, 1), {"threshold": "1"}, TypeError, "suppress: threshold must be a float"),
    (soft_suppress, (X, S, 5), {"sharpness": 1}, ValueError, r"k must be in \[0, N=4\], got 5"),
    (soft_suppress, (X, S, 1), {"sharpness": 0}, ValueError, "soft_suppress: sharpness must be in"),
    (soft_suppress, (X, S, 1), {"sharpness": 10**400}, ValueError, "sharpness must be in"),
    (soft_suppress, (X, S, 1), {"sharpness": 1, "rule": "cut"}, ValueError, "rule must be one of"),
    (soft_suppress, (X, S, 1), {"sharpness": 1, "spread": 0}, ValueError, "spread must be in"),
    (soft_suppress, (X, S, 1), {"sharpness": 1, "reach": -1}, ValueError, "reach must be in"),
    (soft_suppress, (X, S, 1), {"sharpness": 1, "positions": X}, ValueError, r"positions must hav"),
    (soft_suppress, (X, S, 1), {"sharpness": 1, "reach": "1"}, TypeError, "reach must be a float"),
    (soft_suppress, (X, S, 1), {"sharpness": 1, "positions": [1]}, TypeError, "must be a tensor"),
    (
        soft_suppress,
        (X, [1.0], 1),
        {"sharpness": 1},
        TypeError,
        "scores must be a tensor, got list",
    ),
    (suppress, (X, [1.0], 1), {"threshold": 1}, TypeError, "scores must be a tensor, got list"),
    (min_sum, (X, 1), {"seeds": [1]}, TypeError, "min_sum: seeds must be a tensor, got list"),
    (topk, (S.int(), 1), {}, TypeError, "topk: scores must be floating point, got torch.int32"),
    (topk, (S[None, None], 1), {}, ValueError, r"topk: scores must be \[N\] or \[B, N\], got"),
    (topk, (S, 1.5), {}, TypeError, "topk: k must be an int, got float 1.5"),
    (topk, (S, True), {}, TypeError, "topk: k must be an int, got bool True"),
    (topk, (S, 1), {"mask": S}, TypeError, "topk: mask must be bool, got torch.float32"),
    (topk, (S, 1), {"force_keep": S}, TypeError, "topk: force_keep must be bool, got torch.float"),
    (topk, (S, 1), {"sorted": 1}, TypeError, "topk: sorted must be a bool, got int 1"),
    (topk, (S, 1), {"quotas": [1]}, ValueError, "topk: segments must be given, as segments and"),
    (topk, (S, 1), {"segments": S.int()}, ValueError, "topk: quotas must be given, as segments"),
    (topk, (S, 1), {"segments": S.int(), "quotas": [2]}, ValueError, "quotas must add up to k=1"),
    (topk, (S, 1), {"segments": S, "quotas": [1]}, TypeError, "segments must be int64 or int32"),
    (match, (X, -1), {}, ValueError, r"match: k must be in \[0, N=4\], got -1"),
    (assign, (X, S), {}, TypeError, "assign: kept must be int64, got torch.float32"),
    (merge, (X, S, 1), {}, TypeError, "merge: owner must be int64, got torch.float32"),
    (
        merge,
        (X.int(), S.long(), 1),
        {},
        TypeError,
        "merge: x must be floating point, got torch.int",
    ),
    (merge, (X, S.long().to("meta"), 1), {}, ValueError, "owner must be on cpu like x, got meta"),
    (merge, (X, S.long()[:3], 1), {}, ValueError, r"merge: owner must be \[N\] or \[B, N\] of x"),
    (merge, (X, S.long(), -1), {}, ValueError, "merge: k must be at least 0, got -1"),
    (merge, (X, S.long(), 1), {"weights": S[:2]}, ValueError, r"weights must have shape \[4\]"),
    (alignment, (X, None), {}, TypeError, "alignment: prompt must be a tensor, got None"),
    (alignment, (X, X[:, :2]), {}, ValueError, r"alignment: prompt must be \[M, D=4\] like"),
    (centred, (X[0],), {}, ValueError, r"centred: visual must be \[N, D\] or \[B, N, D\], got"),
    (distinctiveness, (3,), {}, TypeError, "distinctiveness: visual must be a tensor, got int 3"),
    (thin, (X, S, 5), {}, ValueError, r"thin: k must be in \[0, N=4\], got 5"),
    (thin, (X, S, 1), {"step": 0}, ValueError, "thin: step must be at least 1, got 0"),
    (thin, (X, S, 1), {"step": 1.5}, TypeError, "thin: step must be an int, got float 1.5"),
    (thin, (X, S[:3], 1), {}, ValueError, r"thin: scores must have shape \[4\], got \[3\]"),
    (thin, (X, S.int(), 1), {}, TypeError, "thin: scores must be float"),
    (thin, (X, S, 1), {"mask": S}, TypeError, "thin: mask must be bool, got torch.float32"),
    (match, ([1.0], 1), {}, TypeError, r"match: features must be a tensor, got list \[1.0\]"),
    (match, (X, "1"), {}, TypeError, "match: k must be an int, got str '1'"),
    (match, (X, 1), {"mask": S}, TypeError, "match: mask must be bool, got torch.float32"),
    (assign, (X.double(), X), {}, TypeError, "assign: features must be float32, float16 or bfloat"),
    (min_max, ([1.0], S > 0), {}, TypeError, r"min_max: scores must be a tensor, got list \[1.0\]"),
    (min_max, (S.int(), S > 0), {}, TypeError, "min_max: scores must be floating point, got"),
    (min_max, (S, S), {}, TypeError, "min_max: valid must be bool, got torch.float32"),
    (min_max, (S, S[:3] > 0), {}, ValueError, r"min_max: valid must have shape \[4\], got \[3\]"),
    (
        min_max,
        (S, S > 0, -1),
        {},
        ValueError,
        "min_max: flat must be finite and at least 0, got -1",
    ),
    (quotas, (5.5, [9, 9]), {}, TypeError, "quotas: k must be an int, got float 5.5"),
    (quotas, (-1, [9, 9]), {}, ValueError, "quotas: k must be at least 0, got -1"),
    (quotas, (3, [1.5, 3]), {}, TypeError, r"quotas: sizes\[0\] must be an int, got float 1.5"),
    (quotas, (3, None), {}, TypeError, "quotas: sizes must be a sequence of ints, got None"),
    (ascending, ([2, 1], 4), {}, TypeError, r"ascending: indices must be a tensor, got list \[2"),
    (ascending, (S > 0, 4), {}, TypeError, "ascending: indices must be int64 or int32, got"),
    (ascending, (S.long(), 4.5), {}, TypeError, "ascending: n must be an int, got float 4.5"),
]


@pytest.mark.parametrize(("call", "arguments", "options", "kind", "text"), BAD)
def test_bad_calls(
    call: Any, arguments: Any, options: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        call(*arguments, **options)


def test_every_argument_has_its_name() -> None:
    """In the signature, in calls and in the interpreter's own errors."""
    kept = torch.tensor([0, 2])
    nothing: tuple[Any, ...] = ()
    for call, arguments in (
        (centred, {"visual": X}),
        (distinctiveness, {"visual": X}),
        (alignment, {"visual": X, "prompt": X[:2]}),
        (assign, {"features": X, "kept": kept}),
        (match, {"features": X, "k": 2}),
        (thin, {"features": X, "scores": S, "k": 2}),
    ):
        for swapped in (arguments, dict(reversed(arguments.items()))):
            expected = call(*arguments.values())
            torch.testing.assert_close(call(**swapped), expected, rtol=0, atol=0)
        with pytest.raises(TypeError, match=f"missing .*'{next(iter(arguments))}'"):
            call(*nothing)


def test_public() -> None:
    assert set(zk.primitives.__all__) <= set(dir(zk.primitives))
