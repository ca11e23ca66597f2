# SPDX-License-Identifier: Apache-2.0
"""One launch per phase of the scan by score; see `_steps`."""

from __future__ import annotations

import triton
import triton.language as tl

from . import suppress_phases as phases
from ._common import program, segment
from ._group import GRAM, STOP
from ._steps import COUNT, FILLED, FOLDED, STAGE, WORDS

PHASES = ("compare", "take", "onward")


@triton.jit
def suppress_step(
    known,
    visual,
    inv_norm,
    scores,
    indices,
    order,
    hits,
    above,
    near,
    control,
    segments,
    N,
    D,
    stride_b,
    stride_n,
    k,
    fill,
    over,
    under,
    limit_high,
    limit_low,
    programs,
    PHASE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK_ROWS: tl.constexpr,
    RANK_COLS: tl.constexpr,
    PAIRS: tl.constexpr,
    WIDE: tl.constexpr,
    HIP: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """One phase of every group; a group is a segment."""
    seg, me = program(programs, REVERSED)
    known += (seg * programs + me) * WORDS
    hits, above, near, control = phases.group_memory(
        seg, me, programs, hits, above, near, control, k, BLOCK, ROWS, COLS
    )
    first, _, origin, _, length, _, slots, slot = segment(seg, None, N, stride_b, stride_n, 0, k)
    x, inv, own_order, out = visual + origin, inv_norm + first, order + first, indices + slot
    if PHASE == "begin":
        phases.rank(
            scores + first, inv, own_order, control, length, me, programs, RANK_ROWS, RANK_COLS
        )
        tl.store(known + STAGE, GRAM)
        tl.store(known + FOLDED, 0)
        tl.store(known + FILLED, 0)
        return
    if tl.load(known + STAGE) == STOP:
        return
    pos = tl.load(known + FOLDED).to(tl.int32)
    done = tl.load(known + FILLED).to(tl.int32)
    if PHASE == "compare":
        count = phases.compare(
            x, inv, own_order, out, hits, above, near, pos, done, length, D, stride_n,
            over, under, limit_high, limit_low, me, programs,
            BLOCK, ROWS, COLS, BLOCK_K, CHUNK, PAIRS, WIDE,
        )  # fmt: skip
        tl.store(known + COUNT, count)
        return
    count = tl.load(known + COUNT).to(tl.int32)
    if PHASE == "take" and me == 0:
        phases.take(
            own_order, out, hits, above, control, pos, count, done, slots, length, fill, BLOCK, COLS
        )
    if PHASE == "onward":
        pos, done, more = phases.onward(control, pos, count, slots, length, BLOCK)
        tl.store(known + FOLDED, pos)
        tl.store(known + FILLED, done)
        tl.store(known + STAGE, tl.where(more, GRAM, STOP))
