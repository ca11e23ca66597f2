# SPDX-License-Identifier: Apache-2.0
"""min_sum: greedy max-sum dispersion, each pick of the smallest sum of cosines to those before.

Algorithm   : a sum can fall as well as rise, so no old sum is a bound, and every pick needs its
              column of cosines. A pass takes the tokens of the smallest sums as candidates,
              forecasts with their Gram matrix what would be picked if there were no others, and
              computes the columns of all forecast picks as one product. Then each program follows
              its own rows through the forecast and notes where one of them would be picked instead.
              The forecast is right up to the first such place, and that row is the next pick.
              Without valid seeds the first pick has the smallest sum over all tokens, one dot with
              the sum of all directions.
Inputs      : visual [B, N, D] or [T, D], float32/float16/bfloat16, any row strides; seeds int64
              [B, S]; mask bool [B, N]; table int64 [S, 5]
Outputs     : int64 indices in pick order, [B, k] or [T']; slots that get no token stay -1
Work        : a pass reads V once, multiplies it with 64 columns and makes 1 to 64 picks; two reads
              of V for a first pick without seeds; 2 launches and 2 fills, 0 syncs; scratch of 16
              bytes per token, 256 per token of the images in work (no N x N matrix), 8 D per
              program and at most (D/512 + 1) 64 KiB per group
Mapping     : as diversity: one cooperative launch of groups of programs, one group per segment
Numerics    : dots as in diversity; sums in float64, one addition after another in the order of
              selection, so that they are as exact as their cosines. The sum of all directions is
              one of integers. Ties to the lowest index
Deterministic: yes: smallest keys and sums of integers do not depend on order, and no other sum is
              shared by programs
Limits      : N < 2^31 - 2^20 (block numbers are int32); N * D may exceed 2^31 (int64 addresses)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _candidates as candidates
from . import _products as tiles
from . import _scratch
from . import min_sum_phases as phases
from ._common import Segments, launch, meet, program, row_strides, segment
from ._group import ARRIVED, CONTROL, FOLD, GRAM, OPEN, STOP, accept, group_memory
from ._steps import greedy_in_steps
from .diversity import group_grid, norms
from .diversity_config import constants, group, registers
from .min_sum_config import Config, config
from .min_sum_steps import ONCE, min_sum_step


@triton.jit(do_not_specialize=["segments", "N", "num_seeds", "longest", "k", "programs"])
def _min_sum_greedy_kernel(
    visual,
    inv_norm,
    seeds,
    indices,
    table,
    sums,
    costs,
    proposals,
    columns,
    gram,
    cosines,
    parts,
    total,
    foreseen,
    lowest,
    reached,
    picks,
    control,
    segments,
    N,
    D,
    stride_b,
    stride_n,
    num_seeds,
    longest,
    k,
    programs,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    PROGRAMS: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    SPLIT: tl.constexpr,
    COLUMNS: tl.constexpr,
    OWN_ROWS: tl.constexpr,
    AHEAD: tl.constexpr,
    COPIES: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    NORM_ROWS: tl.constexpr,
    NORM_K: tl.constexpr,
    HIP: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """All phases in one launch: a group of programs does its segments one after another."""
    group, me = program(programs, REVERSED)
    proposals, columns, gram, picks, control = group_memory(
        group, me, programs, proposals, columns, gram, picks, control, D,
        BLOCK, CHUNK, WIDTH, SPLIT,
    )  # fmt: skip
    cosines, parts, total, foreseen, lowest, reached, stride_f = phases.group_sums(
        group, programs, cosines, parts, total, foreseen, lowest, reached, longest, D, COLUMNS
    )
    arrivals = control + ARRIVED
    meetings = 0
    for seg in range(group, segments, tl.num_programs(0) // programs):
        first, _, origin, base, length, _, slots, slot = segment(
            seg, table, N, stride_b, stride_n, 0, k
        )
        x, inv = visual + origin, inv_norm + first
        s, m = sums + first, costs + first
        own_seeds = seeds + tl.cast(seg, tl.int64) * num_seeds
        stage = phases.begin(inv, own_seeds, num_seeds, s, m, length, slots, me, programs, OWN)
        done = 0
        count = 0
        folded = num_seeds + 0
        if stage == FOLD:
            folded = 0
            count = phases.seed_columns(own_seeds, num_seeds, 0, columns, length, COLUMNS)
        elif stage == OPEN:
            phases.add_directions(
                x, inv, parts, length, D, stride_n, me, programs, SUM_ROWS, CHANNELS
            )
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # all parts are there
            phases.add_parts(parts, total, D, me, programs, SUM_ROWS, CHANNELS)
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # the sum of all directions is there
            phases.sum_over_all(
                x, inv, total, s, length, D, stride_n, me, programs, NORM_ROWS, NORM_K
            )
        while stage != STOP:
            tiles.products(
                stage, x, inv, m, columns, count, gram, length, D, stride_n, me, programs,
                cosines, stride_f, 0, BLOCK, ROWS, COLS, BLOCK_K, CHUNK, SPLIT,
            )  # fmt: skip
            if stage == GRAM:
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all dots are there
                tiles.scale(inv, columns, count, gram, D, me, programs, BLOCK, CHUNK, SPLIT)
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all cosines are there
                if me == 0:
                    phases.foresee(
                        s, m, columns, count, gram, picks, foreseen, control, done, slots,
                        BLOCK, COLUMNS, COPIES,
                    )  # fmt: skip
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # the forecast is there
                stage, count, _done = accept(picks, control, columns, slots, BLOCK)
            elif folded < num_seeds:
                phases.absorb(
                    stage, -1, s, m, cosines, stride_f, columns, count, length, me, programs,
                    OWN_ROWS, AHEAD,
                )  # fmt: skip
                folded += COLUMNS
                count = phases.seed_columns(own_seeds, num_seeds, folded, columns, length, COLUMNS)
            else:
                phases.compare(
                    s, cosines, stride_f, columns, foreseen, count, reached, lowest, length, me,
                    programs, OWN_ROWS, AHEAD,
                )  # fmt: skip
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all have compared
                stage, done = phases.settle(
                    stage, s, m, cosines, stride_f, columns, reached, lowest, indices + slot, base,
                    done, slots, length, me, programs, PROGRAMS, COLUMNS, OWN_ROWS, AHEAD,
                )  # fmt: skip
                if stage != STOP:
                    candidates.propose(FOLD, m, None, proposals, length, me, programs, WIDTH, OWN)
                    meetings += 1
                    meet(arrivals, meetings * programs, HIP)  # all proposals are there
                    edge = tl.full([], 0, tl.int64)
                    stage, count, _best, _edge, _shift = candidates.choose(
                        FOLD, None, proposals, columns, count, edge, None, 0, None, length,
                        programs, BLOCK, WIDTH, PROGRAMS, 1, 0,
                    )  # fmt: skip
        if seg + tl.num_programs(0) // programs < segments:
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # the group's memory is free again


def min_sum(visual: Tensor, k: int, seeds: Tensor | None, visual_mask: Tensor | None) -> Tensor:
    """See `zspa_kernels.min_sum`."""
    batch, n, _ = visual.shape
    indices = torch.full((batch, k), -1, dtype=torch.int64, device=visual.device)
    if indices.numel() > 0:
        _greedy(visual, Segments(batch, n, 0, k), n, indices, seeds, visual_mask)
    return indices


def min_sum_varlen(visual: Tensor, table: Tensor, total_k: int, max_seqlen: int) -> Tensor:
    """See `zspa_kernels.min_sum_varlen`."""
    indices = torch.full((total_k,), -1, dtype=torch.int64, device=visual.device)
    if total_k > 0:
        segments = Segments(table.shape[0], visual.shape[0], 0, 0, table)
        _greedy(visual, segments, min(max_seqlen, segments.rows), indices, None, None)
    return indices


def _greedy(
    visual: Tensor,
    segments: Segments,
    longest: int,
    indices: Tensor,
    seeds: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Pick tokens into the slots of `indices`; no segment has more than `longest`."""
    device, dim = visual.device, visual.shape[-1]
    if segments.count == 0:
        return
    cfg = config(dim, visual.element_size(), hip=torch.version.hip is not None)
    groups, programs = group_grid(cfg, segments, device)
    size = group(cfg, programs)
    scratch = _scratch.allocate(device, _plan(cfg, visual, longest, groups, programs))
    norms(cfg, visual, segments, mask, None, scratch["inv_norm"])
    scratch["control"].zero_()
    arguments = (
        *(visual, scratch["inv_norm"], indices if seeds is None else seeds, indices),
        segments.table,
        *(tensor for name, tensor in scratch.items() if name != "inv_norm"),
        *(segments.count, segments.rows, dim, *row_strides(visual)),
        *(0 if seeds is None else seeds.shape[1], longest, segments.k_diverse, programs),
    )
    options = constants(cfg, size) | {
        "COLUMNS": cfg.forecast,
        "OWN_ROWS": cfg.own_rows,
        "AHEAD": cfg.ahead,
        "COPIES": cfg.warps,
        "SUM_ROWS": cfg.sum_rows,
        "CHANNELS": cfg.channels,
        "NORM_ROWS": cfg.norm_block_n,
        "NORM_K": cfg.norm_block_k,
        **registers(cfg.hip),
    }
    if device.type == "cpu":
        greedy_in_steps(
            min_sum_step, launch, groups * programs, device, *arguments, once=ONCE, **options
        )
    else:
        kernel = _min_sum_greedy_kernel
        launch(kernel, groups * programs, device, *arguments, together=True, **options)


