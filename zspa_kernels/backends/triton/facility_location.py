# SPDX-License-Identifier: Apache-2.0
"""facility_location: each pick adds most to how well tokens and given rows are covered.

Algorithm   : gain_j = w_j (sum_m max(0, b_mj - best_m) + scale / V sum_i max(0, c_ij - best_i)),
              by lazy greedy (Minoux 1978): a gain only falls, so an old one is an upper bound.
              Each program keeps the gains of its own tokens and finds its best one; the best of
              all programs is picked. No blocks: candidates would need no Gram matrix, all cosines
              are there already
Inputs      : visual [B, N, D] or [T, D], float32/float16/bfloat16, any row strides; benefits
              float32 [B, M, N] or [M, T]; weights float32 [B, N] or [T]; mask bool [B, N]; table
              int64 [S, 5]
Outputs     : int64 indices in pick order, [B, k] or [T']; slots that get no token stay -1
Work        : 2 N^2 D flops, since already the first gains add up all cosines; then a read of N
              floats for each evaluation and, in each program, for each pick; 4 launches (with a
              temperature 5) and 2 fills, 0 syncs; scratch of 4 N^2 bytes an image, of all images of
              the call at once, and 4 (N + M) a program
Mapping     : matrix: program <-> every p-th tile of a segment; greedy: one cooperative launch of
              groups of programs, a group a segment, tokens dealt out one by one, one meeting a pick
Numerics    : dots and gains in float32; the covered tokens are numbered without gaps, and a gain is
              summed in the order of these numbers. Equal rows have equal columns, because the
              diagonal is computed like any entry, and a gain is monotone in what is covered. Ties
              to the lowest index
Deterministic: yes: nothing is added up across programs
Limits      : N < 2^31 - 2^20 (block numbers are int32); N * N and N * D may exceed 2^31
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _scratch
from . import facility_location_phases as phases
from ._common import (
    KEY_END,
    Segments,
    launch,
    meet,
    ordered_sum,
    pair_dots,
    program,
    row_strides,
    segment,
)
from ._group import ARRIVED, CONTROL
from ._steps import greedy_in_steps
from .diversity import group_grid, norms
from .diversity_config import registers
from .facility_location_config import Config, config, programs
from .facility_location_steps import facility_location_step


@triton.jit(do_not_specialize=["N"])
def _facility_location_list_kernel(
    inv_norm, table, places, order, directed, N, BLOCK: tl.constexpr, REVERSED: tl.constexpr
):  # fmt: skip
    """Numbers the tokens that are covered and cover: places[token], -1 for none; order[place]."""
    seg, _me = program(1, REVERSED)
    first, _, _, _, length, _, _, _ = segment(seg, table, N, 0, 0, 0, 0)
    count = 0
    for i0 in range(0, length, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        counts = tl.load(inv_norm + first + i, mask=i < length, other=-1.0) > 0.0
        place = count + tl.cumsum(counts.to(tl.int32), 0) - 1
        tl.store(places + first + i, tl.where(counts, place, -1), mask=i < length)
        tl.store(order + first + place, i, mask=counts)
        count += tl.sum(counts.to(tl.int32), 0)
    tl.store(directed + seg, count)


@triton.jit(do_not_specialize=["N", "programs"])
def _facility_location_matrix_kernel(
    visual,
    inv_norm,
    table,
    order,
    directed,
    matrix,
    N,
    D,
    stride_b,
    stride_n,
    stride,
    temperature,
    programs,
    SOFT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """matrix[j][i]: how well the token of place j covers that of place i.

    SOFT: exp((cosine - 1) / temperature), not yet divided by its sum over j.
    """
    seg, me = program(programs, REVERSED)
    first, _, origin, _, _, _, _, _ = segment(seg, table, N, stride_b, stride_n, 0, 0)
    count = tl.load(directed + seg)
    across = tl.cdiv(count, COLS)
    for task in range(me, tl.cdiv(count, ROWS) * across, programs):
        row = task // across * ROWS + tl.arange(0, ROWS)
        col = task % across * COLS + tl.arange(0, COLS)
        i = tl.load(order + first + row, mask=row < count, other=0)
        j = tl.load(order + first + col, mask=col < count, other=0)
        x = visual + origin + (i.to(tl.int64) * stride_n)[:, None]
        y = visual + origin + (j.to(tl.int64) * stride_n)[:, None]
        dots = pair_dots(x, row < count, y, col < count, D, ROWS, COLS, BLOCK_K)
        inv_i = tl.load(inv_norm + first + i)
        inv_j = tl.load(inv_norm + first + j)
        scale = inv_i[:, None] * inv_j[None, :]
        if SOFT:
            value = tl.exp(
                tl.fma(dots, scale, tl.full([ROWS, COLS], -1.0, tl.float32)) / temperature
            )
        else:
            value = tl.maximum(dots * scale, 0.0)
        at = matrix + (first + col)[None, :] * stride + row[:, None]
        tl.store(at, value, mask=(row < count)[:, None] & (col < count)[None, :])


@triton.jit(do_not_specialize=["N", "programs"])
def _facility_location_soft_kernel(
    table, directed, matrix, N, stride, programs,
    ROWS: tl.constexpr, COLS: tl.constexpr, REVERSED: tl.constexpr,
):  # fmt: skip
    """Each covered token's similarities are divided by their sum.

    Here and not where they are used: there a product before a difference might be fused with it,
    and something would be left of what is covered exactly.
    """
    seg, me = program(programs, REVERSED)
    first, _, _, _, _, _, _, _ = segment(seg, table, N, 0, 0, 0, 0)
    count = tl.load(directed + seg)
    matrix += first * stride
    for block in range(me * ROWS, count, programs * ROWS):
        row = block + tl.arange(0, ROWS)
        sums = tl.full([ROWS, COLS], 0.0, tl.float32)
        for c0 in range(0, count, COLS):
            col = (c0 + tl.arange(0, COLS)).to(tl.int64)
            ok = (row < count)[:, None] & (col < count)[None, :]
            sums += tl.load(matrix + col[None, :] * stride + row[:, None], mask=ok, other=0.0)
        factor = tl.div_rn(tl.full([ROWS], 1.0, tl.float32), ordered_sum(sums, ROWS, COLS))
        for c0 in range(0, count, COLS):
            col = (c0 + tl.arange(0, COLS)).to(tl.int64)
            ok = (row < count)[:, None] & (col < count)[None, :]
            at = matrix + col[None, :] * stride + row[:, None]
            tl.store(at, tl.load(at, mask=ok, other=0.0) * factor[:, None], mask=ok)


@triton.jit(do_not_specialize=["segments", "N", "M", "k", "programs"])
def _facility_location_greedy_kernel(
    inv_norm,
    benefits,
    weights,
    indices,
    table,
    places,
    directed,
    matrix,
    costs,
    seen,
    covered,
    answered,
    proposals,
    control,
    segments,
    N,
    M,
    stride,
    scale,
    k,
    programs,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    LANES: tl.constexpr,
    OWN: tl.constexpr,
    MEMBERS: tl.constexpr,
    HIP: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """The picks of all segments: a group of programs does its segments one after another.

    The programs of a group propose in two places in turn: who is late may still read the last one.
    """
    group, me = program(programs, REVERSED)
    covered += (group * programs + me) * stride
    answered += (group * programs + me).to(tl.int64) * M
    proposals += group * programs * 2
    arrivals = control + group * CONTROL + ARRIVED
    meetings = 0
    for seg in range(group, segments, tl.num_programs(0) // programs):
        first, tokens, _, base, length, _, slots, slot = segment(seg, table, N, 0, 0, 0, k)
        inv, m, age, place = inv_norm + first, costs + first, seen + first, places + first
        own = matrix + first * stride
        b = phases.own_benefits(benefits, table, tokens, M)
        w = None
        if weights is not None:
            w = weights + tokens
        count = tl.load(directed + seg)
        share = phases.share_of(count, M, scale)
        phases.begin(
            inv, m, age, covered, answered, count, M, length, me, programs, OWN, WIDTH, WORDS
        )
        done = 0
        version = 0
        while done < slots:
            key = phases.propose(
                m, age, version, w, place, own, stride, covered, count, b, answered, M, N, share,
                length, me, programs, LANES, OWN, WIDTH, WORDS,
            )  # fmt: skip
            turn = proposals + (meetings & 1) * programs
            tl.store(turn + me, key)
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # all proposals are there
            best = phases.lowest(turn, programs, MEMBERS)
            if best < KEY_END:
                pick = best & 0xFFFFFFFF
                version += phases.take(
                    pick, m, place, own, stride, covered, count, b, answered, M, N, me, programs,
                    WIDTH, WORDS,
                )  # fmt: skip
                if me == 0:
                    tl.store(indices + slot + done, base + pick)
                done += 1
            else:
                done = slots


def facility_location(
    visual: Tensor,
    k: int,
    benefits: Tensor | None,
    weights: Tensor | None,
    visual_mask: Tensor | None,
    temperature: float,
    scale: float,
) -> Tensor:
    """See `zspa_kernels.facility_location`."""
    batch, n, _ = visual.shape
    indices = torch.full((batch, k), -1, dtype=torch.int64, device=visual.device)
    if indices.numel() > 0:
        segments = Segments(batch, n, 0, k)
        given = (benefits, weights, visual_mask)
        _greedy(visual, segments, n, indices, *given, temperature, scale)
    return indices


def facility_location_varlen(
    visual: Tensor,
    table: Tensor,
    total_k: int,
    max_seqlen: int,
    benefits: Tensor | None,
    weights: Tensor | None,
    temperature: float,
    scale: float,
) -> Tensor:
    """See `zspa_kernels.facility_location_varlen`."""
    indices = torch.full((total_k,), -1, dtype=torch.int64, device=visual.device)
    if total_k > 0 and table.shape[0] > 0:
        segments = Segments(table.shape[0], visual.shape[0], 0, 0, table)
        longest = min(max_seqlen, segments.rows)
        _greedy(visual, segments, longest, indices, benefits, weights, None, temperature, scale)
    return indices


def _greedy(
    visual: Tensor,
    segments: Segments,
    longest: int,
    indices: Tensor,
    benefits: Tensor | None,
    weights: Tensor | None,
    mask: Tensor | None,
    temperature: float,
    scale: float,
) -> None:
    """Pick tokens into the slots of `indices`; no segment has more than `longest`."""
    device, n, table = visual.device, segments.rows, segments.table
    cfg = config(visual.shape[-1], visual.element_size(), hip=torch.version.hip is not None)
    groups, members = group_grid(cfg.shared, segments, device)
    words = 0 if benefits is None else benefits.shape[-2]
    stride = 16 * -(-longest // 16)  # of the matrix: what Triton's kernels are specialised for
    scratch = _scratch.allocate(device, _plan(visual, segments, stride, words, groups, members))
    norms(cfg.shared, visual, segments, mask, weights, scratch["inv_norm"])
    launch(
        _facility_location_list_kernel,
        segments.count,
        device,
        *(scratch["inv_norm"], table, scratch["places"], scratch["order"], scratch["directed"], n),
        BLOCK=cfg.list_block,
        REVERSED=cfg.shared.reverse,
    )
    _compare(cfg, visual, segments, longest, stride, temperature, scratch)
    scratch["control"].zero_()
    kept = ("places", "directed", "matrix", "costs", "seen", "covered", "answered", "proposals")
    arguments = (
        *(scratch["inv_norm"], scratch["costs"] if benefits is None else benefits, weights),
        *(indices, table, *(scratch[name] for name in kept), scratch["control"]),
        *(segments.count, n, words, stride, float(scale), segments.k_diverse, members),
    )
    options: dict[str, Any] = {
        "WIDTH": cfg.width,
        "WORDS": cfg.words,
        "LANES": cfg.lanes,
        "OWN": cfg.own,
        "MEMBERS": cfg.members,
        "HIP": cfg.shared.hip,
        "REVERSED": cfg.shared.reverse,
        "num_warps": cfg.greedy_warps,
        **registers(cfg.shared.hip),
    }
    if device.type == "cpu":
        step, two = facility_location_step, ("propose", "take")
        greedy_in_steps(step, launch, groups * members, device, *arguments, phases=two, **options)
    else:
        kernel = _facility_location_greedy_kernel
        launch(kernel, groups * members, device, *arguments, together=True, **options)


def _compare(
    cfg: Config,
    visual: Tensor,
    segments: Segments,
    longest: int,
    stride: int,
    temperature: float,
    scratch: dict[str, Tensor],
) -> None:
    """How well the tokens of each segment cover each other, into the matrix."""
    n, table, device = segments.rows, segments.table, visual.device
    down, across = -(-longest // cfg.rows), -(-longest // cfg.cols)
    each = programs(cfg, down * across, segments.count)
    launch(
        _facility_location_matrix_kernel,
        segments.count * each,
        device,
        *(visual, scratch["inv_norm"], table, scratch["order"], scratch["directed"]),
        *(scratch["matrix"], n, visual.shape[-1], *row_strides(visual), stride),
        *(float(temperature), each),
        SOFT=temperature > 0,
        ROWS=cfg.rows,
        COLS=cfg.cols,
        BLOCK_K=cfg.block_k,
        REVERSED=cfg.shared.reverse,
        num_warps=cfg.warps,
        num_stages=cfg.stages,
    )
    if temperature > 0:
        each = programs(cfg, -(-longest // cfg.soft_rows), segments.count)
        launch(
            _facility_location_soft_kernel,
            segments.count * each,
            device,
            *(table, scratch["directed"], scratch["matrix"], n, stride, each),
            ROWS=cfg.soft_rows,
            COLS=cfg.soft_cols,
            REVERSED=cfg.shared.reverse,
            num_warps=cfg.greedy_warps,
        )


def _plan(
    visual: Tensor, segments: Segments, stride: int, words: int, groups: int, members: int
) -> _scratch.Plan:
    """The scratch memory. The rows of the matrix are those of the segments, one after another."""
    rows = visual.shape[:-1]
    return {
        "inv_norm": (torch.float32, rows),
        "places": (torch.int32, rows),
        "order": (torch.int32, rows),
        "directed": (torch.int32, (segments.count,)),
        "matrix": (torch.float32, (rows.numel() * stride,)),
        "costs": (torch.float32, rows),
        "seen": (torch.int32, rows),
        "covered": (torch.float32, (groups * members * stride,)),
        "answered": (torch.float32, (groups * members * words,)),
        "proposals": (torch.int64, (groups * members * 2,)),
        "control": (torch.int32, (groups * CONTROL.value,)),
    }
