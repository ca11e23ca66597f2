# SPDX-License-Identifier: Apache-2.0
"""diversity: each pick is the token least similar to everything selected so far.

Algorithm   : blocked greedy with the picks of the one-at-a-time greedy. A token's largest cosine m
              to the selection only grows, so an old key (m, index) is a lower bound. A pass takes
              the smallest keys as candidates, picks among them with their own Gram matrix while a
              pick beats the smallest key outside, and then raises every m by the new picks.
              Without valid seeds and weights the first pick is DivPrune's seed (arXiv 2503.02175),
              the token whose largest cosine to any other is smallest, found by bounds: a maximum
              over some tokens is a lower bound. First every token is compared with its neighbours;
              then the tokens with the smallest bounds are finished, a block at a time, until no
              other can win. If many of the first have their nearest token at the same distance
              (the previous frame of a video), all tokens are compared with those around that
              distance. Small images in small batches get the same picks from `diversity_whole`.
Inputs      : visual [B, N, D] or [T, D], float32/float16/bfloat16, any row strides; seeds int64
              [B, S] or the core slots of the output; weights float32 [B, N] or [T]; mask bool
              [B, N]; table int64 [S, 5]
Outputs     : int64 indices in pick order, [B, k] or [T']; slots that get no token stay as they are
Work        : 2 N D flops per pick and one read of V per pass; a pass makes 1 to 128 picks;
              DivPrune's seed up to 2 N^2 D flops; 2 launches and 2 fills, 0 syncs; scratch of 520
              bytes per token (padded: of 132 images at most), 512 more for each further 1024
              channels where updates are cut, and at most (D/1024 + 2) 64 KiB per group
Mapping     : one launch of groups of programs, one group per segment, rows dealt out one by one;
              the programs of a group synchronise at a barrier in global memory, so all must be
              resident: the launch is cooperative, with at most one program per multiprocessor
Numerics    : dots accumulate in float32, chunk by chunk in one order; c = dot * (inv_i * inv_j) in
              float32, bitwise symmetric; score w * (1 - m) in float32, in that order; ties to the
              lowest index, -0.0 == +0.0
Deterministic: yes: maxima, counts and smallest keys do not depend on order
Limits      : N < 2^31 - 2^20 (block numbers are int32); N * D may exceed 2^31 (int64 addresses)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _candidates as candidates
from . import _products as tiles
from . import _scratch, diversity_whole
from . import diversity_phases as phases
from ._common import (
    Segments,
    block_norms,
    launch,
    meet,
    multiprocessors,
    program,
    row_strides,
    segment,
)
from ._group import (
    ARRIVED,
    CONTROL,
    FINISH,
    FOLD,
    GRAM,
    KEY_LAST,
    NEAR,
    STOP,
    accept,
    dot_memory,
    group_memory,
    seed_list,
)
from ._steps import greedy_in_steps
from .diversity_config import (
    Config,
    config,
    constants,
    grid,
    group,
    norm_programs,
    update_chunks,
    whole,
)
from .diversity_steps import PHASES, diversity_step

_GROUP_SCRATCH = ("proposals", "columns", "gram", "dots", "closest", "order", "picks", "control")
INTERPRETED_PROGRAMS = 2  # of a segment: the interpreter runs them in turn, so more only cost time


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


@triton.jit(
    do_not_specialize=[
        *("segments", "N", "num_seeds", "k_core", "k_diverse", "programs", "in_slots", "chunks"),
    ]
)
def _diversity_greedy_kernel(
    visual, inv_norm, weights, seeds, indices, table, nearest, proposals, columns, gram, dots,
    closest, order, picks, control, segments, N, D, stride_b, stride_n, num_seeds, k_core,
    k_diverse, programs, in_slots, chunks,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr, PROGRAMS: tl.constexpr, WIDTH: tl.constexpr, OWN: tl.constexpr,
    SPLIT: tl.constexpr, UPDATE_ROWS: tl.constexpr, UPDATE_OWN: tl.constexpr,
    FINISHED: tl.constexpr, VOTES: tl.constexpr, COPIES: tl.constexpr, HIP: tl.constexpr,
    REVERSED: tl.constexpr,
):  # fmt: skip
    """All phases in one launch: a group of programs does its segments one after another."""
    group, me = program(programs, REVERSED)
    proposals, columns, gram, picks, control = group_memory(
        group, me, programs, proposals, columns, gram, picks, control, D,
        BLOCK, CHUNK, WIDTH, SPLIT,
    )  # fmt: skip
    closest += group * programs * BLOCK
    order += group * BLOCK
    arrivals = control + ARRIVED
    meetings = 0
    for seg in range(group, segments, tl.num_programs(0) // programs):
        first, tokens, origin, base, length, core, diverse, slot = segment(
            seg, table, N, stride_b, stride_n, k_core, k_diverse
        )
        slots = core + diverse
        own_seeds, count_seeds = seed_list(seeds, seg, num_seeds, in_slots, slot, core)
        x = visual + origin
        inv = inv_norm + first
        m = nearest + first
        w = None
        if weights is not None:
            w = weights + tokens
        own_dots, chunk_size = dot_memory(dots, group, first, table, N, programs, BLOCK)
        stage, done, folded = phases.begin(
            inv, m, w, own_seeds, count_seeds, control, base, length, slots, me, programs,
            in_slots, BLOCK,
        )  # fmt: skip
        best = tl.full([], KEY_LAST, tl.int64)
        edge = best
        count = 0
        shift = 0
        if stage == FOLD:
            count = phases.seed_columns(
                own_seeds, count_seeds, folded, columns, base, length, BLOCK
            )
        if (stage == FOLD) | (stage == NEAR):
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # all rows are as before the first pick
        while stage != STOP:
            if (stage == FOLD) | (stage == FINISH):
                tiles.update_dots(
                    stage, x, inv, m, columns, count, own_dots, chunk_size, chunks, length, D,
                    stride_n, me, programs, BLOCK, UPDATE_ROWS, COLS, BLOCK_K, CHUNK,
                )  # fmt: skip
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all dots are there
                tiles.update(
                    stage, inv, m, columns, count, own_dots, chunk_size, chunks, gram, closest,
                    length, me, programs, BLOCK, UPDATE_OWN,
                )  # fmt: skip
            else:
                tiles.products(
                    stage, x, inv, m, columns, count, gram, length, D, stride_n, me, programs,
                    None, 0, shift, BLOCK, ROWS, COLS, BLOCK_K, CHUNK, SPLIT,
                )  # fmt: skip
            if stage == GRAM:
                candidates.places(columns, count, order, me, programs, BLOCK)
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all dots are there
                tiles.scale(inv, columns, count, gram, D, me, programs, BLOCK, CHUNK, SPLIT)
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all cosines are there
                if me == 0:
                    phases.chain(
                        m, w, columns, count, order, edge, gram, picks, control, indices + slot,
                        base, slots, BLOCK, COPIES,
                    )  # fmt: skip
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all picks are there
                stage, count, done = accept(picks, control, columns, slots, BLOCK)
            else:
                folded += BLOCK
                if (stage == FOLD) & (folded < count_seeds):
                    count = phases.seed_columns(
                        own_seeds, count_seeds, folded, columns, base, length, BLOCK
                    )
                    meetings += 1
                    meet(arrivals, meetings * programs, HIP)  # all have read the dots
                elif (stage == NEAR) & (shift > 0):
                    shift = -shift  # what lies behind; a block's rows stay with this program
                else:
                    if stage == NEAR:
                        meetings += 1
                        meet(arrivals, meetings * programs, HIP)  # all rows have met neighbours
                    candidates.propose(stage, m, w, proposals, length, me, programs, WIDTH, OWN)
                    meetings += 1
                    meet(arrivals, meetings * programs, HIP)  # all proposals are there
                    seeding = stage != FOLD
                    stage, count, best, edge, shift = candidates.choose(
                        stage, inv, proposals, columns, count, best, gram, shift, closest, length,
                        programs, BLOCK, WIDTH, PROGRAMS, FINISHED, VOTES,
                    )  # fmt: skip
                    if seeding & (stage == FOLD):
                        stage, done = phases.first_pick(
                            inv, m, best, control, indices + slot, base, length, slots, done,
                            me, programs, BLOCK,
                        )  # fmt: skip
                        meetings += 1
                        meet(arrivals, meetings * programs, HIP)  # all rows are as they were
        if seg + tl.num_programs(0) // programs < segments:
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # the group's memory is free again


def norms(
    cfg: Config,
    visual: Tensor,
    segments: Segments,
    mask: Tensor | None,
    weights: Tensor | None,
    inv_norm: Tensor,
) -> None:
    """Inverse norms of all tokens, -1 of those that are masked or have no usable weight."""
    each = norm_programs(cfg, segments.rows, segments.count)
    launch(
        _diversity_norm_kernel,
        segments.count * each,
        visual.device,
        *(visual, mask, weights, inv_norm, segments.table),
        *(segments.rows, visual.shape[-1], *row_strides(visual), each),
        BLOCK_N=cfg.norm_block_n,
        BLOCK_K=cfg.norm_block_k,
        REVERSED=cfg.reverse,
        num_warps=cfg.norm_warps,
    )


def greedy_plan(visual: Tensor, segments: Segments) -> _scratch.Plan:
    """The scratch memory that `greedy` takes for these arguments."""
    cfg = _config(visual)
    inv_norm: _scratch.Plan = {"inv_norm": (torch.float32, visual.shape[:-1])}
    if few_tokens(cfg, segments, visual.device):
        return inv_norm | diversity_whole.plan(cfg, segments)
    groups, programs = group_grid(cfg, segments, visual.device)
    size = group(cfg, programs)
    chunks = -(-visual.shape[-1] // cfg.chunk) if size.split else 1
    block = cfg.block
    dot_chunks = _update_chunks(cfg, visual, segments, programs)
    rows = segments.rows * (groups if segments.table is None else 1)
    return inv_norm | {
        "nearest": (torch.float32, visual.shape[:-1]),
        "proposals": (torch.int64, (groups * programs * size.width,)),
        "columns": (torch.int32, (groups * programs * block,)),
        "gram": (torch.float32, (groups * chunks * block * block,)),
        "dots": (torch.float32, (dot_chunks * rows * block,)),
        "closest": (torch.int32, (groups * programs * block,)),
        "order": (torch.int32, (groups * block,)),
        "picks": (torch.int32, (groups * block,)),
        "control": (torch.int32, (groups * CONTROL.value,)),
    }


def greedy(
    visual: Tensor,
    segments: Segments,
    indices: Tensor,
    seeds: Tensor | None,
    weights: Tensor | None,
    mask: Tensor | None,
    scratch: dict[str, Tensor],
    after_core: bool,
    normed: bool = False,
) -> None:
    """Pick tokens into the slots of `indices`.

    Args:
        visual: tokens `[B, N, D]` or `[T, D]`.
        segments: where the segments and their slots are.
        indices: int64 slots, -1 where nothing stands yet.
        seeds: int64 `[B, S]` or None; not with after_core.
        weights: float32 `[B, N]` or `[T]`, or None.
        mask: bool `[B, N]` or None.
        scratch: what `greedy_plan` asks for.
        after_core: the first k_core slots hold the seeds; picks follow those that are not -1.
        normed: the inverse norms are in the scratch (then weights must be None).
    """
    if segments.count == 0:
        return
    device, dim = visual.device, visual.shape[-1]
    cfg = _config(visual)
    n, table = segments.rows, segments.table
    stride_b, stride_n = row_strides(visual)
    if not normed:
        norms(cfg, visual, segments, mask, weights, scratch["inv_norm"])
    if few_tokens(cfg, segments, device):
        diversity_whole.picks(cfg, visual, segments, indices, seeds, weights, scratch, after_core)
        return
    scratch["control"].zero_()
    groups, programs = group_grid(cfg, segments, device)
    size = group(cfg, programs)
    arguments = (
        *(visual, scratch["inv_norm"], weights, indices if seeds is None else seeds),
        *(indices, table, scratch["nearest"]),
        *(scratch[name] for name in _GROUP_SCRATCH),
        *(segments.count, n, dim, stride_b, stride_n, 0 if seeds is None else seeds.shape[1]),
        *(segments.k_core, segments.k_diverse, programs, int(after_core)),
        _update_chunks(cfg, visual, segments, programs),
    )
    options = constants(cfg, size)
    options |= {"FINISHED": min(cfg.finished, size.programs), "VOTES": cfg.votes}
    options |= {"UPDATE_ROWS": cfg.update_rows, "UPDATE_OWN": cfg.update_own}
    options["COPIES"] = cfg.warps
    if device.type == "cpu":
        greedy_in_steps(
            diversity_step, launch, groups * programs, device, *arguments,
            phases=PHASES, **options,
        )  # fmt: skip
    else:
        launch(
            _diversity_greedy_kernel,
            groups * programs,
            device,
            *arguments,
            together=True,
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
    if indices.numel() > 0:
        segments = Segments(batch, n, 0, k)
        scratch = _scratch.allocate(visual.device, greedy_plan(visual, segments))
        greedy(visual, segments, indices, seeds, weights, visual_mask, scratch, False)
    return indices


def diversity_varlen(visual: Tensor, table: Tensor, total_k: int, weights: Tensor | None) -> Tensor:
    """See `zspa_kernels.diversity_varlen`."""
    indices = torch.full((total_k,), -1, dtype=torch.int64, device=visual.device)
    if total_k > 0:
        segments = Segments(table.shape[0], visual.shape[0], 0, 0, table)
        scratch = _scratch.allocate(visual.device, greedy_plan(visual, segments))
        greedy(visual, segments, indices, None, weights, None, scratch, False)
    return indices


def _config(visual: Tensor) -> Config:
    hip = torch.version.hip is not None
    return config(visual.shape[-1], visual.element_size(), hip=hip)


def _update_chunks(cfg: Config, visual: Tensor, segments: Segments, programs: int) -> int:
    """Into how many chunks the channels of an update are cut; of a ragged batch, as on average."""
    rows = segments.rows if segments.table is None else segments.rows // max(1, segments.count)
    return update_chunks(cfg, rows, visual.shape[-1], programs)


def few_tokens(cfg: Config, segments: Segments, device: torch.device) -> bool:
    """Whether the whole matrix of cosines is made; the interpreter counts as a small GPU."""
    count = INTERPRETED_PROGRAMS if device.type == "cpu" else multiprocessors(device)
    return segments.table is None and whole(cfg, segments.rows, segments.count, count)


def group_grid(cfg: Config, segments: Segments, device: torch.device) -> tuple[int, int]:
    """(groups, programs per group); the interpreter gets few, because it runs them in turn."""
    if device.type == "cpu":
        rows = segments.rows if segments.table is None else segments.rows // max(1, segments.count)
        return grid(cfg, rows, segments.count, INTERPRETED_PROGRAMS * segments.count)
    return grid(cfg, segments.rows, segments.count, multiprocessors(device))
