# SPDX-License-Identifier: Apache-2.0
"""Relevance: cosine of every visual token with the prompt, and the k most relevant tokens.

Algorithm   : 1 norms of the prompt tokens; 2 pooling (mean, max, or mean of unit tokens) in
              float32; 3 one pass over the visual tokens: sum of squares and dot with the pooled
              prompt, from them inverse norm, validity and cosine (none_max: the largest of the
              cosines with every prompt token); 4 top-k by counting: a token's rank is the number of
              tokens whose (score, index) precedes its own, so there is no sort and no threshold.
Inputs      : visual [B, N, D] or [T, D], prompt [B, M, D] or [P, D], float32/float16/bfloat16, any
              row strides; masks bool [B, N], [B, M]; spans int64 [S, 2]; table int64 [S, 5]
Outputs     : scores float32 [B, N] (-inf: masked out), inverse norms float32 [B, N] (0: zero row,
              -1: masked out), indices int64 [B, k] (-1 past the valid tokens)
Work        : 4 N D flops, V read once (none_max: 1 + M/32 times, 2 N M D more flops), the prompt
              twice; N^2 comparisons for the top-k; 4 launches (none_max: 5) and a fill, 0 syncs,
              scratch 4 (N + M + D) bytes
Mapping     : program <-> every p-th block of rows of a segment; sums of a block in registers
Numerics    : float32; sums in a fixed order that depends on D and the dtype only (see _common);
              pooling adds the prompt tokens in their order; ties to the lowest index, -0.0 == +0.0
Deterministic: yes: no atomics, every element is written by one program
Limits      : N, M < 2^31 - 2^20 (block numbers are int32); N * D may exceed 2^31 (int64
              addresses)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _scratch
from ._common import (
    INF,
    Segments,
    block_norms,
    inverse_norm,
    launch,
    pair_dots,
    program,
    row_strides,
    row_sums,
    segment,
    unit_scale,
)
from .relevance_topk_config import Config, config, programs, stream_programs
from .relevance_topk_rank import _relevance_topk_rank_kernel


@triton.jit(do_not_specialize=["N", "programs"])
def _relevance_topk_norm_kernel(
    rows,
    mask,
    inv_norm,
    table,
    N,
    D,
    stride_b,
    stride_n,
    programs,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Inverse norms of prompt tokens, or of the visual tokens where nothing is pooled."""
    seg, me = program(programs, REVERSED)
    first, tokens, origin, _, length, _, _, _ = segment(seg, table, N, stride_b, stride_n, 0, 0)
    for block in range(me * BLOCK_N, length, programs * BLOCK_N):
        i = block + tl.arange(0, BLOCK_N)
        inv = block_norms(
            rows + origin, i, length, tokens, mask, None, D, stride_n, BLOCK_N, BLOCK_K
        )
        tl.store(inv_norm + first + i, inv, mask=i < length)


@triton.jit
def prompt_rows(seg, spans, M, stride_b, stride_m):
    """(first row in the norms, element offset, length) of a segment's prompt."""
    if spans is not None:
        start = tl.load(spans + seg * 2)
        return start, start * stride_m, (tl.load(spans + seg * 2 + 1) - start).to(tl.int32)
    else:
        row = seg.to(tl.int64)
        return row * M, row * stride_b, M


