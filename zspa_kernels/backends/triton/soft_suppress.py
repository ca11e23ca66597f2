# SPDX-License-Identifier: Apache-2.0
"""soft_suppress: each pick has the highest score and lowers the scores of tokens like it.

Algorithm   : one pick at a time (ID-Selection, arXiv 2604.05601: subtract; AdaptPrune, arXiv
              2503.08019: scale, positions). Each program proposes the best of its own rows; all
              meet, find the best proposal, and take from their own rows what it takes.
Inputs      : visual [B, N, D], float32/float16/bfloat16, any row strides; scores [B, N] and
              positions [B, N, 2], any dtype; mask bool [B, N]
Outputs     : int64 indices in the order of taking, [B, k]; slots that get no token stay -1
Work        : a pick multiplies in float64 the rows that it can touch, and reads each once: not
              those taken, beyond the reach, or, once all scores are used up, any. 2 launches, a
              copy or two and 2 fills, 0 syncs; scratch of 36 bytes per token, with positions 52 (no
              N x N matrix)
Mapping     : as diversity: one cooperative launch of groups of programs, one group per segment,
              rows dealt out one by one; one barrier per pick
Numerics    : float64 throughout. A product of many rows with one is as fast as they are read, so
              float32 would gain nothing, and no score has to be bounded. Cosines are rounded to
              2^-40, scores to 2^-40 of the largest one (of itself, by scaling)
Deterministic: yes: picks are those of the formula in float64; losses add up in the order of picks
Limits      : N < 2^31 - 2^20 (block numbers are int32); N * D may exceed 2^31 (int64 addresses)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _scratch
from . import soft_suppress_phases as phases
from ._common import INF, Segments, launch, meet, program, row_strides, segment
from ._exact import halves, joined
from ._group import ARRIVED, CONTROL
from ._steps import greedy_in_steps
from .diversity import group_grid, norms
from .diversity_config import registers
from .soft_suppress_config import config
from .soft_suppress_steps import PHASES, soft_suppress_step


@triton.jit(
    do_not_specialize=[
        "segments", "N", "k", "scaled", "sharpness_high", "sharpness_low", "narrow_high",
        "narrow_low", "reach_high", "reach_low", "programs",
    ]
)  # fmt: skip
def _soft_suppress_greedy_kernel(
    visual,
    inv_norm,
    scores,
    places,
    indices,
    start,
    lost,
    lengths,
    best,
    who,
    control,
    segments,
    N,
    D,
    stride_b,
    stride_n,
    k,
    scaled,
    sharpness_high,
    sharpness_low,
    narrow_high,
    narrow_low,
    reach_high,
    reach_low,
    programs,
    PROGRAMS: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    AHEAD: tl.constexpr,
    HIP: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """All phases in one launch: a group of programs does its segments one after another."""
    group, me = program(programs, REVERSED)
    best, who = phases.group_memory(group, programs, best, who)
    arrivals = control + group * CONTROL + ARRIVED
    sharpness = joined(sharpness_high, sharpness_low)
    narrow, reach = joined(narrow_high, narrow_low), joined(reach_high, reach_low)
    meetings = 0
    for seg in range(group, segments, tl.num_programs(0) // programs):
        first, _, origin, _, length, _, slots, slot = segment(
            seg, None, N, stride_b, stride_n, 0, k
        )
        x, inv = visual + origin, inv_norm + first
        own_start, own_lost, own_lengths = start + first, lost + first, lengths + first
        at = None
        if places is not None:
            at = places + 2 * first
        phases.begin(
            x, inv, scores + first, at, own_start, own_lost, own_lengths, scaled, length, D,
            stride_n, me, programs, LANES, ROWS, WIDE, AHEAD,
        )  # fmt: skip
        done = 0
        more = slots > 0
        while more:
            turn = meetings
            phases.propose(own_start, own_lost, best, who, turn, length, me, programs, LANES)
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # all proposals are there
            score, pick = phases.choose(best, who, turn, programs, PROGRAMS)
            more = score > -INF
            if more:
                if me == 0:
                    tl.store(indices + slot + done, pick.to(tl.int64))
                done += 1
                more = done < slots
                if more:
                    phases.absorb(
                        x, inv, at, own_start, own_lost, own_lengths, score, pick, scaled,
                        sharpness, narrow, reach, length, D, stride_n, me, programs,
                        ROWS, WIDE, AHEAD,
                    )  # fmt: skip


def soft_suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    sharpness: float,
    rule: str,
    positions: Tensor | None,
    spread: float,
    reach: float,
    visual_mask: Tensor | None,
) -> Tensor:
    """See `zspa_kernels.soft_suppress`."""
    batch, n, dim = visual.shape
    device = visual.device
    indices = torch.full((batch, k), -1, dtype=torch.int64, device=device)
    if indices.numel() == 0:
        return indices
    segments = Segments(batch, n, 0, k)
    cfg = config(dim, visual.element_size(), hip=torch.version.hip is not None)
    groups, programs = group_grid(cfg, segments, device)
    rows = (torch.float64, visual.shape[:-1])
    plan: _scratch.Plan = {
        "inv_norm": (torch.float32, visual.shape[:-1]),
        **dict.fromkeys(("scores", "start", "lost", "lengths"), rows),
        "best": (torch.float64, (groups * 2 * programs,)),
        "who": (torch.int32, (groups * 2 * programs,)),
        "control": (torch.int32, (groups * CONTROL.value,)),
    }
    if positions is not None:
        plan["places"] = (torch.float64, positions.shape)
    scratch = _scratch.allocate(device, plan)
    scratch["scores"].copy_(scores)
    if positions is not None:
        scratch["places"].copy_(positions)
    scratch["control"].zero_()
    norms(cfg, visual, segments, visual_mask, None, scratch["inv_norm"])
    narrow = -0.5 / (spread * spread)  # times a squared distance: the logarithm of a weight
    arguments = (
        *(visual, scratch["inv_norm"], scratch["scores"], scratch.get("places"), indices),
        *(scratch[name] for name in ("start", "lost", "lengths", "best", "who", "control")),
        *(batch, n, dim, *row_strides(visual), k, int(rule == "scale")),
        *(*halves(sharpness), *halves(narrow), *halves(reach * reach), programs),
    )
    options = {
        "PROGRAMS": cfg.groups[-1].programs,
        "LANES": cfg.lanes,
        "ROWS": cfg.own_rows,
        "WIDE": cfg.wide,
        "AHEAD": cfg.ahead,
        "HIP": cfg.hip,
        "REVERSED": cfg.reverse,
        "num_warps": cfg.warps,
        **registers(cfg.hip),
    }
    if device.type == "cpu":
        step = soft_suppress_step
        greedy_in_steps(
            step, launch, groups * programs, device, *arguments, phases=PHASES, **options
        )
    else:
        kernel = _soft_suppress_greedy_kernel
        launch(kernel, groups * programs, device, *arguments, together=True, **options)
    return indices
