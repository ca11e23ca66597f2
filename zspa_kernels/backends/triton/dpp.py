# SPDX-License-Identifier: Apache-2.0
"""dpp: greedy MAP of a determinantal point process with kernel w_i w_j cos(i, j).

Algorithm   : Cholesky factorisation that pivots on the largest residual (Chen, Zhang and Zhou
              2018), as a blocked greedy with the picks of the one-at-a-time greedy. A residual only
              falls, so an old one is an upper bound. A pass takes the best tokens as candidates,
              makes their block of the residual matrix, picks inside it while a pick beats every
              other token, and then gives all tokens the new columns of the factor.
              Related: LAPACK xPSTRF, block pivoting of RPCholesky (Epperly, Tropp and Webber).
Inputs      : visual [B, N, D] or [T, D], float32/float16/bfloat16, any row strides; weights float32
              [B, N] or [T]; mask bool [B, N]; table int64 [S, 5]
Outputs     : int64 indices in pick order, [B, k] or [T']; slots that get no token stay -1
Work        : 2 N D + N k flops per pick and one read of V per pass; a pass makes 1 to 128 picks;
              2 launches and 2 fills, 0 syncs; scratch of 4 bytes per token and slot (the factor; no
              N x N matrix), 12 per token, 512 per slot and at most (D/512 + 1) 64 KiB per group
Mapping     : as diversity: one cooperative launch of groups of programs, one group per segment
Numerics    : dots as in diversity; the factor, residuals and roots in float32, an element of the
              factor one chain of multiply-adds in the order of the picks. Weights scale nothing but
              the comparison: the Schur complement of W C W is W S W. Ties to the lowest index
Deterministic: yes: smallest keys do not depend on order, and nothing is added up across programs
Limits      : N < 2^31 - 2^20 (block numbers are int32); N * D and N * k may exceed 2^31
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _candidates as candidates
from . import _products as tiles
from . import _scratch
from . import dpp_phases as phases
from ._common import Segments, launch, meet, program, row_strides, segment
from ._group import ARRIVED, CONTROL, FOLD, GRAM, STOP, accept, group_memory, own_places
from ._steps import greedy_in_steps
from .diversity import group_grid, norms
from .diversity_config import constants, group, registers
from .dpp_config import Config, config
from .dpp_steps import dpp_step


@triton.jit(do_not_specialize=["segments", "N", "longest", "k", "programs"])
def _dpp_greedy_kernel(
    visual,
    inv_norm,
    weights,
    indices,
    table,
    residual,
    costs,
    proposals,
    columns,
    gram,
    cholesky,
    panel,
    scales,
    picks,
    lanes,
    lefts,
    control,
    segments,
    N,
    D,
    stride_b,
    stride_n,
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
    SPAN: tl.constexpr,
    OWN_ROWS: tl.constexpr,
    OWN_COLS: tl.constexpr,
    AHEAD: tl.constexpr,
    HIP: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """All phases in one launch: a group of programs does its segments one after another."""
    group, me = program(programs, REVERSED)
    proposals, columns, gram, picks, control = group_memory(
        group, me, programs, proposals, columns, gram, picks, control, D,
        BLOCK, CHUNK, WIDTH, SPLIT,
    )  # fmt: skip
    lanes += group * BLOCK
    lefts += group * 2 * BLOCK
    stride_f = (programs * own_places(longest, programs)).to(tl.int64)
    arrivals = control + ARRIVED
    meetings = 0
    for seg in range(group, segments, tl.num_programs(0) // programs):
        first, tokens, origin, base, length, _, slots, slot = segment(
            seg, table, N, stride_b, stride_n, 0, k
        )
        x, inv = visual + origin, inv_norm + first
        r, m = residual + first, costs + first
        own_factor, own_panel, own_scales = (
            cholesky + slot * stride_f,
            panel + slot * BLOCK,
            scales + slot,
        )
        w = None
        if weights is not None:
            w = weights + tokens
        phases.begin(inv, w, r, m, control, length, me, programs, OWN)
        stage = tl.where(slots > 0, FOLD, STOP)
        count = 0
        filled = 0
        edge = tl.full([], 0, tl.int64)
        while stage != STOP:
            tiles.products(
                stage, x, inv, m, columns, count, gram, length, D, stride_n, me, programs,
                own_factor + filled * stride_f, stride_f, 0,
                BLOCK, ROWS, COLS, BLOCK_K, CHUNK, SPLIT,
            )  # fmt: skip
            if stage == GRAM:
                phases.gather(
                    own_factor, stride_f, own_panel, columns, count, filled, length, me, programs,
                    BLOCK, SPAN,
                )  # fmt: skip
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all dots are there
                phases.complement(
                    inv, columns, count, gram, own_panel, filled, D, me, programs,
                    BLOCK, CHUNK, SPLIT, SPAN, AHEAD,
                )  # fmt: skip
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # the residual matrix is there
                if me == 0:
                    phases.chain(
                        r, m, w, columns, count, edge, gram, own_panel, own_scales, filled, picks,
                        lanes, lefts, control, indices + slot, base, slots, BLOCK, AHEAD,
                    )  # fmt: skip
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all picks are there
                stage, count, _done = accept(picks, control, columns, slots, BLOCK)
            else:
                phases.substitute(
                    r, m, w, own_factor, stride_f, own_panel, own_scales, filled, lanes, count,
                    length, me, programs, BLOCK, OWN_ROWS, OWN_COLS, AHEAD,
                )  # fmt: skip
                filled += count
                candidates.propose(FOLD, m, None, proposals, length, me, programs, WIDTH, OWN)
                meetings += 1
                meet(arrivals, meetings * programs, HIP)  # all proposals are there
                stage, count, _best, edge, _shift = candidates.choose(
                    FOLD, None, proposals, columns, count, edge, None, 0, None, length, programs,
                    BLOCK, WIDTH, PROGRAMS, 1, 0,
                )  # fmt: skip
        if seg + tl.num_programs(0) // programs < segments:
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # the group's memory is free again


def dpp(visual: Tensor, k: int, weights: Tensor | None, visual_mask: Tensor | None) -> Tensor:
    """See `zspa_kernels.dpp`."""
    batch, n, _ = visual.shape
    indices = torch.full((batch, k), -1, dtype=torch.int64, device=visual.device)
    if indices.numel() > 0:
        _greedy(visual, Segments(batch, n, 0, k), n, indices, weights, visual_mask)
    return indices


def dpp_varlen(
    visual: Tensor, table: Tensor, total_k: int, max_seqlen: int, weights: Tensor | None
) -> Tensor:
    """See `zspa_kernels.dpp_varlen`."""
    indices = torch.full((total_k,), -1, dtype=torch.int64, device=visual.device)
    if total_k > 0:
        segments = Segments(table.shape[0], visual.shape[0], 0, 0, table)
        _greedy(visual, segments, min(max_seqlen, segments.rows), indices, weights, None)
    return indices


def _greedy(
    visual: Tensor,
    segments: Segments,
    longest: int,
    indices: Tensor,
    weights: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Pick tokens into the slots of `indices`; no segment has more than `longest`."""
    device, dim = visual.device, visual.shape[-1]
    if segments.count == 0:
        return
    cfg = config(dim, visual.element_size(), hip=torch.version.hip is not None)
    groups, programs = group_grid(cfg, segments, device)
    size = group(cfg, programs)
    plan = _plan(cfg, visual, indices.numel(), longest, groups, programs)
    scratch = _scratch.allocate(device, plan)
    norms(cfg, visual, segments, mask, weights, scratch["inv_norm"])
    scratch["control"].zero_()
    arguments = (
        *(visual, scratch["inv_norm"], weights, indices, segments.table),
        *(tensor for name, tensor in scratch.items() if name != "inv_norm"),
        *(segments.count, segments.rows, dim, *row_strides(visual)),
        *(longest, segments.k_diverse, programs),
    )
    options = constants(cfg, size) | {
        "SPAN": cfg.span,
        "OWN_ROWS": cfg.own_rows,
        "OWN_COLS": cfg.own_cols,
        "AHEAD": cfg.ahead,
        **registers(cfg.hip),
    }
    if device.type == "cpu":
        greedy_in_steps(dpp_step, launch, groups * programs, device, *arguments, **options)
    else:
        launch(_dpp_greedy_kernel, groups * programs, device, *arguments, together=True, **options)


