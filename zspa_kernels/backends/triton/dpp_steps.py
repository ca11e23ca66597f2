# SPDX-License-Identifier: Apache-2.0
"""One launch per phase of the determinantal greedy; see `_steps`."""

from __future__ import annotations

import triton
import triton.language as tl

from . import _candidates as candidates
from . import _products as tiles
from . import dpp_phases as phases
from ._common import program, segment
from ._group import FOLD, GRAM, STOP, accept, group_memory, own_places
from ._steps import COUNT, EDGE, FOLDED, PROPOSED, STAGE, WORDS


@triton.jit
def dpp_step(
    known,
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
    PHASE: tl.constexpr,
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
    """One phase of every group; a group is a segment."""
    seg, me = program(programs, REVERSED)
    known += (seg * programs + me) * WORDS
    if PHASE != "begin":
        stage = tl.load(known + STAGE).to(tl.int32)
        if stage == STOP:
            return
        if PHASE == "chain" and me > 0:
            return
    proposals, columns, gram, picks, control = group_memory(
        seg, me, programs, proposals, columns, gram, picks, control, D,
        BLOCK, CHUNK, WIDTH, SPLIT,
    )  # fmt: skip
    lanes += seg * BLOCK
    lefts += seg * 2 * BLOCK
    stride_f = (programs * own_places(longest, programs)).to(tl.int64)
    first, tokens, origin, base, length, _, slots, slot = segment(
        seg, table, N, stride_b, stride_n, 0, k
    )
    inv = inv_norm + first
    r = residual + first
    m = costs + first
    factor = cholesky + slot * stride_f
    panel += slot * BLOCK
    scales += slot
    w = None
    if weights is not None:
        w = weights + tokens
    if PHASE == "begin":
        phases.begin(inv, w, r, m, control, length, me, programs, OWN)
        tl.store(known + STAGE, tl.where(slots > 0, FOLD, STOP))
        tl.store(known + COUNT, 0)
        tl.store(known + FOLDED, 0)
        tl.store(known + EDGE, 0)
        tl.store(known + PROPOSED, 0)
        return
    count = tl.load(known + COUNT).to(tl.int32)
    filled = tl.load(known + FOLDED).to(tl.int32)
    if PHASE == "products":
        tiles.products(
            stage, visual + origin, inv, m, columns, count, gram, length, D, stride_n, me,
            programs, factor + filled * stride_f, stride_f, 0,
            BLOCK, ROWS, COLS, BLOCK_K, CHUNK, SPLIT,
        )  # fmt: skip
        if stage == GRAM:
            phases.gather(
                factor, stride_f, panel, columns, count, filled, length, me, programs, BLOCK, SPAN
            )
    if PHASE == "scale" and stage == GRAM:
        phases.complement(
            inv, columns, count, gram, panel, filled, D, me, programs,
            BLOCK, CHUNK, SPLIT, SPAN, AHEAD,
        )  # fmt: skip
    if PHASE == "chain" and stage == GRAM:
        phases.chain(
            r, m, w, columns, count, tl.load(known + EDGE), gram, panel, scales, filled, picks,
            lanes, lefts, control, indices + slot, base, slots, BLOCK, AHEAD,
        )  # fmt: skip
    if PHASE == "settle":
        if stage == GRAM:
            stage, count, _done = accept(picks, control, columns, slots, BLOCK)
        else:
            phases.substitute(
                r, m, w, factor, stride_f, panel, scales, filled, lanes, count, length, me,
                programs, BLOCK, OWN_ROWS, OWN_COLS, AHEAD,
            )  # fmt: skip
            tl.store(known + FOLDED, filled + count)
            candidates.propose(FOLD, m, None, proposals, length, me, programs, WIDTH, OWN)
            tl.store(known + PROPOSED, 1)
        tl.store(known + STAGE, stage)
        tl.store(known + COUNT, count)
    if PHASE == "choose" and tl.load(known + PROPOSED) == 1:
        edge = tl.load(known + EDGE)
        stage, count, _best, edge, _shift = candidates.choose(
            FOLD, None, proposals, columns, count, edge, None, 0, None, length, programs,
            BLOCK, WIDTH, PROGRAMS, 1, 0,
        )  # fmt: skip
        tl.store(known + STAGE, stage)
        tl.store(known + COUNT, count)
        tl.store(known + EDGE, edge)
        tl.store(known + PROPOSED, 0)
