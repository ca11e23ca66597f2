# SPDX-License-Identifier: Apache-2.0
"""Select: a core of the most relevant tokens, then the tokens most diverse from it and one another.

Algorithm   : the launchers of relevance_topk and diversity one after another (ZSPAPrune, arXiv
              2510.17197): scores and inverse norms; the core to each segment's first slots; picks
              by diversity after it; sorted: a pick's place is the number of picks with a lower
              index, so the indices ascend and the -1s stay behind them.
Inputs      : visual [B, N, D] or [T, D], prompt [B, M, D] or [P, D] or none, masks bool, spans
              int64 [S, 2], table int64 [S, 5]
Outputs     : int64 indices [B, K] or [T'], -1 where a slot gets no token
Work        : that of the two ops, the norms once, plus K^2 comparisons for sorting; at most 7
              launches (none_max: 8) and 2 fills (ragged: 3), 1 allocation beside the output, 0
              syncs
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

LAST = tl.constexpr(0x7FFFFFFF)  # the place of a -1: after every token of a segment


@triton.jit
def places(picks, there, base):
    """The slots at `picks` that are `there` as tokens of their segment, int32; LAST where -1."""
    pick = tl.load(picks, mask=there, other=-1)
    return tl.where(pick < 0, LAST, (pick - base).to(tl.int32))


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
    STEPS: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Copies the picks of a segment in ascending order, and then its -1s.

    No two picks are the same. All -1s are: the slots from the number of picks on get one, whichever
    of them had one before.
    """
    seg, me = program(programs, REVERSED)
    _, _, _, base, _, core, diverse, slot = segment(seg, table, N, 0, 0, k_core, k_diverse)
    slots = core + diverse
    lane = tl.arange(0, COLUMNS)[None, :]
    for block in range(me * SLOTS, slots, programs * SLOTS):
        s = block + tl.arange(0, SLOTS)[:, None]
        own = places(picks + slot + s, s < slots, base)  # [SLOTS, 1]
        lower = tl.full([SLOTS, COLUMNS], 0, tl.int32)
        some = tl.full([1, COLUMNS], 0, tl.int32)
        for c0 in range(0, slots, STEPS * COLUMNS):
            for step in tl.static_range(STEPS):  # so many loads wait for nothing
                c = c0 + step * COLUMNS + lane
                other = places(picks + slot + c, c < slots, base)  # [1, COLUMNS]
                lower += (other < own).to(tl.int32)
                some += (other < LAST).to(tl.int32)
        rank = tl.sum(lower, 1)[:, None]
        tl.store(indices + slot + rank, base + own, mask=own < LAST)
        empty = (s >= tl.sum(some, 1)[:, None]) & (s < slots)
        tl.store(indices + slot + s, tl.full([SLOTS, 1], -1, tl.int64), mask=empty)


def sort(picks: Tensor, indices: Tensor, segments: Segments, slots: int) -> None:
    """The picks of each segment to `indices`, ascending, then -1; a segment has at most `slots`.

    Slots of no segment are left as they are.
    """
    cfg = config()
    each = programs(cfg, slots, segments.count)
    launch(
        _select_sort_kernel,
        segments.count * each,
        picks.device,
        *(picks, indices, segments.table, 0, segments.k_core, segments.k_diverse, each),
        SLOTS=cfg.slots,
        COLUMNS=cfg.columns,
        STEPS=cfg.steps,
        REVERSED=cfg.reverse,
        num_warps=cfg.warps,
    )


def _select(
    visual: Tensor,
    prompt: Tensor | None,
    segments: Segments,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
    spans: Tensor | None,
    pooling: str,
    indices: Tensor,
    slots: int,
    sorted: bool,
) -> Tensor:
    """Fill `indices`; a segment has at most `slots`. Without a prompt there is no core."""
    plan = greedy_plan(visual, segments)
    if prompt is not None:
        plan |= relevance.score_plan(visual, prompt, segments, pooling)
        plan["scores"] = (torch.float32, visual.shape[:-1])
    if sorted:
        plan["unsorted"] = (torch.int64, indices.shape)
    scratch = _scratch.allocate(visual.device, plan)
    if not sorted or segments.table is not None:  # otherwise sorting writes every slot
        indices.fill_(-1)
    picks = scratch["unsorted"].fill_(-1) if sorted else indices
    if prompt is not None:
        relevance.score(
            *(visual, prompt, segments, visual_mask, prompt_mask, spans, pooling),
            *(scratch["scores"], scratch),
        )
        relevance.rank(scratch["scores"], scratch["count"], segments, picks)
    core = prompt is not None
    greedy(visual, segments, picks, None, None, visual_mask, scratch, after_core=core, normed=core)
    if sorted:
        sort(picks, indices, segments, slots)
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
    indices = torch.empty((batch, slots), dtype=torch.int64, device=visual.device)
    if indices.numel() == 0:
        return indices
    segments = Segments(batch, n, k_core, k_diverse)
    return _select(
        *(visual, prompt if k_core > 0 else None, segments, visual_mask, prompt_mask, None),
        *(pooling, indices, slots, sorted),
    )


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
    indices = torch.empty((total_k,), dtype=torch.int64, device=visual.device)
    if total_k == 0:
        return indices
    segments = Segments(table.shape[0], visual.shape[0], 0, 0, table)
    return _select(
        *(visual, prompt, segments, None, None, prompt_spans),
        *(pooling, indices, total_k, sorted),
    )