def _plan(
    cfg: Config, visual: Tensor, slots: int, longest: int, groups: int, programs: int
) -> _scratch.Plan:
    """The scratch memory, in the order of the kernel's arguments."""
    block, dim = cfg.block, visual.shape[-1]
    size = group(cfg, programs)
    chunks = -(-dim // cfg.chunk) if size.split else 1
    places = programs * 4 * -(-longest // (4 * programs))  # `own_places` of all programs
    return {
        "inv_norm": (torch.float32, visual.shape[:-1]),
        "residual": (torch.float32, visual.shape[:-1]),
        "costs": (torch.float32, visual.shape[:-1]),
        "proposals": (torch.int64, (groups * programs * size.width,)),
        "columns": (torch.int32, (groups * programs * block,)),
        "gram": (torch.float32, (groups * chunks * block * block,)),
        # A column of the factor and a row of the panel for each slot: a segment has at most as many
        # columns as slots, and its slots are its own.
        "factor": (torch.float32, (slots * places,)),
        "panel": (torch.float32, (slots * block,)),
        "scales": (torch.float32, (slots,)),
        "picks": (torch.int32, (groups * block,)),
        "lanes": (torch.int32, (groups * block,)),
        "lefts": (torch.float32, (groups * 2 * block,)),
        "control": (torch.int32, (groups * CONTROL.value,)),
    }
