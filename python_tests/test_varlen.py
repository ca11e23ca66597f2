# SPDX-License-Identifier: Apache-2.0
"""select_varlen and diversity_varlen: every segment against the float64 oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests.runners import BACKENDS, diversity_varlen, each_backend, select_varlen
from zspa_kernels.testing import (
    MODELS,
    bound,
    check_diversity,
    check_select,
    check_sorted,
    prompt,
    select64,
    special,
    tokens,
)
from zspa_kernels.testing.cases import DTYPES

Require = Callable[..., None]

LENGTHS = (5, 0, 17, 1, 33, 9, 0, 6)
K_CORE = (2, 0, 4, 1, 0, 10, 3, 2)
K_DIVERSE = (3, 4, 4, 0, 5, 0, 1, 5)  # more than there are in some segments
SPANS = ((0, 3), (0, 4), (2, 6), (5, 6), (0, 9), (4, 4), (6, 9), (3, 9))


def _starts(lengths: tuple[int, ...]) -> list[int]:
    return [sum(lengths[:s]) for s in range(len(lengths) + 1)]


@dataclass
class Ragged:
    """Packed tokens of segments of every kind."""

    visual: Tensor
    words: Tensor
    cu_seqlens: Tensor
    spans: Tensor
    k_core: Tensor
    k_diverse: Tensor


def _ragged(model: str, d: int, dtype: torch.dtype, integers: torch.dtype) -> Ragged:
    parts = [
        special("nonfinite_rows", n, d, seed).visual
        if seed == 7 and model != "exact"
        else tokens(model, n, d, seed).float()
        for seed, n in enumerate(LENGTHS)
    ]
    pairs = [prompt(model, 2, d, seed) for seed in range(5)]
    return Ragged(
        torch.cat(parts).to(dtype),
        torch.cat(pairs).to(dtype),
        torch.tensor(_starts(LENGTHS), dtype=integers),
        torch.tensor(SPANS, dtype=integers),
        torch.tensor(K_CORE, dtype=integers),
        torch.tensor(K_DIVERSE, dtype=integers),
    )


def _check(
    ragged: Ragged, got: Tensor, *, spans: bool, words: bool, error: float, pooling: str = "mean"
) -> None:
    """Every segment by the oracle; slots stand one segment after another."""
    slot = 0
    start = 0
    for s, n in enumerate(LENGTHS):
        k_core, k_diverse = K_CORE[s], K_DIVERSE[s]
        k = k_core + k_diverse
        part = got[slot : slot + k]
        text = None
        if words:
            text = ragged.words[slice(*ragged.spans[s].tolist())] if spans else ragged.words
        local = torch.where(part >= 0, part - start, part)
        if text is None:  # everything is selected by diversity
            k_core, k_diverse = 0, k
        try:
            check_select(
                ragged.visual[start : start + n],
                text,
                k_core,
                k_diverse,
                local,
                bound=error,
                pooling=pooling,
            )
        except AssertionError as message:
            raise AssertionError(f"segment {s}: {message}") from message
        slot += k
        start += n
    assert got[slot:].tolist() == [-1] * (got.shape[0] - slot)


def _select(
    backend: str, ragged: Ragged, words: bool = True, spans: bool = True, **options: object
) -> Tensor:
    return select_varlen(
        backend,
        ragged.visual,
        ragged.cu_seqlens,
        ragged.words if words else None,
        ragged.spans if spans else None,
        ragged.k_core,
        ragged.k_diverse,
        **options,
    )


TOTAL = sum(K_CORE) + sum(K_DIVERSE)


@each_backend
@pytest.mark.parametrize("model", MODELS)
def test_select_varlen_models(backend: str, model: str, require_backend: Require) -> None:
    require_backend(backend, "select_varlen")
    for turn, dtype in enumerate(DTYPES):
        if backend == "triton" and turn != MODELS.index(model) % 3:
            continue  # the interpreter is slow: every dtype, but not with every model
        ragged = _ragged(model, (33, 16, 100)[turn], dtype, (torch.int32, torch.int64)[turn % 2])
        # Odd spans of exact prompts break their pairs, so their mean is rounded.
        error = bound(100, backend)
        got = _select(backend, ragged, total_k=TOTAL + 3 * turn, max_seqlen=33 + turn)
        _check(ragged, got, spans=True, words=True, error=error)


@each_backend
@pytest.mark.parametrize("pooling", ["mean", "max", "none_mean", "none_max"])
def test_select_varlen_prompts(backend: str, pooling: str, require_backend: Require) -> None:
    """Spans that overlap, one prompt for all, no prompt; every pooling."""
    require_backend(backend, "select_varlen")
    ragged = _ragged("vlm", 33, torch.bfloat16, torch.int64)
    ragged.words[4] = math.nan
    kinds = ((True, True), (True, False), (False, False))
    for words, spans in kinds if pooling == "mean" else kinds[:1]:
        got = _select(backend, ragged, words, spans, total_k=TOTAL, max_seqlen=33, pooling=pooling)
        _check(ragged, got, spans=spans, words=words, error=bound(33, backend), pooling=pooling)
        if not spans:
            continue
        ascending = _select(
            backend,
            ragged,
            total_k=TOTAL,
            max_seqlen=33,
            pooling=pooling,
            sort=True,
        )
        slot = 0
        for k in (a + b for a, b in zip(K_CORE, K_DIVERSE, strict=True)):
            check_sorted(ascending[slot : slot + k], got[slot : slot + k])
            slot += k


@each_backend
def test_diversity_varlen(backend: str, require_backend: Require) -> None:
    require_backend(backend, "diversity_varlen")
    draw = torch.Generator().manual_seed(1)
    for dtype, integers in ((DTYPES[0], torch.int32), (DTYPES[2], torch.int64)):
        ragged = _ragged("clusters", 33, dtype, integers)
        weights = torch.rand(sum(LENGTHS), generator=draw)
        weights[::5] = math.nan
        for given in (None, weights):
            total = sum(K_DIVERSE) + 2
            got = diversity_varlen(
                backend,
                ragged.visual,
                ragged.cu_seqlens,
                ragged.k_diverse,
                total_k=total,
                max_seqlen=33,
                weights=given,
            )
            slot = 0
            for s, n in enumerate(LENGTHS):
                start, k = _starts(LENGTHS)[s], K_DIVERSE[s]
                part = got[slot : slot + k]
                check_diversity(
                    ragged.visual[start : start + n],
                    torch.where(part >= 0, part - start, part),
                    k,
                    weights=None if given is None else given[start : start + n],
                    bound=bound(33, backend),
                )
                slot += k
            assert got[slot:].tolist() == [-1, -1]


@each_backend
def test_values_in_tensors_are_clamped(backend: str, require_backend: Require) -> None:
    """Offsets, spans and counts out of range are never errors."""
    require_backend(backend, "select_varlen")
    visual, words = tokens("iid", 20, 9), prompt("iid", 4, 9)

    def run(
        cu_seqlens: list[int],
        k_core: list[int],
        k_diverse: list[int],
        total_k: int,
        spans: list[tuple[int, int]] | None = None,
        max_seqlen: int = 20,
    ) -> list[int]:
        return select_varlen(
            backend,
            visual,
            torch.tensor(cu_seqlens),
            words,
            None if spans is None else torch.tensor(spans),
            torch.tensor(k_core),
            torch.tensor(k_diverse),
            total_k=total_k,
            max_seqlen=max_seqlen,
        ).tolist()

    def alone(start: int, end: int, k_core: int, k_diverse: int, text: Tensor) -> list[int]:
        picks = select64(visual[start:end], text, k_core, k_diverse).tolist()
        return [p + start if p >= 0 else -1 for p in picks]

    # Tokens before the first and after the last segment belong to nobody.
    assert run([3, 8, 15], [1, 2], [2, 2], 7) == alone(3, 8, 1, 2, words) + alone(
        8, 15, 2, 2, words
    )
    # Offsets beyond the tokens, and falling ones.
    assert run([12, 99], [1], [3], 4) == alone(12, 20, 1, 3, words)
    assert run([-5, 6], [1], [3], 4) == alone(0, 6, 1, 3, words)
    assert run([9, 4, 10], [1, 1], [1, 1], 4) == [-1, -1, *alone(4, 10, 1, 1, words)]
    # A segment longer than max_seqlen is cut.
    assert run([0, 20], [2], [3], 5, max_seqlen=11) == alone(0, 11, 2, 3, words)
    # Counts beyond total_k: diversity is cut first, then the core; later segments get nothing.
    assert run([0, 10, 20], [2, 1], [3, 1], 4) == alone(0, 10, 2, 2, words)
    assert run([0, 10, 20], [3, 1], [3, 1], 2) == alone(0, 10, 2, 0, words)
    assert run([0, 10], [-2], [3], 4) == [*alone(0, 10, 0, 3, words), -1]
    assert run([0, 10], [2**40], [2**40], 3) == alone(0, 10, 3, 0, words)
    # Spans are clamped; one that is empty leaves its segment to diversity.
    assert run([0, 9], [2], [2], 4, [(-3, 2)]) == alone(0, 9, 2, 2, words[:2])
    assert run([0, 9], [2], [2], 4, [(1, 77)]) == alone(0, 9, 2, 2, words[1:])
    assert run([0, 9], [2], [2], 4, [(3, 1)]) == alone(0, 9, 0, 4, words)
    assert run([0, 9], [2], [2], 4, [(55, 77)]) == alone(0, 9, 0, 4, words)


@each_backend
def test_nothing_at_all(backend: str, require_backend: Require) -> None:
    require_backend(backend, "select_varlen")
    visual, none = tokens("iid", 6, 5), torch.empty(0, dtype=torch.int64)
    for part in (visual, visual[:0]):
        for sort in (False, True):  # slots of no segment
            empty = torch.tensor([0]), None, None, none, none
            got = select_varlen(backend, part, *empty, total_k=3, max_seqlen=0, sort=sort)
            assert got.tolist() == [-1] * 3
        got = select_varlen(
            backend, part, torch.tensor([0]), None, None, none, none, total_k=0, max_seqlen=9
        )
        assert got.tolist() == []
        got = diversity_varlen(backend, part, torch.tensor([0]), none, total_k=2, max_seqlen=0)
        assert got.tolist() == [-1] * 2
    count = torch.tensor([2])
    got = select_varlen(
        backend,
        visual[:0],
        torch.tensor([0, 0]),
        visual[:2],
        None,
        count,
        count,
        total_k=4,
        max_seqlen=9,
    )
    assert got.tolist() == [-1] * 4


def test_exact_picks_are_the_same_everywhere(require_backend: Require) -> None:
    ragged = _ragged("exact", 64, torch.bfloat16, torch.int64)
    ragged.spans = torch.tensor([(0, 2), (2, 4), (4, 6), (0, 8), (2, 6), (8, 10), (0, 4), (6, 8)])
    results = {}
    for backend in BACKENDS:
        require_backend(backend, "select_varlen")
        results[backend] = _select(backend, ragged, total_k=TOTAL, max_seqlen=33)
        _check(ragged, results[backend], spans=True, words=True, error=0.0)
    assert torch.equal(results["reference"], results["cpp"])
    assert torch.equal(results["reference"], results["triton"])


def test_many_segments_of_one_size(require_backend: Require) -> None:
    """Two hundred small images and one large: threads share the segments."""
    require_backend("cpp", "select_varlen")
    lengths = [11] * 200 + [700]
    visual = torch.cat([tokens("vlm", n, 33, seed) for seed, n in enumerate(lengths)])
    words = prompt("vlm", 4, 33)
    k_core = torch.tensor([2] * 200 + [60])
    k_diverse = torch.tensor([3] * 200 + [140])
    cu_seqlens = torch.tensor(_starts(tuple(lengths)))
    got = select_varlen(
        "cpp",
        visual,
        cu_seqlens,
        words,
        None,
        k_core,
        k_diverse,
        total_k=1200,
        max_seqlen=700,
    )
    for s in (0, 1, 77, 199):
        part = got[5 * s : 5 * s + 5] - 11 * s
        check_select(visual[11 * s : 11 * s + 11], words, 2, 3, part, bound=bound(33, "cpp"))
    check_select(visual[2200:], words, 60, 140, got[1000:] - 2200, bound=bound(33, "cpp"))


@each_backend
def test_public_function_takes_lists_and_packed_tokens(
    backend: str, require_backend: Require
) -> None:
    require_backend(backend, "select_varlen")
    lengths = [12, 1, 30]
    images = [tokens("smooth", n, 16, seed) for seed, n in enumerate(lengths)]
    texts = [prompt("smooth", m, 16, seed) for seed, m in enumerate((2, 3, 1))]
    as_list = zk.select_varlen(
        images, texts, keep=0.4, core_ratio=0.5, sorted=False, backend=backend
    )
    assert isinstance(as_list, list)
    packed = zk.select_varlen(
        torch.cat(images),
        torch.cat(texts),
        lengths=lengths,
        prompt_lengths=[2, 3, 1],
        keep=0.4,
        core_ratio=0.5,
        sorted=False,
        backend=backend,
    )
    assert isinstance(packed, Tensor)
    for s, (visual, text, got) in enumerate(zip(images, texts, as_list, strict=True)):
        k = zk.num_keep(lengths[s], 0.4)
        k_core = zk.split_core(k, 0.5)
        check_select(visual, text, k_core, k - k_core, got, bound=bound(16, backend))
        assert torch.equal(
            got,
            zk.select(
                visual, text, k_core=k_core, k_diverse=k - k_core, sorted=False, backend=backend
            ),
        )
    offsets = torch.tensor(_starts(tuple(lengths)))
    joined = torch.cat([got + offsets[s] for s, got in enumerate(as_list)])
    assert torch.equal(packed, joined)
    weights = [torch.rand(n, generator=torch.Generator().manual_seed(n)) for n in lengths]
    picked = zk.diversity_varlen(images, [5, 1, 9], weights=weights, backend=backend)
    for visual, weight, k, got in zip(images, weights, (5, 1, 9), picked, strict=True):
        check_diversity(visual, got, k, weights=weight, bound=bound(16, backend))
