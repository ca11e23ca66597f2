# SPDX-License-Identifier: Apache-2.0
"""One launch per phase of the min-sum greedy; see `_steps`."""

from __future__ import annotations

import triton
import triton.language as tl

from . import _candidates as candidates
from . import _products as tiles
from . import min_sum_phases as phases
from ._common import program, segment
from ._group import FOLD, GRAM, OPEN, STOP, accept, group_memory
from ._steps import COUNT, FILLED, FOLDED, PROPOSED, STAGE, WORDS

# Before the rounds: the sums over all tokens, where there are no seeds.
ONCE = ("begin", "add", "sum")


@triton.jit
def min_sum_step(
    known,
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
    cosines, parts, total, foreseen, lowest, reached, stride_f = phases.group_sums(
        seg, programs, cosines, parts, total, foreseen, lowest, reached, longest, D, COLUMNS
    )
    first, _, origin, base, length, _, slots, slot = segment(
        seg, table, N, stride_b, stride_n, 0, k
    )
    x, inv = visual + origin, inv_norm + first
    s, m = sums + first, costs + first
    own_seeds = seeds + tl.cast(seg, tl.int64) * num_seeds
    if PHASE == "begin":
        stage = phases.begin(inv, own_seeds, num_seeds, s, m, length, slots, me, programs, OWN)
        count = 0
        folded = num_seeds + 0
        if stage == FOLD:
            folded = 0
            count = phases.seed_columns(own_seeds, num_seeds, 0, columns, length, COLUMNS)
        elif stage == OPEN:
            phases.add_directions(
                x, inv, parts, length, D, stride_n, me, programs, SUM_ROWS, CHANNELS
            )
        tl.store(known + STAGE, stage)
        tl.store(known + COUNT, count)
        tl.store(known + FILLED, 0)
        tl.store(known + FOLDED, folded)
        tl.store(known + PROPOSED, 0)
        return
    if PHASE == "add" and stage == OPEN:
        phases.add_parts(parts, total, D, me, programs, SUM_ROWS, CHANNELS)
    if PHASE == "sum" and stage == OPEN:
        phases.sum_over_all(x, inv, total, s, length, D, stride_n, me, programs, NORM_ROWS, NORM_K)
    count = tl.load(known + COUNT).to(tl.int32)
    folded = tl.load(known + FOLDED).to(tl.int32)
    done = tl.load(known + FILLED).to(tl.int32)
    if PHASE == "products":
        tiles.products(
            stage, x, inv, m, columns, count, gram, length, D, stride_n, me, programs,
            cosines, stride_f, 0, BLOCK, ROWS, COLS, BLOCK_K, CHUNK, SPLIT,
        )  # fmt: skip
        if stage != GRAM and folded >= num_seeds:
            phases.compare(
                s, cosines, stride_f, columns, foreseen, count, reached, lowest, length, me,
                programs, OWN_ROWS, AHEAD,
            )  # fmt: skip
    if PHASE == "scale" and stage == GRAM:
        tiles.scale(inv, columns, count, gram, D, me, programs, BLOCK, CHUNK, SPLIT)
    if PHASE == "chain" and stage == GRAM:
        phases.foresee(
            s, m, columns, count, gram, picks, foreseen, control, done, slots,
            BLOCK, COLUMNS, COPIES,
        )  # fmt: skip
    if PHASE == "settle":
        if stage == GRAM:
            stage, count, _done = accept(picks, control, columns, slots, BLOCK)
        elif folded < num_seeds:
            phases.absorb(
                stage, -1, s, m, cosines, stride_f, columns, count, length, me, programs,
                OWN_ROWS, AHEAD,
            )  # fmt: skip
            folded += COLUMNS
            count = phases.seed_columns(own_seeds, num_seeds, folded, columns, length, COLUMNS)
        else:
            stage, done = phases.settle(
                stage, s, m, cosines, stride_f, columns, reached, lowest, indices + slot, base,
                done, slots, length, me, programs, PROGRAMS, COLUMNS, OWN_ROWS, AHEAD,
            )  # fmt: skip
            if stage != STOP:
                candidates.propose(FOLD, m, None, proposals, length, me, programs, WIDTH, OWN)
                tl.store(known + PROPOSED, 1)
        tl.store(known + STAGE, stage)
        tl.store(known + COUNT, count)
        tl.store(known + FILLED, done)
        tl.store(known + FOLDED, folded)
    if PHASE == "choose" and tl.load(known + PROPOSED) == 1:
        edge = tl.full([], 0, tl.int64)
        stage, count, _best, _edge, _shift = candidates.choose(
            FOLD, None, proposals, columns, count, edge, None, 0, None, length, programs,
            BLOCK, WIDTH, PROGRAMS, 1, 0,
        )  # fmt: skip
        tl.store(known + STAGE, stage)
        tl.store(known + COUNT, count)
        tl.store(known + PROPOSED, 0)