def _plan(cfg: Config, visual: Tensor, longest: int, groups: int, programs: int) -> _scratch.Plan:
    """The scratch memory, in the order of the kernel's arguments."""
    block, dim = cfg.block, visual.shape[-1]
    size = group(cfg, programs)
    chunks = -(-dim // cfg.chunk) if size.split else 1
    places = programs * 4 * -(-longest // (4 * programs))  # `own_places` of all programs
    return {
        "inv_norm": (torch.float32, visual.shape[:-1]),
        "sums": (torch.float64, visual.shape[:-1]),
        "costs": (torch.float32, visual.shape[:-1]),
        "proposals": (torch.int64, (groups * programs * size.width,)),
        "columns": (torch.int32, (groups * programs * block,)),
        "gram": (torch.float32, (groups * chunks * block * block,)),
        "cosines": (torch.float32, (groups * cfg.forecast * places,)),
        "parts": (torch.int64, (groups * programs * dim,)),
        "total": (torch.float32, (groups * dim,)),
        "foreseen": (torch.float64, (groups * cfg.forecast,)),
        "lowest": (torch.float64, (groups * programs,)),
        "reached": (torch.int64, (groups * programs,)),
        "picks": (torch.int32, (groups * block,)),
        "control": (torch.int32, (groups * CONTROL.value,)),
    }
