# SPDX-License-Identifier: Apache-2.0
"""One launch per phase of soft suppression; see `_steps`."""

from __future__ import annotations

import triton
import triton.language as tl

from . import soft_suppress_phases as phases
from ._common import INF, program, segment
from ._exact import joined
from ._group import FOLD, STOP
from ._steps import FILLED, STAGE, WORDS

PHASES = ("propose", "absorb")


@triton.jit
def soft_suppress_step(
    known,
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
    PHASE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDE: tl.constexpr,
    AHEAD: tl.constexpr,
    HIP: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """One phase of every group; a group is a segment."""
    seg, me = program(programs, REVERSED)
    known += (seg * programs + me) * WORDS
    best, who = phases.group_memory(seg, programs, best, who)
    first, _, origin, _, length, _, slots, slot = segment(seg, None, N, stride_b, stride_n, 0, k)
    x, inv = visual + origin, inv_norm + first
    own_start, own_lost, own_lengths = start + first, lost + first, lengths + first
    at = None
    if places is not None:
        at = places + 2 * first
    if PHASE == "begin":
        phases.begin(
            x, inv, scores + first, at, own_start, own_lost, own_lengths, scaled, length, D,
            stride_n, me, programs, LANES, ROWS, WIDE, AHEAD,
        )  # fmt: skip
        tl.store(known + STAGE, FOLD)
        tl.store(known + FILLED, 0)
        return
    if tl.load(known + STAGE) == STOP:
        return
    done = tl.load(known + FILLED).to(tl.int32)
    if PHASE == "propose":
        phases.propose(own_start, own_lost, best, who, done, length, me, programs, LANES)
    if PHASE == "absorb":
        score, pick = phases.choose(best, who, done, programs, PROGRAMS)
        more = score > -INF
        if more:
            if me == 0:
                tl.store(indices + slot + done, pick.to(tl.int64))
            done += 1
            more = done < slots
            if more:
                phases.absorb(
                    x, inv, at, own_start, own_lost, own_lengths, score, pick, scaled,
                    joined(sharpness_high, sharpness_low), joined(narrow_high, narrow_low),
                    joined(reach_high, reach_low), length, D, stride_n, me, programs,
                    ROWS, WIDE, AHEAD,
                )  # fmt: skip
        tl.store(known + FILLED, done)
        tl.store(known + STAGE, tl.where(more, FOLD, STOP))
