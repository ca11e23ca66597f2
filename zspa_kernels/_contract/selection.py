# SPDX-License-Identifier: Apache-2.0
"""The rules about arguments of `select`, `relevance_topk`, `diversity` and `gather`."""

from __future__ import annotations

import torch
from torch import Tensor

from .tensors import (
    INT64,
    INTS,
    Shape,
    companion,
    count,
    packed_tokens,
    text_tokens,
    visual_tokens,
    weights_of_tokens,
)
from .values import at_least, axes, option, tensor

POOLINGS = ("mean", "max", "none_mean", "none_max")


def two_counts(op: str, k_core: int, k_diverse: int, n: int, has_prompt: bool) -> None:
    """`k_core` and `k_diverse` tokens of `n` can be taken; a core needs a prompt."""
    at_least(op, "k_core", k_core, 0)
    at_least(op, "k_diverse", k_diverse, 0)
    k = k_core + k_diverse
    if (k > n) is True:
        raise ValueError(f"{op}: k_core + k_diverse must be in [0, N={n}], got {k}")
    if not has_prompt and (k_core > 0) is True:
        raise TypeError(f"{op}: prompt must be a tensor when k_core={k_core} > 0, got None")


def select(
    visual: Tensor,
    prompt: Tensor | None,
    k_core: int,
    k_diverse: int,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
    sorted: bool = True,
) -> Shape:
    """Rules of `zspa::select`."""
    batch, n = visual_tokens("select", visual, visual_mask)
    if prompt is not None:
        text_tokens("select", visual, prompt, prompt_mask)
    elif prompt_mask is not None:
        raise ValueError("select: prompt_mask must be None without a prompt, got a tensor")
    two_counts("select", k_core, k_diverse, n, prompt is not None)
    option("select", "pooling", pooling, POOLINGS)
    return (*batch, k_core + k_diverse)


def relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    pooling: str = "mean",
) -> Shape:
    """Rules of `zspa::relevance_topk`; the scores have the shape of `visual` without D."""
    batch, n = visual_tokens("relevance_topk", visual, visual_mask)
    text_tokens("relevance_topk", visual, prompt, prompt_mask)
    count("relevance_topk", k, n)
    option("relevance_topk", "pooling", pooling, POOLINGS)
    return (*batch, k)


def diversity(
    visual: Tensor,
    k: int,
    seeds: Tensor | None = None,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::diversity`."""
    batch, n = visual_tokens("diversity", visual, visual_mask)
    count("diversity", k, n)
    if seeds is not None:
        companion("diversity", "seeds", seeds, visual, INT64, (*batch, "S"))
    weights_of_tokens("diversity", weights, visual)
    return (*batch, k)


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
) -> Shape:
    """Rules of `zspa::select_varlen`."""
    segments = packed_tokens(
        "select_varlen", visual, cu_seqlens, total_k, max_seqlen, k_core=k_core, k_diverse=k_diverse
    )
    if prompt is not None:
        text_tokens("select_varlen", visual, prompt, None)
    elif prompt_spans is not None:
        raise ValueError("select_varlen: prompt_spans must be None without a prompt, got a tensor")
    if prompt_spans is not None:
        companion("select_varlen", "prompt_spans", prompt_spans, visual, INTS, (segments, 2))
    option("select_varlen", "pooling", pooling, POOLINGS)
    return (total_k,)


def diversity_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    weights: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::diversity_varlen`."""
    packed_tokens("diversity_varlen", visual, cu_seqlens, total_k, max_seqlen, k=k)
    weights_of_tokens("diversity_varlen", weights, visual)
    return (total_k,)


def gather(x: Tensor, indices: Tensor) -> None:
    """Rules of `gather`: x `[N, ...]` with indices `[K]`, or x `[B, N, ...]` with `[B, K]`."""
    tensor("gather", "x", x)
    tensor("gather", "indices", indices)
    if indices.dtype is not torch.int64:
        raise TypeError(f"gather: indices must be int64, got {indices.dtype}")
    if indices.ndim not in (1, 2):
        raise ValueError(f"gather: indices must be [K] or [B, K], got {axes(indices)}")
    if x.ndim < indices.ndim or (indices.ndim == 2 and (x.shape[0] != indices.shape[0]) is True):
        rule = "[N, ...]" if indices.ndim == 1 else f"[B={indices.shape[0]}, N, ...]"
        raise ValueError(f"gather: x must be {rule}, got {axes(x)}")
    if x.device != indices.device:
        raise ValueError(f"gather: indices must be on {x.device} like x, got {indices.device}")
