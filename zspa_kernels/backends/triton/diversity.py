# SPDX-License-Identifier: Apache-2.0
"""Diversity: again and again the token least similar to everything selected so far.

Algorithm   : 1 inverse norms; 2 for every token the largest cosine m to the seeds, or, without
              valid seeds and weights, to any other token (DivPrune's seed is the smallest of these,
              arXiv 2503.02175); 3 one pick at a time: the smallest (m, index), or with weights the
              largest w (1 - m), then one pass that raises every m by the cosine with that pick and
              finds the next. No N x N matrix: only m is kept.
Inputs      : visual [B, N, D] or [T, D], float32/float16/bfloat16, any row strides; seeds int64
              [B, S] or the core slots of the output; weights float32 [B, N] or [T]; mask bool
              [B, N]; table int64 [S, 5]
Outputs     : int64 indices in pick order, [B, k] or [T']; slots that get no token stay as they are
Work        : 2 N D flops and one read of V a pick (one column in block_c of the matrix units used),
              2 N S D flops for S seeds, 2 N^2 D without; 3 launches, 0 syncs, scratch 12 N bytes
Mapping     : norms and first pass: program <-> every p-th block of rows of a segment; picks: one
              program a segment, m in global memory, V read again each pass (from L2 when it fits)
Numerics    : dots accumulate in float32; c = dot * (inv_i * inv_j) in float32, bitwise symmetric;
              score w * (1 - m) in float32, in that order; ties to the lowest index, -0.0 == +0.0
Deterministic: yes: no atomics; maxima and the smallest key do not depend on order
Limits      : N < 2^31 - 2^20 (block numbers are int32); N * D may exceed 2^31 (int64 addresses)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import (
    INF,
    KEY_END,
    Segments,
    block_norms,
    launch,
    order_key,
    pair_dots,
    program,
    row_strides,
    segment,
)
from .diversity_config import Config, config, programs


@triton.jit(do_not_specialize=["N", "programs"])
def _diversity_norm_kernel(
    visual,
    mask,
    weights,
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
    """Inverse norms; a token that is masked or has no usable weight gets -1."""
    seg, me = program(programs, REVERSED)
    first, tokens, origin, _, length, _, _, _ = segment(seg, table, N, stride_b, stride_n, 0, 0)
    for block in range(me * BLOCK_N, length, programs * BLOCK_N):
        i = block + tl.arange(0, BLOCK_N)
        inv = block_norms(
            visual + origin, i, length, tokens, mask, weights, D, stride_n, BLOCK_N, BLOCK_K
        )
        tl.store(inv_norm + first + i, inv, mask=i < length)


@triton.jit
def cost(nearest, w):
    """What a pick minimises: m, or -w (1 - m); +inf of a token that cannot be picked."""
    if w is not None:
        return tl.where(nearest < INF, -(w * (1.0 - nearest)), INF)
    else:
        return nearest


@triton.jit
def seed_list(seeds, seg, S, slot, core, IN_SLOTS: tl.constexpr):
    """(offset, count) of a segment's seeds: its core slots, or a row of a list [B, S]."""
    if IN_SLOTS:
        return slot, core
    else:
        return seg.to(tl.int64) * S, S


