# SPDX-License-Identifier: Apache-2.0
"""topk, and shares of crops and pivots: native kernels take what torch takes without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from python_tests.oracles.scoredtopk import scoredtopk
from python_tests.runners import same_bits, spread, threads
from zspa_kernels.primitives import scores as scores_
from zspa_kernels.primitives import sharing, topk
from zspa_kernels.primitives.sharing import best_of_crops

Require = Callable[..., None]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def numbers(kind: str, n: int) -> Tensor:
    """float64 `[n]`; which digits of their bits differ is what the kernel's path depends on."""
    draw = torch.Generator().manual_seed(n)
    if kind == "levels":
        return (torch.randint(0, 7, (n,), generator=draw) - 3).double()
    if kind == "close":  # apart only in the last bits of float64, or of float32
        scale = torch.where(torch.arange(n) % 2 == 0, 2.0**-52, 2.0**-23).double()
        return 1.0 + torch.randint(0, n, (n,), generator=draw) * scale
    if kind == "wide":
        return torch.randn(n, generator=draw).double() * 10.0 ** torch.randint(
            -37, 38, (n,), generator=draw
        )
    odd = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45, -1e-45, 6e4])
    return odd[torch.randint(0, len(odd), (n,), generator=draw)].double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest(
    dtype: torch.dtype, require_backend: Require, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_backend("cpp")
    for kind in ("levels", "close", "wide", "odd"):
        for n in (1, 96, 400):
            scores = numbers(kind, n).to(dtype)
            mask, force = torch.arange(n) % 7 != 3, torch.arange(n) % 11 == 10
            for forced in (None, force):
                picks, found = scores_.chosen(scores, n, mask, forced, None, None, False)
                same_bits(picks, topk(scores, n, mask=mask, force_keep=forced))
                same_bits(found, picks >= 0)
            for k in sorted({0, 1, n // 9, n - 1, n}):
                for options in ({}, {"mask": mask}, {"mask": mask, "force_keep": force}):
                    right = scoredtopk(scores, k, **options)
                    assert topk(scores, k, **options).tolist() == right
                    ascending = sorted(right, key=lambda i: i if i >= 0 else n)
                    assert topk(scores, k, **options, sorted=True).tolist() == ascending
            with monkeypatch.context() as plainly:
                plainly.setattr(scores_, "native", lambda *x, **y: False)
                plain = [topk(scores, n // 2, mask=mask, sorted=x) for x in (False, True)]
            same_bits(plain[0], topk(scores, n // 2, mask=mask))
            same_bits(plain[1], topk(scores, n // 2, mask=mask, sorted=True))


def test_crops_as_torch(require_backend: Require, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares and scores that tie, crops that are full or empty, a few tokens or none."""
    require_backend("cpp")
    calls: list[tuple[Any, ...]] = []
    for n in (0, 1, 7, 96, 400):
        valid = torch.arange(n) % 7 != 3
        for kind in ("levels", "wide"):
            attention = torch.stack([numbers(kind, n), numbers(kind, n).abs()]).float()
            scores = torch.stack([attention[0], numbers("levels", n).float()])
            for count, sharpness in ((1, 1.0), (3, 1.0), (16, 2.5), (16, 0.0), (500, 1.0)):
                for k in sorted({0, min(1, n), n // 3, n}):
                    given = attention, scores, torch.stack([valid, ~valid | valid]), k, count
                    calls += [(*given, sharpness, True), (*given, sharpness, False)]
    found = [best_of_crops(*call) for call in calls]
    for call, picks in zip(calls, found, strict=True):
        rest = call[3:]
        same_bits(best_of_crops(*(x[1] for x in call[:3]), *rest), picks[1])
    monkeypatch.setattr(sharing, "native", lambda *x, **y: False)
    monkeypatch.setattr(scores_, "native", lambda *x, **y: False)
    for call, picks in zip(calls, found, strict=True):
        same_bits(best_of_crops(*call), picks)


def test_segments_and_quotas_go_together() -> None:
    rating = torch.tensor([1.0, 3.0, 2.0])
    with pytest.raises(ValueError, match="topk: quotas must be given"):
        scores_.chosen(rating, 1, None, None, torch.tensor([0, 0, 1]), None, False)


def test_laws(require_backend: Require) -> None:
    """Rows alone or in a batch, with any strides, on one thread or two; nothing is empty."""
    require_backend("cpp")
    rows = torch.stack([numbers("levels", 70_000), numbers("wide", 70_000).clamp(-9, 9)]).float()
    keep = rows > -2.0
    picks = topk(rows, 900, mask=keep)
    for b in range(2):
        same_bits(topk(rows[b], 900, mask=keep[b]), picks[b])
    wide = rows.repeat_interleave(2, -1)
    same_bits(topk(wide[:, ::2], 900, mask=keep.repeat_interleave(2, -1)[:, ::2]), picks)
    same_bits(topk((-rows)._neg_view(), 900, mask=keep), picks)
    first = rows < -8.0
    same_bits(topk(rows, 900, force_keep=spread(first)), topk(rows, 900, force_keep=first))
    for count in (1, 2):
        with threads(count):
            same_bits(topk(rows, 900, mask=keep), picks)
    for shape in ((0, 5), (2, 0), (0,)):
        k = min(shape[-1], 2)
        assert topk(torch.zeros(shape), k).shape == (*shape[:-1], k)


def test_traced_calls_are_for_torch() -> None:
    rows = torch.stack([numbers("levels", 50), numbers("odd", 50)]).float()
    right = topk(rows, 9)
    same_bits(torch.func.vmap(lambda x: topk(x, 9))(rows), right)
    compiled = torch.compile(topk, fullgraph=True, backend="aot_eager")
    same_bits(compiled(rows, 9), right)
    with FakeTensorMode() as mode:
        assert topk(mode.from_tensor(rows), 9).shape == (2, 9)
