# SPDX-License-Identifier: Apache-2.0
"""The coverage greedy with a launch for each phase, for Triton's interpreter; see `_steps`."""

from __future__ import annotations

import triton
import triton.language as tl

from . import facility_location_phases as phases
from ._common import KEY_END, program, segment
from ._group import FOLD, STOP
from ._steps import FILLED, FOLDED, STAGE
from ._steps import WORDS as KNOWN


@triton.jit
def facility_location_step(
    known,
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
    PHASE: tl.constexpr,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    LANES: tl.constexpr,
    OWN: tl.constexpr,
    MEMBERS: tl.constexpr,
    HIP: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """One phase of every group; a group is a segment."""
    group, me = program(programs, REVERSED)
    seg = start + group
    known += (group * programs + me) * KNOWN
    if PHASE != "begin":
        if tl.load(known + STAGE) == STOP:
            return
    covered += (group * programs + me) * stride
    answered += (group * programs + me).to(tl.int64) * M
    proposals += group * programs * 2
    first, tokens, _, base, length, _, slots, slot = segment(seg, table, N, 0, 0, 0, k)
    m, age, place = costs + first, seen + first, places + first
    own = phases.own_matrix(matrix, first, start, table, N, stride)
    b = phases.own_benefits(benefits, table, tokens, M)
    w = None
    if weights is not None:
        w = weights + tokens
    count = tl.load(directed + seg)
    if PHASE == "begin":
        phases.begin(
            inv_norm + first, m, age, covered, answered, count, M, length, me, programs,
            OWN, WIDTH, WORDS,
        )  # fmt: skip
        tl.store(known + STAGE, tl.where(slots > 0, FOLD, STOP))
        tl.store(known + FILLED, 0)
        tl.store(known + FOLDED, 0)
        return
    version = tl.load(known + FOLDED).to(tl.int32)
    if PHASE == "propose":
        key = phases.propose(
            m, age, version, w, place, own, stride, covered, count, b, answered, M, N,
            phases.share_of(count, M, scale), length, me, programs, LANES, OWN, WIDTH, WORDS,
        )  # fmt: skip
        tl.store(proposals + me, key)
    if PHASE == "take":
        done = tl.load(known + FILLED)
        best = phases.lowest(proposals, programs, MEMBERS)
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
            done = tl.cast(slots, tl.int64)
        tl.store(known + STAGE, tl.where(done < slots, FOLD, STOP))
        tl.store(known + FILLED, done)
        tl.store(known + FOLDED, version)