@triton.jit(do_not_specialize=["N", "S", "k_core", "k_diverse", "programs"])
def _diversity_start_kernel(
    visual,
    inv_norm,
    weights,
    seeds,
    nearest,
    opening,
    table,
    N,
    D,
    stride_b,
    stride_n,
    S,
    k_core,
    k_diverse,
    programs,
    IN_SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Running maxima before the first pick (`nearest`) and what that pick minimises (`opening`).

    nearest: -1 of a token with a direction, raised by the seeds; 1 of a zero row; +inf of a token
    that cannot be picked (masked out, or a seed).
    """
    seg, me = program(programs, REVERSED)
    first, tokens, origin, base, length, core, diverse, slot = segment(
        seg, table, N, stride_b, stride_n, k_core, k_diverse
    )
    at, count = seed_list(seeds, seg, S, slot, core, IN_SLOTS)
    c = tl.arange(0, BLOCK_C)
    valid_seeds = 0
    filled = 0
    for c0 in range(0, count, BLOCK_C):
        j = tl.load(seeds + at + c0 + c, mask=c0 + c < count, other=-1)
        filled += tl.sum((j >= 0).to(tl.int32), 0)
        j -= base
        inv = tl.load(inv_norm + first + j, mask=(j >= 0) & (j < length), other=-1.0)
        valid_seeds += tl.sum((inv >= 0.0).to(tl.int32), 0)
    # The columns that raise a maximum: the seeds; or every other token; or nothing.
    columns = count
    if valid_seeds == 0:
        columns = length
        if weights is not None:
            columns = 0
    if IN_SLOTS:
        if filled == core + diverse:  # nothing is left to pick
            columns = 0
    for block in range(me * BLOCK_N, length, programs * BLOCK_N):
        i = block + tl.arange(0, BLOCK_N)
        inv = tl.load(inv_norm + first + i, mask=i < length, other=-1.0)
        x = visual + origin + (i.to(tl.int64) * stride_n)[:, None]
        lowest = tl.where(inv > 0.0, -1.0, tl.where(inv == 0.0, 1.0, INF))
        top = lowest
        taken = tl.full([BLOCK_N], 0, tl.int32)
        for c0 in range(0, columns, BLOCK_C):
            j = c0 + c
            if valid_seeds > 0:
                s = tl.load(seeds + at + j, mask=j < columns, other=-1) - base
                j = tl.where((s >= 0) & (s < length), s, -1).to(tl.int32)
            inv_c = tl.load(inv_norm + first + j, mask=(j >= 0) & (j < length), other=-1.0)
            y = visual + origin + (j.to(tl.int64) * stride_n)[:, None]
            dots = pair_dots(x, inv > 0.0, y, inv_c > 0.0, D, BLOCK_N, BLOCK_C, BLOCK_K)
            cosines = dots * (inv[:, None] * inv_c[None, :])  # [BLOCK_N, BLOCK_C]
            same = i[:, None] == j[None, :]
            cosines = tl.where(same | (inv_c <= 0.0)[None, :], -INF, cosines)
            top = tl.where(inv > 0.0, tl.maximum(top, tl.max(cosines, 1)), top)
            taken = tl.maximum(taken, tl.max(same.to(tl.int32), 1))
        start = top
        if valid_seeds > 0:
            # A seed that does not count is masked out, so +inf is right for it too.
            lowest = tl.where(taken > 0, INF, top)
            start = lowest
        if weights is not None:
            w = tl.load(weights + tokens + i, mask=inv >= 0.0, other=0.0)
            if valid_seeds > 0:
                start = cost(lowest, w)
            else:
                start = tl.where(inv >= 0.0, -w, INF)
        tl.store(nearest + first + i, lowest, mask=i < length)
        tl.store(opening + first + i, start, mask=i < length)


@triton.jit(do_not_specialize=["N", "k_core", "k_diverse"])
def _diversity_pick_kernel(
    visual,
    inv_norm,
    weights,
    nearest,
    opening,
    indices,
    table,
    N,
    D,
    stride_b,
    stride_n,
    k_core,
    k_diverse,
    IN_SLOTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """One pick at a time, one program a segment; picks go to the slots after the core's."""
    seg, _ = program(1, REVERSED)
    first, tokens, origin, base, length, core, diverse, slot = segment(
        seg, table, N, stride_b, stride_n, k_core, k_diverse
    )
    lane = tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    done = 0
    if IN_SLOTS:
        for c0 in range(0, core, BLOCK_N):
            j = tl.load(indices + slot + c0 + lane, mask=c0 + lane < core, other=-1)
            done += tl.sum((j >= 0).to(tl.int32), 0)
    lanes = tl.full([BLOCK_N], KEY_END, tl.int64)  # the best key each lane has met
    for block in range(0, length, BLOCK_N):
        i = block + lane
        start = tl.load(opening + first + i, mask=i < length, other=INF)
        lanes = tl.minimum(lanes, order_key(start, i))
    best = tl.min(lanes, 0)
    while (done < core + diverse) & (best < KEY_END):
        pick = best & 0xFFFFFFFF
        tl.store(indices + slot + done, base + pick)
        done += 1
        lanes = tl.full([BLOCK_N], KEY_END, tl.int64)
        if done < core + diverse:
            inv_c = tl.load(inv_norm + first + pick + c, mask=c == 0, other=0.0)  # [BLOCK_C]
            y = visual + origin + (pick * stride_n + c * 0)[:, None]
            for block in range(0, length, BLOCK_N):
                i = block + lane
                inv = tl.load(inv_norm + first + i, mask=i < length, other=-1.0)
                m = tl.load(nearest + first + i, mask=i < length, other=INF)
                x = visual + origin + (i.to(tl.int64) * stride_n)[:, None]
                live = (inv > 0.0) & (m < INF)  # what was picked is read no more
                dots = pair_dots(x, live, y, inv_c > 0.0, D, BLOCK_N, BLOCK_C, BLOCK_K)
                cosines = dots * (inv[:, None] * inv_c[None, :])  # [BLOCK_N, BLOCK_C]
                largest = tl.max(tl.where((inv_c > 0.0)[None, :], cosines, -INF), 1)
                m = tl.where(live, tl.maximum(m, largest), m)
                m = tl.where(i == pick, INF, m)
                tl.store(nearest + first + i, m, mask=i < length)
                w = None
                if weights is not None:
                    w = tl.load(weights + tokens + i, mask=inv >= 0.0, other=0.0)
                lanes = tl.minimum(lanes, order_key(cost(m, w), i))
            # The next pass reads `nearest` in another layout: other threads of this program do.
            tl.debug_barrier()
        best = tl.min(lanes, 0)


def greedy(
    visual: Tensor,
    segments: Segments,
    indices: Tensor,
    seeds: Tensor | None,
    weights: Tensor | None,
    mask: Tensor | None,
    inv_norm: Tensor | None,
    after_core: bool,
) -> None:
    """Pick tokens into the slots of `indices`.

    Args:
        visual: tokens `[B, N, D]` or `[T, D]`.
        segments: where the segments and their slots are.
        indices: int64 slots, -1 where nothing stands yet.
        seeds: int64 `[B, S]` or None; not with after_core.
        weights: float32 `[B, N]` or `[T]`, or None.
        mask: bool `[B, N]` or None.
        inv_norm: float32 inverse norms when they are known (then weights must be None).
        after_core: the first k_core slots hold the seeds; picks follow those that are not -1.
    """
    device, dim = visual.device, visual.shape[-1]
    cfg = _config(visual)
    n, table = segments.rows, segments.table
    stride_b, stride_n = row_strides(visual)
    if inv_norm is None:
        inv_norm = torch.empty(visual.shape[:-1], dtype=torch.float32, device=device)
        each = programs(cfg, n, segments.count, cfg.norm_block_n)
        launch(
            _diversity_norm_kernel,
            segments.count * each,
            device,
            *(visual, mask, weights, inv_norm, table, n, dim, stride_b, stride_n, each),
            BLOCK_N=cfg.norm_block_n,
            BLOCK_K=cfg.norm_block_k,
            REVERSED=cfg.reverse,
            num_warps=cfg.norm_warps,
        )
    nearest = torch.empty_like(inv_norm)
    opening = torch.empty_like(inv_norm)
    num_seeds = 0
    if after_core:
        seeds = indices
    elif seeds is None:
        seeds = indices  # not read: there are none
    else:
        num_seeds = seeds.shape[1]
    options = {
        "IN_SLOTS": after_core,
        "BLOCK_K": cfg.block_k,
        "REVERSED": cfg.reverse,
    }
    each = programs(cfg, n, segments.count, cfg.start_n)
    launch(
        _diversity_start_kernel,
        segments.count * each,
        device,
        *(visual, inv_norm, weights, seeds, nearest, opening, table, n, dim, stride_b, stride_n),
        *(num_seeds, segments.k_core, segments.k_diverse, each),
        BLOCK_N=cfg.start_n,
        BLOCK_C=cfg.start_c,
        num_warps=cfg.start_warps,
        num_stages=cfg.start_stages,
        **options,
    )
    launch(
        _diversity_pick_kernel,
        segments.count,
        device,
        *(visual, inv_norm, weights, nearest, opening, indices, table, n, dim, stride_b, stride_n),
        *(segments.k_core, segments.k_diverse),
        BLOCK_N=cfg.pick_n,
        BLOCK_C=cfg.pick_c,
        num_warps=cfg.pick_warps,
        num_stages=cfg.pick_stages,
        **options,
    )


def diversity(
    visual: Tensor,
    k: int,
    seeds: Tensor | None,
    weights: Tensor | None,
    visual_mask: Tensor | None,
) -> Tensor:
    """See `zspa_kernels.diversity`."""
    batch, n, _ = visual.shape
    indices = torch.full((batch, k), -1, dtype=torch.int64, device=visual.device)
    if k > 0:
        segments = Segments(batch, n, 0, k)
        greedy(visual, segments, indices, seeds, weights, visual_mask, None, False)
    return indices


def diversity_varlen(visual: Tensor, table: Tensor, total_k: int, weights: Tensor | None) -> Tensor:
    """See `zspa_kernels.diversity_varlen`."""
    indices = torch.full((total_k,), -1, dtype=torch.int64, device=visual.device)
    if total_k > 0:
        segments = Segments(table.shape[0], visual.shape[0], 0, 0, table)
        greedy(visual, segments, indices, None, weights, None, None, False)
    return indices


def _config(visual: Tensor) -> Config:
    hip = torch.version.hip is not None
    return config(visual.shape[-1], visual.element_size(), hip=hip)
