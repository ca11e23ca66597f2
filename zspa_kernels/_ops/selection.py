# SPDX-License-Identifier: Apache-2.0
"""Implementations of `select`, `relevance_topk` and `diversity`, and of their ragged forms."""

from __future__ import annotations

from torch import Tensor

from .. import _segments
from .._contract import selection as _rules
from .implementation import backend_of, contiguous, dense, undisturbed


@undisturbed
def select(
    visual: Tensor,
    prompt: Tensor | None,
    k_core: int,
    k_diverse: int,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
    sorted: bool = True,
    backend: str = "auto",
) -> Tensor:
    _rules.select(visual, prompt, k_core, k_diverse, visual_mask, prompt_mask, pooling, sorted)
    run = backend_of(backend, "select", visual)
    indices: Tensor = run(
        dense(visual),
        dense(prompt),
        k_core,
        k_diverse,
        contiguous(visual_mask),
        contiguous(prompt_mask),
        pooling,
        sorted,
    )
    return indices


@undisturbed
def relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    _rules.relevance_topk(visual, prompt, k, visual_mask, prompt_mask, pooling)
    run = backend_of(backend, "relevance_topk", visual)
    result: tuple[Tensor, Tensor] = run(
        dense(visual), dense(prompt), k, contiguous(visual_mask), contiguous(prompt_mask), pooling
    )
    return result


@undisturbed
def diversity(
    visual: Tensor,
    k: int,
    seeds: Tensor | None = None,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _rules.diversity(visual, k, seeds, weights, visual_mask)
    run = backend_of(backend, "diversity", visual)
    given = contiguous(seeds), contiguous(weights), contiguous(visual_mask)
    indices: Tensor = run(dense(visual), k, *given)
    return indices


@undisturbed
def select_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    prompt: Tensor | None,
    prompt_spans: Tensor | None,
    k_core: Tensor,
    k_diverse: Tensor,
    total_k: int,
    max_seqlen: int,
    pooling: str = "mean",
    sorted: bool = True,
    backend: str = "auto",
) -> Tensor:
    _rules.select_varlen(
        visual, cu_seqlens, prompt, prompt_spans, k_core, k_diverse, total_k, max_seqlen, pooling
    )
    run = backend_of(backend, "select_varlen", visual)
    table = _segments.ragged_table(
        cu_seqlens, k_core, k_diverse, total_k, max_seqlen, visual.shape[0]
    )
    spans = None if prompt is None else _segments.prompt_spans(prompt_spans, table.shape[0], prompt)
    indices: Tensor = run(dense(visual), table, dense(prompt), spans, total_k, pooling, sorted)
    return indices


@undisturbed
def diversity_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    weights: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    _rules.diversity_varlen(visual, cu_seqlens, k, total_k, max_seqlen, weights)
    run = backend_of(backend, "diversity_varlen", visual)
    table = _segments.ragged_table(cu_seqlens, None, k, total_k, max_seqlen, visual.shape[0])
    indices: Tensor = run(dense(visual), table, total_k, contiguous(weights))
    return indices
