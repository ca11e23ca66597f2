# SPDX-License-Identifier: Apache-2.0
"""Select: a core of the most relevant tokens, then the tokens most diverse from it and one another.

Algorithm   : the launchers of relevance_topk and diversity one after another (ZSPAPrune, arXiv
              2510.17197): scores and inverse norms; the core to each segment's first slots; picks
              by diversity after it; sorted: a pick's place is the number of picks with a lower
              index, so the indices ascend and the -1s stay behind them.
Inputs      : visual [B, N, D] or [T, D], prompt [B, M, D] or [P, D] or none, masks bool, spans
              int64 [S, 2], table int64 [S, 5]
Outputs     : int64 indices [B, K] or [T'], -1 where a slot gets no token
Work        : that of the two ops, the norms once, plus K^2 comparisons for sorting; at most 8
              launches and 2 fills, 0 syncs
Mapping     : sorting: program <-> every p-th block of slots of a segment
Numerics    : integers
Deterministic: yes: every slot is written by one program
Limits      : those of the two ops
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _scratch
from . import relevance_topk as relevance
from ._common import Segments, launch, program, segment
from .diversity import greedy, greedy_plan
from .select_config import config, programs

LAST = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # the place of a -1: after every index


@triton.jit(do_not_specialize=["N", "k_core", "k_diverse", "programs"])
def _select_sort_kernel(
    picks,
    indices,
    table,
    N,
    k_core,
    k_diverse,
    programs,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Copies the picks of a segment in ascending order; -1s are not copied."""
    seg, me = program(programs, REVERSED)
    _, _, _, _, _, core, diverse, slot = segment(seg, table, N, 0, 0, k_core, k_diverse)
    for block in range(me * SLOTS, core + diverse, programs * SLOTS):
        s = block + tl.arange(0, SLOTS)
        own = tl.load(picks + slot + s, mask=s < core + diverse, other=-1)
        rank = tl.full([SLOTS], 0, tl.int32)
        for c0 in range(0, core + diverse, COLUMNS):
            c = c0 + tl.arange(0, COLUMNS)
            other = tl.load(picks + slot + c, mask=c < core + diverse, other=-1)
            other = tl.where(other < 0, LAST, other)
            rank += tl.sum((other[None, :] < own[:, None]).to(tl.int32), 1)
        tl.store(indices + slot + rank, own, mask=own >= 0)


def sort(picks: Tensor, segments: Segments, slots: int) -> Tensor:
    """The picks of each segment in ascending order, then -1s; a segment has at most `slots`."""
    cfg = config()
    indices = torch.full_like(picks, -1)
    each = programs(cfg, slots, segments.count)
    launch(
        _select_sort_kernel,
        segments.count * each,
        picks.device,
        *(picks, indices, segments.table, 0, segments.k_core, segments.k_diverse, each),
        SLOTS=cfg.slots,
        COLUMNS=cfg.columns,
        REVERSED=cfg.reverse,
        num_warps=cfg.warps,
    )
    return indices


def select(
    visual: Tensor,
    prompt: Tensor | None,
    k_core: int,
    k_diverse: int,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
    pooling: str,
    sorted: bool,
) -> Tensor:
    """See `zspa_kernels.select`."""
    batch, n, _ = visual.shape
    slots = k_core + k_diverse
    picks = torch.full((batch, slots), -1, dtype=torch.int64, device=visual.device)
    if picks.numel() == 0:
        return picks
    segments = Segments(batch, n, k_core, k_diverse)
    inv_norm = None
    if prompt is not None and k_core > 0:
        scores, inv_norm, count = relevance.score(
            visual, prompt, segments, visual_mask, prompt_mask, None, pooling
        )
        relevance.rank(scores, count, segments, picks)
    scratch = _scratch.allocate(visual.device, greedy_plan(visual, segments))
    if inv_norm is not None:
        scratch["inv_norm"] = inv_norm
    greedy(
        visual,
        segments,
        picks,
        None,
        None,
        visual_mask,
        scratch,
        inv_norm is not None,
        inv_norm is not None,
    )
    return sort(picks, segments, slots) if sorted else picks


def select_varlen(
    visual: Tensor,
    table: Tensor,
    prompt: Tensor | None,
    prompt_spans: Tensor | None,
    total_k: int,
    pooling: str,
    sorted: bool,
) -> Tensor:
    """See `zspa_kernels.select_varlen`."""
    picks = torch.full((total_k,), -1, dtype=torch.int64, device=visual.device)
    if total_k == 0:
        return picks
    segments = Segments(table.shape[0], visual.shape[0], 0, 0, table)
    inv_norm = None
    if prompt is not None:
        scores, inv_norm, count = relevance.score(
            visual, prompt, segments, None, None, prompt_spans, pooling
        )
        relevance.rank(scores, count, segments, picks)
    scratch = _scratch.allocate(visual.device, greedy_plan(visual, segments))
    if inv_norm is not None:
        scratch["inv_norm"] = inv_norm
    greedy(
        visual,
        segments,
        picks,
        None,
        None,
        None,
        scratch,
        inv_norm is not None,
        inv_norm is not None,
    )
    return sort(picks, segments, total_k) if sorted else picks
