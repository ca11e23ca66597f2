# SPDX-License-Identifier: Apache-2.0
"""What methods are composed of, by native kernels: as in torch, and as in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests.runners import same_bits
from zspa_kernels._native import module
from zspa_kernels.primitives import (
    _image,
    alignment,
    centred,
    distinctiveness,
    merging,
    scores,
    similarity,
)
from zspa_kernels.primitives.similarity import valid_rows
from zspa_kernels.testing import prompt, tokens

Require = Callable[..., None]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def plainly(require_backend: Require, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a function without native kernels."""
    require_backend("cpp")

    def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            for module in (merging, scores, similarity):
                patch.setattr(module, "native", lambda *x, **y: False)
            return function(*args, **kwargs)

    return call


def images(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two images `[2, 70, 33]` with zero, invalid and equal rows; masks, one of all but one."""
    visual = torch.stack([tokens("vlm", 70, 33, seed) for seed in (0, 1)])
    visual[0, 3] = 0.0
    visual[0, 5, 2] = torch.nan
    visual[0, 8] = visual[0, 7]
    mask = torch.ones(70, 2, dtype=torch.bool).T  # strided
    mask[0, 60:] = False
    mask[1, 1:] = False
    return visual.to(dtype), mask


def same_numbers(a: Tensor, b: Tensor) -> None:
    """The same bits, NaN where the other is."""
    same_bits(a.nan_to_num(99.0), b.nan_to_num(99.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_the_ops_leave_out(dtype: torch.dtype, plainly: Callable[..., Any]) -> None:
    """By a mask, by what is not finite, by a length that is too large by the last bit."""
    visual, mask = images(dtype)
    visual[1, 9, 4], visual[1, 0, 0] = torch.inf, -torch.inf
    if dtype is not torch.float16:
        # Squared lengths of 2**80 and the next float32, whose root is 2**40 as well.
        visual[0, 20:22] = 0.0
        visual[0, 20:22, 0], visual[0, 21, 1] = 2.0**40, 1.15 * 2.0**28.5
    for given in (None, mask):
        _, scores = zk.relevance_topk(visual, visual[:, :3], 0, visual_mask=given)
        right = scores > -torch.inf
        assert torch.equal(plainly(valid_rows, visual, given), right)
        for isa in ("auto", *module().isas()):
            module().use_isa(isa)
            assert torch.equal(valid_rows(visual, given), right)
        module().use_isa("auto")
        own = None if given is None else given[1]
        assert torch.equal(valid_rows(visual[1].T.contiguous().T, own), right[1])
    if dtype is not torch.float16:
        assert valid_rows(visual, None)[0, 19:23].tolist() == [True, True, False, True]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_centred(dtype: torch.dtype, plainly: Callable[..., Any]) -> None:
    visual, mask = images(dtype)
    for given in (None, mask):
        ours = centred(visual, visual_mask=given)
        valid = visual.isfinite().all(-1)
        valid = valid if given is None else valid & given
        assert torch.equal(ours.isnan().all(-1), ~valid)
        assert torch.equal(ours.isnan().any(-1), ~valid)
        for b in (0, 1):
            image = visual[b][valid[b]].double()
            right = image - image.mean(0)
            # One rounding of the mean, one of the difference.
            error = 2.0**-24 * (image.mean(0).abs() + right.abs())
            assert ((ours[b][valid[b]] - right).abs() <= error * (1 + 1e-6)).all()
            own = None if given is None else given[b]
            same_numbers(centred(visual[b], visual_mask=own), ours[b])
        plain = plainly(centred, visual, visual_mask=given)
        assert plain.dtype is torch.float32
        assert torch.equal(plain.isnan(), ours.isnan())
        assert (((plain - ours)[valid]).abs() <= 2.0**-22 * visual[valid].float().abs().max()).all()


def test_what_rounding_leaves_of_the_mean_is_nothing(plainly: Callable[..., Any]) -> None:
    """A unit in the last place on either side of it is nothing, two are a direction."""
    unit = 2.0**-23
    for distance, left in ((unit, 0.0), (2 * unit, 2 * unit)):
        visual = torch.tensor([[1.0], [1.0 + 2 * distance]])
        assert centred(visual)[:, 0].tolist() == [-left, left]
        assert plainly(centred, visual)[:, 0].tolist() == [-left, left]
    visual = torch.tensor([[1.0 - unit], [1.0 + unit]])  # the bound itself
    assert centred(visual).tolist() == plainly(centred, visual).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths(dtype: torch.dtype, require_backend: Require) -> None:
    require_backend("cpp")
    visual, _ = images(dtype)
    right = visual.double().square().sum(-1).sqrt().float()
    torch.testing.assert_close(_image.lengths(visual), right, rtol=1e-6, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distinctiveness(dtype: torch.dtype, plainly: Callable[..., Any]) -> None:
    visual, mask = images(dtype)
    for given in (None, mask):
        plain = plainly(distinctiveness, visual, visual_mask=given)
        same_numbers(distinctiveness(visual, visual_mask=given), plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 37])
def test_word_cosines(dtype: torch.dtype, count: int, plainly: Callable[..., Any]) -> None:
    """The bits of one call a word, in one pass over the tokens for every 16 words."""
    visual, mask = images(dtype)
    words = torch.stack([prompt("vlm", count, 33, seed) for seed in (2, 3)])
    real = torch.ones(count, 2, dtype=torch.bool).T
    if count > 1:
        words[0, 1], words[0, 2, 0], real[1, 3:20] = 0.0, torch.inf, False
    for given, own in ((None, None), (mask, real)):
        ours = similarity.word_cosines(visual, words, given, own)
        theirs = plainly(similarity.word_cosines, visual, words, given, own)
        same_bits(ours[1], theirs[1])
        same_bits(ours[2], theirs[2])
        counts = ours[2].unsqueeze(-1)
        same_bits(ours[0].where(counts, 0.0), theirs[0].where(counts, 0.0))
        masks = (None, None) if given is None or own is None else (given[0], own[0])
        alone = similarity.word_cosines(visual[0], words[0], *masks)
        for one, both in zip(alone, ours, strict=True):
            same_bits(one, both[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alignment(dtype: torch.dtype, plainly: Callable[..., Any]) -> None:
    visual, mask = images(dtype)
    words = torch.stack([prompt("vlm", 5, 33, seed) for seed in (2, 3)]).to(dtype)
    words[0, 1, 4] = torch.inf
    heard = torch.ones(5, 2, dtype=torch.bool).T
    heard[0, 2] = False
    ours = alignment(visual, words, visual_mask=mask, prompt_mask=heard)
    valid = mask & visual.isfinite().all(-1)
    assert torch.equal(ours == -torch.inf, ~valid)
    for b in (0, 1):
        real = words[b, heard[b] & words[b].isfinite().all(-1)].double()
        right = -(visual[b].double()[:, None] - real).square().sum(-1).mean(-1)
        torch.testing.assert_close(ours[b][valid[b]], right[valid[b]], rtol=1e-12, atol=1e-10)
    plain = plainly(alignment, visual, words, visual_mask=mask, prompt_mask=heard)
    torch.testing.assert_close(plain, ours, rtol=1e-12, atol=1e-10)
    silent = alignment(visual, words, visual_mask=mask, prompt_mask=torch.zeros_like(heard))
    assert (silent[valid] == 0).all()
    assert (silent[~valid] == -torch.inf).all()


def test_spaced_and_groups(plainly: Callable[..., Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    keys, mask = images(torch.float32)
    rating = torch.randint(0, 9, (2, 70), generator=draw).float()  # ties
    rating[0, 11], rating[0, 12] = torch.nan, torch.inf
    for k, count in ((0, 0), (1, 0), (1, 1), (20, 6), (20, 7), (20, 20), (35, 31), (70, 9)):
        for given in (None, mask):
            valid = rating.isfinite() if given is None else rating.isfinite() & given
            for ascending in (True, False):
                call = (rating, k, count, given, ascending)
                picked = scores.spaced(*call)
                for ours, plain in zip(picked, plainly(scores.spaced, *call), strict=True):
                    same_bits(ours, plain)
                group = (keys, *picked, valid)
                plain_group = plainly(merging.groups, *group)
                for ours, plain in zip(merging.groups(*group), plain_group, strict=True):
                    same_bits(ours, plain)


def test_spaced_among_no_tokens(plainly: Callable[..., Any]) -> None:
    call = (scores.spaced, torch.zeros(2, 0), 0, 0, None, True)
    for ours, plain in zip(call[0](*call[1:]), plainly(*call), strict=True):
        assert ours.shape == plain.shape == (2, 0)


def test_until_novel(plainly: Callable[..., Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    features = tokens("exact", 70, 32, 0)  # cosines at the limit, to the last bit
    features[4] = 0.0
    batch = torch.stack([features, features.flip(0)])
    ends = set()
    for novelty in (0.0, 0.5, 1.0, 1.25):
        for least, patience in ((1, 1), (7, 3), (30, 9), (64, 1)):
            ranked = torch.randperm(70, generator=draw)[:64].repeat(2, 1)
            ranked[1, 50:] = -1
            before = ranked.clone()
            ours = similarity.until_novel(batch, ranked, least, novelty, patience)
            same_bits(ranked, before)
            call = (similarity.until_novel, batch, ranked, least, novelty, patience)
            same_bits(ours, plainly(*call))
            same_bits(similarity.until_novel(batch[0], ranked[0], *call[3:]), ours[0])
            ends.add(int((ours[0] >= 0).sum()))
            turned = similarity.until_novel(batch, ranked.T.contiguous().T, *call[3:])
            same_bits(turned, ours)
    assert len(ends) > 5


def test_a_cosine_at_the_limit_is_near(plainly: Callable[..., Any]) -> None:
    """7 / 25: its multiple of 2**-40 lies below it; torch puts 15 / 25 below 3 / 5."""
    for row, novelty in (([7.0, 24.0], 0.72), ([15.0, 20.0], 0.4)):
        rows, ranked = torch.tensor([[1.0, 0.0], row, [-1.0, 0.0]]), torch.arange(3)
        call = (similarity.until_novel, rows, ranked, 1, novelty, 1)
        assert call[0](*call[1:]).tolist() == plainly(*call).tolist() == [0, 1, 2]


def test_until_novel_counts_every_rank(plainly: Callable[..., Any]) -> None:
    features = torch.eye(130)
    features[50] = 0.0  # without direction: never novel, and nothing is near it
    features[60] = features[0]
    for first in (0, 50):
        ranked = torch.arange(130).roll(-first)
        for patience in (1, 46, 47, 48, 49, 50, 95, 96, 97, 98, 126):
            for novelty in (0.5, 1.0, 1.25):
                call = (similarity.until_novel, features, ranked, 1, novelty, patience)
                same_bits(call[0](*call[1:]), plainly(*call))
    # All but the core, its equal and the zero row are novel.
    assert similarity.until_novel(features, torch.arange(130), 1, 0.5, 126)[127] == 127


def test_every_slot_is_written(require_backend: Require) -> None:
    """Whatever was in the memory of the results before."""
    require_backend("cpp")
    native = module()
    out, flags = torch.full((4,), 7), torch.ones(4, dtype=torch.bool)
    picks = torch.tensor([4, -1, 2, 9])
    native.ascending(picks.data_ptr(), 1, 4, 5, out.data_ptr(), flags.data_ptr())
    assert (out.tolist(), flags.tolist()) == ([2, 4, -1, -1], [True, True, False, False])
    out, flags = torch.full((4,), 7), torch.ones(4, dtype=torch.bool)
    native.combined(
        *(picks.data_ptr(), 1, 4, picks.data_ptr(), 0, 4, True), out.data_ptr(), flags.data_ptr()
    )
    assert (out.tolist(), flags.tolist()) == ([2, 4, 9, -1], [True, True, True, False])
    out, flags = torch.full((4,), 7), torch.ones(4, dtype=torch.bool)
    rating = torch.tensor([1.0, torch.nan, 3.0])
    native.top_k_and_spaced(
        *(rating.data_ptr(), 1, 3, 0, 4, 3, True), out.data_ptr(), flags.data_ptr()
    )
    assert (out.tolist(), flags.tolist()) == ([0, 2, -1, -1], [False, True, False, False])


def test_ordered(plainly: Callable[..., Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    for shape in ((9,), (3, 9), (0, 4), (2, 0)):
        picks = torch.randint(-1, 30, shape, generator=draw)
        for ours, plain in zip(
            scores.ordered(picks, 30), plainly(scores.ordered, picks, 30), strict=True
        ):
            same_bits(ours, plain)


def test_combined(plainly: Callable[..., Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    share = torch.tensor([[0.0], [0.5], [0.9], [1.0]])  # of -1 in each row
    for R, P in ((0, 9), (4, 9), (9, 9), (9, 0), (1, 1), (0, 0)):
        # Different ones, up to the largest that a token can have.
        both = 2**31 - 1 - torch.rand(4, 40, generator=draw).argsort(-1)[:, : R + P]
        both = both.masked_fill(torch.rand(4, R + P, generator=draw) < share, -1)
        both[1, :R] = -1
        core, picks = both[:, :R], both[:, R:]
        for k in (k for k in {0, 1, R, P, R + P} if k <= R + P):
            for ascending in (True, False):
                call = (core, picks, k, ascending)
                ours = scores.combined(*call)
                for x, plain in zip(ours, plainly(scores.combined, *call), strict=True):
                    same_bits(x, plain)
                for b, row in enumerate(both.tolist()):
                    right = [(i, t < R) for t, i in enumerate(row) if i >= 0][:k]
                    right = sorted(right) if ascending else right
                    right += [(-1, False)] * (k - len(right))
                    assert list(zip(*(x[b].tolist() for x in ours), strict=True)) == right
                    alone = scores.combined(core[b], picks[b], k, ascending)
                    for x, whole in zip(alone, ours, strict=True):
                        same_bits(x, whole[b])
