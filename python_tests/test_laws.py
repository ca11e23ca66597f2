# SPDX-License-Identifier: Apache-2.0
"""The laws of the contract, bit for bit, on random inputs: no oracle and no tolerance here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zspa_kernels as zk
from python_tests.runners import (
    diversity,
    each_backend,
    relevance_topk,
    same_bits,
    select,
    select_varlen,
    strided_views,
    threads,
)
from zspa_kernels.testing import MODELS, SPECIAL, prompt, special, tokens
from zspa_kernels.testing.cases import (
    DTYPES,
)

Require = Callable[..., None]

# Largest N and D and number of examples: what an interpreter, a row-by-row reference and a compiled
# kernel manage in the same few seconds.
SIZES = {"reference": (60, 40, 25), "cpp": (400, 140, 50), "triton": (24, 24, 3)}
KINDS = [*MODELS, *SPECIAL]


@dataclass(frozen=True)
class Input:
    """One segment, drawn from few numbers so that a failing example is readable."""

    kind: str
    n: int
    d: int
    words: int
    dtype: torch.dtype
    seed: int

    def visual(self) -> Tensor:
        """`[N, D]`."""
        if self.kind in MODELS:
            return tokens(self.kind, self.n, self.d, self.seed, self.dtype)
        return special(self.kind, self.n, self.d, self.seed).visual.to(self.dtype)

    def mask(self) -> Tensor:
        """`[N]`."""
        mask = None if self.kind in MODELS else special(self.kind, self.n, self.d, self.seed).mask
        return torch.ones(self.n, dtype=torch.bool) if mask is None else mask

    def prompt(self) -> Tensor:
        """`[M, D]`."""
        model = self.kind if self.kind in MODELS else "vlm"
        return prompt(model, self.words, self.d, self.seed, self.dtype)

    def weights(self) -> Tensor:
        """`[N]`."""
        draw = torch.Generator().manual_seed(self.seed)
        return torch.rand(self.n, generator=draw)


def inputs(backend: str, smallest: int = 1) -> st.SearchStrategy[Input]:
    n, d, _ = SIZES[backend]
    return st.builds(
        Input,
        kind=st.sampled_from(KINDS),
        n=st.integers(smallest, n),
        d=st.integers(1, d),
        words=st.integers(0, 5),
        dtype=st.sampled_from(DTYPES),
        seed=st.integers(0, 999),
    )


def _try(backend: str, law: Callable[..., None], *strategies: st.SearchStrategy) -> None:
    settings(max_examples=SIZES[backend][2])(given(*strategies)(law))()


@each_backend
def test_law_1_select_is_relevance_then_diversity(backend: str, require_backend: Require) -> None:
    require_backend(backend)

    def law(x: Input, k_core: int, k_diverse: int, pooling: str) -> None:
        k_core = k_core % (x.n + 1)
        k_diverse = k_diverse % (x.n - k_core + 1)
        visual, mask, words = x.visual(), x.mask(), x.prompt()
        got = select(backend)(visual, words, k_core, k_diverse, mask, None, pooling)
        core, _ = relevance_topk(backend)(visual, words, k_core, mask, None, pooling)
        if x.words == 0:  # no core: diversity takes its place too
            k_diverse += k_core
        rest = diversity(backend)(visual, k_diverse, core, None, mask)
        both = torch.cat([core, rest])
        both = both[both >= 0]
        filled = torch.full_like(got, -1)
        filled[: len(both)] = both
        same_bits(got, filled)
        ascending = zk.select(
            visual,
            words,
            k_core=k_core if x.words else 0,
            k_diverse=k_diverse,
            visual_mask=mask,
            pooling=pooling,
            backend=backend,
        )
        same_bits(ascending[: len(both)], both.sort().values)
        assert (ascending[len(both) :] == -1).all()

    counts = st.integers(0, 2**16)
    pooling = st.sampled_from(["mean", "max", "none_mean", "none_max"])
    _try(backend, law, inputs(backend), counts, counts, pooling)


@each_backend
def test_law_2_a_row_is_a_row(backend: str, require_backend: Require) -> None:
    """Alone, in a batch, padded at either end, as a segment: the same bits."""
    require_backend(backend)
    require_backend(backend, "select_varlen")

    def law(x: Input, other: Input, before: int, after: int) -> None:
        visual, mask, words = x.visual(), x.mask(), x.prompt()
        k_core, k_diverse = (x.n + 3) // 4, (x.n + 2) // 3
        k_diverse = min(k_diverse, x.n - k_core)
        alone = select(backend)(visual, words, k_core, k_diverse, mask, None, "mean")
        top, scores = relevance_topk(backend)(visual, words, k_core, mask, None, "mean")
        heavy = diversity(backend)(visual, k_diverse, None, x.weights(), mask)

        # In a batch with unrelated rows, and padded with masked tokens.
        total = before + x.n + after
        noise = tokens("vlm", total, x.d, other.seed, x.dtype)
        noise[::3] = torch.nan
        padded = noise.clone()
        padded[before : before + x.n] = visual
        padded_mask = torch.zeros(total, dtype=torch.bool)
        padded_mask[before : before + x.n] = mask
        batch = torch.stack([noise, padded, noise])
        masks = torch.stack([torch.ones(total, dtype=torch.bool), padded_mask, padded_mask])
        texts = torch.stack([words + 1, words, words])
        got = zk.select(
            batch,
            texts,
            k_core=k_core,
            k_diverse=k_diverse,
            visual_mask=masks,
            sorted=False,
            backend=backend,
        )
        moved = torch.where(alone >= 0, alone + before, alone)
        same_bits(got[1], moved)
        tops, all_scores = zk.relevance_topk(
            batch, texts, k_core, visual_mask=masks, backend=backend
        )
        same_bits(all_scores[1, before : before + x.n], scores)
        same_bits(tops[1], torch.where(top >= 0, top + before, top))
        weights = torch.ones(3, total)
        weights[1, before : before + x.n] = x.weights()
        picks = zk.diversity(batch, k_diverse, weights=weights, visual_mask=masks, backend=backend)
        same_bits(picks[1], torch.where(heavy >= 0, heavy + before, heavy))

        # As a segment; masks become rows that are no tokens.
        shown = torch.where(mask[:, None], visual, torch.nan)
        packed = torch.cat([noise[:before], shown, noise[before:]])
        cuts = torch.tensor([0, before, before + x.n, before + x.n + after + x.n])
        m = x.words
        spans = torch.tensor([[0, m], [m, 2 * m], [0, 2 * m]])
        segments = select_varlen(
            backend,
            packed,
            cuts.clamp_max(packed.shape[0]),
            torch.cat([words + 1, words]),
            spans,
            torch.tensor([min(2, before), k_core, 1]),
            torch.tensor([0, k_diverse, 1]),
            total_k=min(2, before) + k_core + k_diverse + 2,
            max_seqlen=packed.shape[0],
        )
        first = min(2, before)
        same_bits(segments[first : first + k_core + k_diverse], moved)

    few = st.integers(0, 19)
    _try(backend, law, inputs(backend), inputs(backend), few, few)


@each_backend
def test_law_3_strides_do_not_matter(backend: str, require_backend: Require) -> None:
    require_backend(backend)

    def law(x: Input, view: int) -> None:
        visual, mask, words = x.visual(), x.mask(), x.prompt()
        k_core, k_diverse = x.n // 4, x.n // 3
        plain = select(backend)(visual, words, k_core, k_diverse, mask, None, "mean")
        scores = relevance_topk(backend)(visual, words, k_core, mask, None, "mean")[1]
        views = list(strided_views(visual).values())
        other = list(strided_views(words).values())[view % len(views)]
        seen = views[view % len(views)]
        same_bits(select(backend)(seen, other, k_core, k_diverse, mask, None, "mean"), plain)
        same_bits(relevance_topk(backend)(seen, other, k_core, mask, None, "mean")[1], scores)
        weights = x.weights()
        seeds = torch.tensor([x.seed % x.n, -1, x.n // 2])
        strided = diversity(backend)(
            seen,
            k_diverse,
            seeds.repeat_interleave(2)[::2],
            weights.repeat_interleave(3)[::3],
            mask.repeat_interleave(2)[::2],
        )
        same_bits(strided, diversity(backend)(visual, k_diverse, seeds, weights, mask))
        wide_mask = torch.zeros(x.n, 3, dtype=torch.bool)
        wide_mask[:, 1] = mask
        expanded = zk.select(
            visual.expand(2, -1, -1),
            words.expand(2, -1, -1),
            k_core=k_core,
            k_diverse=k_diverse,
            visual_mask=wide_mask[:, 1].expand(2, -1),
            sorted=False,
            backend=backend,
        )
        same_bits(expanded, plain.expand(2, -1))

    _try(backend, law, inputs(backend), st.integers(0, 4))


@each_backend
def test_law_4_more_picks_extend_fewer(backend: str, require_backend: Require) -> None:
    require_backend(backend)

    def law(x: Input, k: int, weighted: bool, seeded: bool) -> None:
        visual, mask = x.visual(), x.mask()
        k = k % x.n
        weights = x.weights() if weighted else None
        seeds = torch.tensor([x.seed % x.n, -1]) if seeded else None
        pick = diversity(backend)
        fewer = pick(visual, k, seeds, weights, mask)
        same_bits(pick(visual, k + 1, seeds, weights, mask)[:k], fewer)
        same_bits(pick(visual, x.n, seeds, weights, mask)[:k], fewer)
        words = x.prompt()
        top = relevance_topk(backend)
        fewer, scores = top(visual, words, k, mask, None, "mean")
        more, same = top(visual, words, k + 1, mask, None, "mean")
        same_bits(more[:k], fewer)
        same_bits(same, scores)

    _try(backend, law, inputs(backend), st.integers(0, 2**16), st.booleans(), st.booleans())


@each_backend
def test_laws_5_and_6_threads_and_repetition(backend: str, require_backend: Require) -> None:
    require_backend(backend)

    def law(x: Input, several: int) -> None:
        visual, mask, words = x.visual(), x.mask(), x.prompt()
        k_core, k_diverse = x.n // 5, x.n // 2
        results = []
        given_bits = [y.clone().view(torch.uint8) for y in (visual, mask, words)]
        for count in (1, several, several):
            with threads(count):
                core = select(backend)(visual, words, k_core, k_diverse, mask, None, "mean")
                free = select(backend)(visual, None, 0, k_diverse, mask, None, "mean")
                scores = relevance_topk(backend)(visual, words, k_core, mask, None, "max")[1]
                results.append((core, free, scores))
        for y, bits in zip((visual, mask, words), given_bits, strict=True):
            assert torch.equal(y.view(torch.uint8), bits), "an argument was changed"
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                same_bits(a, b)

    _try(backend, law, inputs(backend), st.integers(2, 5))


@each_backend
def test_scaling_and_relabelling(backend: str, require_backend: Require) -> None:
    """Without ties, reversing the tokens reverses the picks; powers of two change nothing."""
    require_backend(backend, "diversity")

    def law(seed: int, exponent: int) -> None:
        visual = tokens("iid", 30, 33, seed)
        picks = zk.diversity(visual, 12, backend=backend)
        mirrored = zk.diversity(visual.flip(0), 12, backend=backend)
        same_bits(29 - mirrored, picks)
        same_bits(zk.diversity(visual * 2.0**exponent, 12, backend=backend), picks)

    _try(backend, law, st.integers(0, 999), st.integers(-30, 30))
