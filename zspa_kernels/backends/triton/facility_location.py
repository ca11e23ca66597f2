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
              temperature 5) and 2 fills, 0 syncs; scratch of 4 N^2 bytes per image in flight and
              4 (N + M) per program. Images whose matrices would take more than 256 MiB take turns,
              with a pair of launches per turn
Mapping     : matrix: program <-> every p-th tile of a segment; greedy: a cooperative launch of
              groups of programs, one group per segment, tokens dealt out one by one, and one
              barrier per pick
Numerics    : dots and gains in float32; the covered tokens are numbered without gaps, and a gain is
              summed in the order of these numbers. Equal rows have equal columns, because the
              diagonal is computed like any entry, and a gain is monotone in what is covered. Ties
              to the lowest index
Deterministic: yes: nothing is added up across programs
Limits      : N < 2^31 - 2^20 (block numbers are int32); N * N and N * D may exceed 2^31
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _scratch
from . import facility_location_matrix as matrices
from . import facility_location_phases as phases
from ._common import KEY_END, Segments, launch, meet, program, segment
from ._group import ARRIVED, CONTROL
from ._steps import greedy_in_steps
from .diversity import group_grid, norms
from .diversity_config import registers
from .facility_location_config import config, in_flight
from .facility_location_steps import facility_location_step


@triton.jit(do_not_specialize=["start", "stop", "N", "M", "k", "programs"])
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
    start,
    stop,
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
    """The picks of some segments: a group of programs does its segments one after another.

    The programs of a group propose in two places in turn: who is late may still read the last one.
    """
    group, me = program(programs, REVERSED)
    covered += (group * programs + me) * stride
    answered += (group * programs + me).to(tl.int64) * M
    proposals += group * programs * 2
    arrivals = control + group * CONTROL + ARRIVED
    meetings = 0
    for seg in range(start + group, stop, tl.num_programs(0) // programs):
        first, tokens, _, base, length, _, slots, slot = segment(seg, table, N, 0, 0, 0, k)
        inv, m, age, place = inv_norm + first, costs + first, seen + first, places + first
        own = phases.own_matrix(matrix, first, start, table, N, stride)
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
    device, n, count = visual.device, segments.rows, segments.count
    cfg = config(visual.shape[-1], visual.element_size(), hip=torch.version.hip is not None)
    stride = 16 * -(-longest // 16)  # of the matrix: what Triton's kernels are specialised for
    rows = visual.shape[:-1].numel()
    flying = in_flight(cfg, rows, longest, stride, count)
    groups, members = group_grid(cfg.shared, replace(segments, count=flying), device)
    words = 0 if benefits is None else benefits.shape[-2]
    scratch = _scratch.allocate(
        device, _plan(visual, count, flying, longest, stride, words, groups, members)
    )
    norms(cfg.shared, visual, segments, mask, weights, scratch["inv_norm"])
    matrices.number(cfg, segments, scratch)
    scratch["control"].zero_()
    kept = ("places", "directed", "matrix", "costs", "seen", "covered", "answered", "proposals")
    before = (
        *(scratch["inv_norm"], scratch["costs"] if benefits is None else benefits, weights),
        *(indices, segments.table, *(scratch[name] for name in kept)),
    )
    after = (n, words, stride, float(scale), segments.k_diverse, members)
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
    for turn, start in enumerate(range(0, count, flying)):
        now = min(flying, count - start)
        matrices.compare(cfg, visual, segments, start, now, longest, stride, temperature, scratch)
        arguments = (*before, scratch["control"][turn], start, start + now, *after)
        programs = min(groups, now) * members
        if device.type == "cpu":
            step, two = facility_location_step, ("propose", "take")
            greedy_in_steps(step, launch, programs, device, *arguments, phases=two, **options)
        else:
            kernel = _facility_location_greedy_kernel
            launch(kernel, programs, device, *arguments, together=True, **options)


def _plan(
    visual: Tensor,
    count: int,
    flying: int,
    longest: int,
    stride: int,
    words: int,
    groups: int,
    members: int,
) -> _scratch.Plan:
    """The scratch memory. The rows of the matrix are those of the segments in flight."""
    rows = visual.shape[:-1]
    return {
        "inv_norm": (torch.float32, rows),
        "places": (torch.int32, rows),
        "order": (torch.int32, rows),
        "directed": (torch.int32, (count,)),
        "matrix": (torch.float32, (min(rows.numel(), flying * longest) * stride,)),
        "costs": (torch.float32, rows),
        "seen": (torch.int32, rows),
        "covered": (torch.float32, (groups * members * stride,)),
        "answered": (torch.float32, (groups * members * words,)),
        "proposals": (torch.int64, (groups * members * 2,)),
        # For each turn: the arrivals at a barrier are counted from 0.
        "control": (torch.int32, (-(-count // flying), groups * CONTROL.value)),
    }