@triton.jit(do_not_specialize=["M", "blocks"])
def _relevance_topk_pool_kernel(
    prompt,
    inv_norm,
    spans,
    pooled,
    count,
    M,
    D,
    stride_b,
    stride_m,
    blocks,
    POOLING: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """The pooled prompt [S, D] and how many valid tokens it was made of [S].

    A masked token adds exactly 0, so the sum has the same bits wherever the padding stands.
    """
    seg, block = program(blocks, REVERSED)
    first, origin, length = prompt_rows(seg, spans, M, stride_b, stride_m)
    lane = tl.arange(0, BLOCK_D)
    k = block * BLOCK_D + lane
    start = 0.0
    if POOLING == "max":
        start = float("-inf")
    total = tl.full([BLOCK_D], start, tl.float32)
    n = tl.full([BLOCK_D], 0, tl.int32)
    for m0 in range(0, length, 8):
        for step in tl.static_range(8):  # eight independent loads at a time
            m = m0 + step + lane * 0  # [BLOCK_D], all the same token
            inv = tl.load(inv_norm + first + m, mask=m < length, other=-1.0)
            ok = inv >= 0.0
            n += ok.to(tl.int32)
            if POOLING != "none_max":
                row = prompt + origin + m.to(tl.int64) * stride_m
                x = tl.load(row + k, mask=(k < D) & ok, other=0.0).to(tl.float32)  # [BLOCK_D]
                if POOLING == "mean":
                    total += x
                elif POOLING == "max":
                    total = tl.maximum(total, tl.where(ok, x, float("-inf")))
                else:
                    total = tl.fma(x, tl.maximum(inv, 0.0), total)
    if POOLING != "max":
        total = tl.div_rn(total, tl.maximum(n, 1).to(tl.float32))
    if POOLING != "none_max":
        tl.store(pooled + seg.to(tl.int64) * D + k, tl.where(n > 0, total, 0.0), mask=k < D)
    tl.store(count + seg + lane, n, mask=k == 0)


@triton.jit(do_not_specialize=["N", "programs"])
def _relevance_topk_score_kernel(
    visual,
    mask,
    pooled,
    inv_norm,
    scores,
    table,
    N,
    D,
    stride_b,
    stride_n,
    programs,
    NORMALIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Inverse norms and cosines with the pooled prompt; each visual token is read once."""
    seg, me = program(programs, REVERSED)
    first, tokens, origin, _, length, _, _, _ = segment(seg, table, N, stride_b, stride_n, 0, 0)
    t = pooled + seg.to(tl.int64) * D
    inv_t = tl.full([1], 1.0, tl.float32)
    if NORMALIZE:
        q_t, _ = row_sums(t + inv_t.to(tl.int32)[:, None] * 0, inv_t > 0.0, None, D, 1, BLOCK_K)
        inv_t = unit_scale(q_t)
    for block in range(me * BLOCK_N, length, programs * BLOCK_N):
        i = block + tl.arange(0, BLOCK_N)
        ok = i < length
        if mask is not None:
            ok = ok & (tl.load(mask + tokens + i, mask=ok, other=0) != 0)
        rows = visual + origin + (i.to(tl.int64) * stride_n)[:, None]
        q, s = row_sums(rows, ok, t, D, BLOCK_N, BLOCK_K)
        inv = inverse_norm(q, ok)
        score = tl.where(inv > 0.0, s * (inv * inv_t), tl.where(inv == 0.0, -1.0, -INF))
        tl.store(inv_norm + first + i, inv, mask=i < length)
        tl.store(scores + first + i, score, mask=i < length)


@triton.jit(do_not_specialize=["N", "M", "programs"])
def _relevance_topk_max_kernel(
    visual,
    prompt,
    inv_norm,
    inv_prompt,
    count,
    scores,
    table,
    spans,
    N,
    M,
    D,
    stride_b,
    stride_n,
    stride_pb,
    stride_m,
    programs,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """The largest cosine with any valid prompt token; one that is a zero row has cosine 0."""
    seg, me = program(programs, REVERSED)
    first, _, origin, _, length, _, _, _ = segment(seg, table, N, stride_b, stride_n, 0, 0)
    first_m, origin_m, length_m = prompt_rows(seg, spans, M, stride_pb, stride_m)
    for block in range(me * BLOCK_N, length, programs * BLOCK_N):
        i = block + tl.arange(0, BLOCK_N)
        inv = tl.load(inv_norm + first + i, mask=i < length, other=-1.0)
        x = visual + origin + (i.to(tl.int64) * stride_n)[:, None]
        best = tl.full([BLOCK_N], float("-inf"), tl.float32)
        for m0 in range(0, length_m, BLOCK_M):
            m = m0 + tl.arange(0, BLOCK_M)
            inv_m = tl.load(inv_prompt + first_m + m, mask=m < length_m, other=-1.0)
            y = prompt + origin_m + (m.to(tl.int64) * stride_m)[:, None]
            c = pair_dots(x, inv > 0.0, y, inv_m > 0.0, D, BLOCK_N, BLOCK_M, BLOCK_K)
            c = c * (inv[:, None] * inv_m[None, :])  # [BLOCK_N, BLOCK_M]
            best = tl.maximum(best, tl.max(tl.where((inv_m >= 0.0)[None, :], c, -INF), 1))
        best = tl.where(tl.load(count + seg) > 0, best, 0.0)
        score = tl.where(inv > 0.0, best, tl.where(inv == 0.0, -1.0, -INF))
        tl.store(scores + first + i, score, mask=i < length)


def score_plan(visual: Tensor, prompt: Tensor, segments: Segments, pooling: str) -> _scratch.Plan:
    """The scratch memory that `score` takes for these arguments, but for the scores."""
    plan: _scratch.Plan = {
        "inv_norm": (torch.float32, visual.shape[:-1]),
        "inv_prompt": (torch.float32, prompt.shape[:-1]),
        "count": (torch.int32, (segments.count,)),
    }
    if pooling != "none_max":
        plan["pooled"] = (torch.float32, (segments.count, visual.shape[-1]))
    return plan


def score(
    visual: Tensor,
    prompt: Tensor,
    segments: Segments,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
    spans: Tensor | None,
    pooling: str,
    scores: Tensor,
    scratch: dict[str, Tensor],
) -> None:
    """Relevance of every visual token.

    Writes `scores`, float32 of visual's shape without D, and to the scratch of `score_plan`
    inv_norm, of the same shape, and count, the valid prompt tokens of each segment, int32.
    """
    device, dim = visual.device, visual.shape[-1]
    cfg = _config(visual, prompt)
    stride_b, stride_n = row_strides(visual)
    stride_pb, stride_m = row_strides(prompt)
    batch, m = prompt.shape[:2] if prompt.dim() == 3 else (1, prompt.shape[0])
    prompts = Segments(batch, m, 0, 0)
    n, table = segments.rows, segments.table
    inv_norm, inv_prompt, count = scratch["inv_norm"], scratch["inv_prompt"], scratch["count"]
    pooled = scratch.get("pooled")
    _norms(cfg, prompt, prompt_mask, prompts, inv_prompt)

    blocks = 1 if pooled is None else -(-dim // cfg.pool_block_d)
    launch(
        _relevance_topk_pool_kernel,
        segments.count * blocks,
        device,
        *(prompt, inv_prompt, spans, pooled, count, m, dim, stride_pb, stride_m, blocks),
        POOLING=pooling,
        BLOCK_D=cfg.pool_block_d,
        REVERSED=cfg.reverse,
        num_warps=cfg.pool_warps,
    )
    if pooled is not None:
        each = stream_programs(cfg, n, segments.count)
        launch(
            _relevance_topk_score_kernel,
            segments.count * each,
            device,
            *(visual, visual_mask, pooled, inv_norm, scores, table),
            *(n, dim, stride_b, stride_n, each),
            NORMALIZE=pooling != "none_mean",
            BLOCK_N=cfg.block_n,
            BLOCK_K=cfg.block_k,
            REVERSED=cfg.reverse,
            num_warps=cfg.warps,
        )
        return

    _norms(cfg, visual, visual_mask, segments, inv_norm)
    each = programs(cfg, n, segments.count, cfg.max_block_n)
    launch(
        _relevance_topk_max_kernel,
        segments.count * each,
        device,
        *(visual, prompt, inv_norm, inv_prompt, count, scores, table, spans),
        *(n, m, dim, stride_b, stride_n, stride_pb, stride_m, each),
        BLOCK_N=cfg.max_block_n,
        BLOCK_M=cfg.max_block_m,
        BLOCK_K=cfg.max_block_k,
        REVERSED=cfg.reverse,
        num_warps=cfg.max_warps,
        num_stages=cfg.max_stages,
    )


def _norms(
    cfg: Config, tokens: Tensor, mask: Tensor | None, segments: Segments, inv_norm: Tensor
) -> None:
    """Fill `inv_norm` with the inverse norms of `tokens`."""
    each = stream_programs(cfg, segments.rows, segments.count)
    launch(
        _relevance_topk_norm_kernel,
        segments.count * each,
        tokens.device,
        *(tokens, mask, inv_norm, segments.table),
        *(segments.rows, tokens.shape[-1], *row_strides(tokens), each),
        BLOCK_N=cfg.block_n,
        BLOCK_K=cfg.block_k,
        REVERSED=cfg.reverse,
        num_warps=cfg.warps,
    )


def rank(scores: Tensor, count: Tensor, segments: Segments, indices: Tensor) -> None:
    """Write each segment's k_core most relevant tokens to its first slots of `indices`."""
    cfg = _config(scores, scores)
    each = programs(cfg, segments.rows, segments.count, cfg.rank_rows)
    launch(
        _relevance_topk_rank_kernel,
        segments.count * each,
        scores.device,
        *(scores, count, indices, segments.table),
        *(segments.rows, segments.k_core, segments.k_diverse, each),
        ROWS=cfg.rank_rows,
        COLUMNS=cfg.rank_columns,
        STEPS=cfg.rank_steps,
        REVERSED=cfg.reverse,
        num_warps=cfg.rank_warps,
    )


def relevance_topk(
    visual: Tensor,
    prompt: Tensor,
    k: int,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
    pooling: str,
) -> tuple[Tensor, Tensor]:
    """See `zspa_kernels.relevance_topk`."""
    batch, n, _ = visual.shape
    segments = Segments(batch, n, k, 0)
    indices = torch.full((batch, k), -1, dtype=torch.int64, device=visual.device)
    scores = torch.empty((batch, n), dtype=torch.float32, device=visual.device)
    scratch = _scratch.allocate(visual.device, score_plan(visual, prompt, segments, pooling))
    score(visual, prompt, segments, visual_mask, prompt_mask, None, pooling, scores, scratch)
    if k > 0:
        rank(scores, scratch["count"], segments, indices)
    return indices, scores


def _config(visual: Tensor, prompt: Tensor) -> Config:
    itemsize = max(visual.element_size(), prompt.element_size())
    mixed = visual.dtype != prompt.dtype
    return config(visual.shape[-1], itemsize, mixed, hip=torch.version.hip is not None)
