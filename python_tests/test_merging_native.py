# SPDX-License-Identifier: Apache-2.0
"""assign, match, merge, thin and alignment: native kernels and plain torch decide alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.runners import same_bits, spread, strided_views, threads, turned
from zspa_kernels import _native
from zspa_kernels.primitives import (
    alignment,
    assign,
    match,
    merge,
    merging,
    thin,
    thinning,
    topk,
)
from zspa_kernels.primitives.merging import groups
from zspa_kernels.primitives.scores import chosen, spaced
from zspa_kernels.testing import MODELS, SPECIAL, special, tokens
from zspa_kernels.testing.cases import DTYPES

Require = Callable[..., None]


@pytest.fixture(params=_native.module().isas() if _native.reason() is None else ["none"])
def native_isa(request: pytest.FixtureRequest, require_backend: Require) -> Iterator[str]:
    require_backend("cpp")
    _native.module().use_isa(request.param)
    yield request.param
    _native.module().use_isa("auto")


def plainly(
    patch: pytest.MonkeyPatch, function: Callable[..., Any], *given: Any, **named: Any
) -> Any:
    """What torch returns without the native kernels."""
    with patch.context() as context:
        for module in (merging, thinning):
            context.setattr(module, "native", lambda *x, **y: False)
        return function(*given, **named)


def case(kind: str, n: int, c: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    if kind in MODELS:
        return tokens(kind, n, c, dtype=dtype), None
    x = special(kind, n, c)
    return x.visual.to(dtype), x.mask


def test_as_torch_decides(native_isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rounds, blocks of targets and kinds of ties; slots that are padding or repeat."""
    draw = torch.Generator().manual_seed(0)
    isas = _native.module().isas()
    for turn, kind in enumerate((*MODELS, *SPECIAL)):
        if kind != "exact" and turn % len(isas) != isas.index(native_isa):
            continue  # the inputs are dealt out to the instruction sets
        n, c = ((45, 33), (130, 16), (90, 64), (60, 130), (50, 300))[turn % 5]
        if kind in ("vlm", "exact"):
            n, c = 520, 24
        features, mask = case(kind, n, c, DTYPES[turn % 3])
        for k in (0, n // 10, 2 * n // 3):
            right = plainly(monkeypatch, match, features, k, mask=mask)
            for a, b in zip(match(features, k, mask=mask), right, strict=True):
                same_bits(a, b)
        kept = torch.randint(-1, n, (n // 2,), generator=draw)
        right = plainly(monkeypatch, assign, features, kept, mask=mask)
        same_bits(assign(features, kept, mask=mask), right)


def test_thinned_as_torch(native_isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists that hold all others and lists that do not, made anew; levels of scores; few steps."""
    draw = torch.Generator().manual_seed(0)
    isas = _native.module().isas()
    for turn, kind in enumerate((*MODELS, *SPECIAL)):
        if kind not in ("exact", "vlm") and turn % len(isas) != isas.index(native_isa):
            continue
        n, c = (200, 24) if kind in ("exact", "vlm") else ((45, 33), (90, 16), (70, 64))[turn % 3]
        features, mask = case(kind, n, c, DTYPES[turn % 3])
        scores = torch.randn(n, generator=draw).mul(5).round()
        scores[7] = torch.inf
        for k, step in ((0, 8), (1, 3), (n // 10, 8), (2 * n // 3, 1), (n, 8)):
            left = thin(features, scores, k, step=step, mask=mask)
            right = plainly(monkeypatch, thin, features, scores, k, step=step, mask=mask)
            same_bits(left, right)
            assert len(left) == k


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_as_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 50, 7, 5, generator=draw).to(dtype)
    owner = torch.randint(-2, 22, (3, 50), generator=draw)
    for weights in (None, torch.rand(3, 50, generator=draw)):
        right = plainly(monkeypatch, merge, x, owner, 20, weights=weights)
        same_bits(merge(x, owner, 20, weights=weights), right)
        row = None if weights is None else weights[1]
        same_bits(merge(x[1], owner[1], 20, weights=row), right[1])


def test_laws(require_backend: Require) -> None:
    """A row alone, in a batch, strided and padded; one thread or several: the same bits."""
    require_backend("cpp")
    n, c, k = 700, 40, 150
    features = torch.stack([tokens("vlm", n, c), tokens("clusters", n, c)])
    kept = torch.arange(0, 2 * n, 7).view(2, -1) % n
    indices, owner = match(features, k)
    slots, merged = assign(features, kept), merge(features, owner, k)
    scores = torch.rand(2, n, generator=torch.Generator().manual_seed(0))
    left = thin(features, scores, k)
    for b in range(2):
        same_bits(thin(features[b], scores[b], k), left[b])
        keep = scores > 0.1
        masked = thin(features, scores, k, mask=keep)[b]
        same_bits(thin(features[b], scores[b], k, mask=keep[b]), masked)
        same_bits(match(features[b], k)[1], owner[b])
        same_bits(assign(features[b], kept[b]), slots[b])
        same_bits(assign(features[b], kept[b, :0]), torch.full((n,), -1))
    same_bits(assign(features, kept[:, :0]), torch.full((2, n), -1))
    for view in strided_views(features).values():
        same_bits(match(view, k)[0], indices)
        same_bits(assign(view, kept), slots)
        same_bits(thin(view, spread(scores.double()), k), left)
    for count in (1, 2, 3):
        with threads(count):
            same_bits(match(features, k)[1], owner)
            same_bits(assign(features, kept), slots)
            same_bits(thin(features, scores, k), left)
            same_bits(merge(features, owner, k), merged)
    wide = torch.full((n + 9, c), torch.nan)
    wide[5 : n + 5] = features[0]
    found = match(wide, k)
    same_bits(found[0] - 5, indices[0])
    same_bits(found[1][5 : n + 5], owner[0])


def test_arguments_of_any_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices beyond the tokens and below -1; a few columns at a time; weights of 16 bits."""
    features = torch.stack([tokens("vlm", 30, 8), tokens("iid", 30, 8)])
    mask = (torch.arange(60) % 7 != 3).view(2, 30)
    kept = torch.tensor([[3, 40, -6, 3, 9], [29, 30, 0, -1, 5]])
    core = kept < 9
    slots = torch.randint(-2, 7, (2, 30), generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(0.1, 3.0, 60).view(2, 30).half()

    def every(call: Callable[..., Any], *given: Tensor) -> None:
        monkeypatch.setattr(merging, "_CHUNK", 2**20)
        right = call(*given)
        same_bits(call(*map(spread, given)), right)
        same_bits(call(*map(turned, given)), right)
        same_bits(call(*(spread(x)[0] for x in given)), right[0])
        monkeypatch.setattr(merging, "_CHUNK", 50)
        same_bits(plainly(monkeypatch, call, *given), right)

    every(lambda x, kept, mask: assign(x, kept, mask=mask), features, kept, mask)
    every(lambda x, mask: match(x, 9, mask=mask)[1], features, mask)
    for own in (weights, weights.float()):
        every(lambda x, slots, own: merge(x, slots, 6, weights=own), features, slots, own)
    picks = kept.where((kept >= 0) & (kept < 30), -1)
    every(lambda *given: groups(*given)[0], features, picks, core, mask)
    nothing = torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.int64)
    assert plainly(monkeypatch, merge, *nothing, 4).shape == (2, 4, 3)
    fine = torch.tensor([[1.0], [1.0 + 2.0**-40]], dtype=torch.float64)
    assert merge(fine, torch.zeros(2, dtype=torch.int64), 1).item() == 1.0 + 2.0**-41


def test_traced_and_differentiated_calls_are_for_torch() -> None:
    """Vmap has no values to look at; a gradient needs torch's own operations."""
    features = torch.stack([tokens("iid", 12, 4, seed) for seed in range(2)])
    owner = match(features, 7)[1]
    weights = torch.ones(2, 12)
    merged = torch.func.vmap(lambda x, o, w: merge(x, o, 7, weights=w))(features, owner, weights)
    assert torch.equal(merged, merge(features, owner, 7, weights=weights))
    compiled = torch.compile(merge, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(features, owner, 7), merge(features, owner, 7))
    features.requires_grad_()
    (merge(features, owner, 7) ** 2).sum().backward()
    assert features.grad is not None
    with torch.no_grad():
        assert not merge(features, owner, 7).requires_grad
    # One of the arguments is enough.
    rows, alone = features.detach(), owner[0]
    for name, call in {
        "mask": lambda x: topk(rows[0, :, 0], 5, mask=x),
        "mask of a choice": lambda x: chosen(rows[0, :, 0], 5, x, None, None, None, True)[0],
        "mask of what is spaced": lambda x: spaced(rows[:1, :, 0], 5, 2, x[None], True)[0],
        "visual_mask": lambda x: alignment(rows[0], rows[1], visual_mask=x),
        "prompt_mask": lambda x: alignment(rows[0], rows[1], prompt_mask=x),
        "weights": lambda x: merge(rows[0], alone, 7, weights=x.float()),
        "owner": lambda x: merge(rows[0], torch.where(x, alone, -1), 7),
    }.items():
        given = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) > 0.3
        found = torch.func.vmap(call)(given)
        right = torch.stack([call(x) for x in given])
        assert torch.allclose(found, right), name


def test_alignment_has_one_value(native_isa: str) -> None:
    """In double, so to 1e-12 what a plain sum is; equal rows are equal."""
    words = tokens("iid", 5, 133)
    for turn, dtype in enumerate(DTYPES):
        visual = tokens("vlm", (7, 70, 200)[turn], 133, dtype=dtype).repeat(2, 1)
        got = alignment(visual, words)
        right = -(visual.double()[:, None] - words.double()).square().sum(-1).mean(-1)
        assert torch.allclose(got, right, rtol=1e-12, atol=0.0)
        same_bits(got[: len(got) // 2], got[len(got) // 2 :])
        same_bits(alignment(torch.stack([visual, -visual]), torch.stack([words, words]))[0], got)
