# SPDX-License-Identifier: Apache-2.0
"""Pivots and what resembles them least: native kernels of every instruction set, as in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from python_tests.runners import same_bits, spread, threads, turned
from zspa_kernels import _native
from zspa_kernels.primitives.pivots import by_pivots
from zspa_kernels.testing import MODELS, SPECIAL, prompt, special, tokens
from zspa_kernels.testing.cases import DTYPES

Require = Callable[..., None]
#: Kept, pivots among tokens and among words, keys: none of a kind, more than there are, more than
#: a product has columns.
COUNTS = (
    (1, 4, 4, False),
    (9, 3, 2, True),
    (20, 4, 0, False),
    (30, 26, 5, False),
    (45, 1, 9, True),
)


@pytest.fixture(params=_native.module().isas() if _native.reason() is None else ["none"])
def native_isa(request: pytest.FixtureRequest, require_backend: Require) -> Iterator[str]:
    require_backend("cpp")
    _native.module().use_isa(request.param)
    yield request.param
    _native.module().use_isa("auto")


def same(found: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> None:
    """Tokens and pivots; norms, which are NaN where a token is invalid."""
    for a, b in zip(found, right, strict=True):
        assert a.dtype == b.dtype
        same_bits(a.nan_to_num(7.5), b.nan_to_num(7.5))


def plainly(patch: pytest.MonkeyPatch, *given: Any) -> tuple[Tensor, ...]:
    """What torch returns without the native kernels."""
    with patch.context() as context:
        for module in ("pivots", "scores"):
            context.setattr(f"zspa_kernels.primitives.{module}.native", lambda *x, **y: False)
        return by_pivots(*given)


def test_as_torch_decides(native_isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of tokens; words of every dtype, some of which are no pivots; keys that tie."""
    isas = _native.module().isas()
    for turn, kind in enumerate((*MODELS, *SPECIAL)):
        if kind not in ("exact", "vlm") and turn % len(isas) != isas.index(native_isa):
            continue  # the inputs are dealt out to the instruction sets
        n, d = ((45, 33), (130, 16), (90, 64), (70, 517))[turn % 4]
        mask = None
        if kind in MODELS:
            visual = tokens(kind, n, d)
        else:
            rows = special(kind, n, d)
            visual, mask = rows.visual, rows.mask
        generator = torch.Generator().manual_seed(turn)
        keys = torch.randn(n, 3, generator=generator).mul(2).round()
        keys[n // 3] = torch.inf
        for word, dtype in enumerate(DTYPES):
            text = prompt("vlm", 7, d).to(DTYPES[(turn + word) % 3])
            text[1], text[4] = torch.nan, 0.0
            real = torch.arange(7) != 5
            for k, first, words, by_keys in COUNTS:
                for own in (None, text):
                    masks = mask, None if own is None else real
                    given = (k, first, words, bool(word), keys if by_keys else None, own, *masks)
                    right = plainly(monkeypatch, visual.to(dtype), *given)
                    same(by_pivots(visual.to(dtype), *given), right)


def test_what_float32_cannot_decide(native_isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that differ in their last bits, or not at all, around the last one that is taken."""
    for dtype, d in zip(DTYPES, (3, 64, 300), strict=True):
        base = tokens("iid", 5, d)
        rows = base.repeat_interleave(40, 0)
        step = torch.randint(-2, 3, rows.shape, generator=torch.Generator().manual_seed(d))
        rows = (rows * (1.0 + step * 2.0**-22)).to(dtype)
        for word in (dtype, torch.float32):
            for k in (3, 57, 120):
                given = (rows, k, 2, 2, False, None, base[:2].to(word), None, None)
                same(by_pivots(*given), plainly(monkeypatch, *given))


def test_equal_cosines_of_different_rows(native_isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiples of a few rows: double sums of them differ, and the lowest index is taken."""
    base = torch.randint(-9, 10, (3, 41), generator=torch.Generator().manual_seed(0)).float()
    scale = torch.tensor([5.0, 3.0, 7.0, 1.0, 9.0, 11.0, 13.0])
    rows = (base[:, None] * scale[:, None]).flatten(0, 1)
    for k in range(2, 18):
        given = (rows, k, 1, 1, False, None, base[1:2].bfloat16(), None, None)
        same(by_pivots(*given), plainly(monkeypatch, *given))


def test_laws(native_isa: str) -> None:
    """Images of a batch, strides and threads; equal rows are taken by index."""
    visual = torch.stack([tokens(name, 330, 1030) for name in ("vlm", "exact")]).bfloat16()
    visual[:, 77] = visual[:, 3]
    words = torch.stack([prompt("vlm", 20, 1030), torch.zeros(20, 1030)]).half()
    keys, real = visual[..., :40].float(), torch.arange(40).view(2, 20) % 3 != 1
    mask = (torch.arange(660) % 7 != 2).view(2, 330)
    counts = (60, 4, 4, False)
    found = by_pivots(visual, *counts, keys, words, mask, real)
    for b in range(2):
        alone = by_pivots(visual[b], *counts, keys[b], words[b], mask[b], real[b])
        same(alone, tuple(x[b] for x in found))
        left = mask[b].nonzero()[:, 0]
        short = by_pivots(visual[b, left], *counts, keys[b, left], words[b, real[b]], None, None)
        same((left[short[0]], *short[1:]), (found[0][b], found[1][b], found[2][b, left]))
    for view in (spread, turned):
        tensors = [view(x) for x in (keys, words, mask, real)]
        same(by_pivots(view(visual), *counts, *tensors), found)
    for count in (1, 2, 3):
        with threads(count):
            same(by_pivots(visual, *counts, keys, words, mask, real), found)
    ordered = by_pivots(visual, 60, 4, 4, True, keys, words, mask, real)
    same_bits(ordered[0], found[0].sort(-1).values)
    assert torch.equal(ordered[1].sum(-1), torch.tensor([4, 4]))


def test_norms(native_isa: str) -> None:
    """Exact sums, rounded once; -1 without a direction, NaN of what does not count."""
    for turn, d in enumerate((1, 15, 16, 17, 259, 1024)):
        visual = tokens("vlm", 9, d, dtype=DTYPES[turn % 3])
        visual[2], visual[5] = 0.0, torch.nan
        right = visual.double().abs().sum(-1).float()
        right[2] = -1.0
        same_bits(
            by_pivots(visual, 3, 2, 0, True, None, None, None, None)[2].nan_to_num(7.5),
            right.nan_to_num(7.5),
        )


def test_nothing_to_take(require_backend: Require) -> None:
    """No tokens, none that counts, as many pivots as places, no words."""
    require_backend("cpp")
    none = torch.zeros(2, 0, 5)
    indices, core, norms = by_pivots(none, 0, 4, 4, True, None, none, None, None)
    assert indices.shape == core.shape == norms.shape == (2, 0)
    visual = tokens("iid", 6, 5)
    nobody = torch.zeros(6, dtype=torch.bool)
    indices, core, norms = by_pivots(visual, 4, 2, 2, False, None, visual, nobody, None)
    assert indices.tolist() == [-1] * 4
    assert not core.any()
    assert norms.isnan().all()
    indices, core, _ = by_pivots(visual, 3, 9, 2, False, None, visual[:0], None, None)
    assert torch.equal(indices, visual.abs().sum(-1).argsort(descending=True)[:3])
    assert core.all()


def test_traced_calls_are_for_torch() -> None:
    """Vmap has no values to look at, whichever argument it maps."""
    visual, words = tokens("iid", 12, 6), prompt("iid", 4, 6)
    masks = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) > 0.3

    def of(mask: Tensor) -> Tensor:
        return by_pivots(visual, 5, 2, 2, True, None, words, mask, None)[0]

    assert torch.equal(torch.func.vmap(of)(masks), torch.stack([of(mask) for mask in masks]))
