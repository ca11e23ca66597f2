# SPDX-License-Identifier: Apache-2.0
"""One launch per phase of the blocked greedy; see `_steps`."""

from __future__ import annotations

import triton
import triton.language as tl

from . import _candidates as candidates
from . import _products as tiles
from . import diversity_phases as phases
from ._common import program, segment
from ._group import (
    FINISH,
    FOLD,
    GRAM,
    KEY_LAST,
    NEAR,
    STOP,
    accept,
    dot_memory,
    group_memory,
    seed_list,
)
from ._steps import BEST, COUNT, EDGE, FILLED, FOLDED, PROPOSED, SHIFT, STAGE, WORDS

PHASES = ("products", "update", "scale", "chain", "settle", "choose")


@triton.jit
def diversity_step(
    known,
    visual,
    inv_norm,
    weights,
    seeds,
    indices,
    table,
    nearest,
    proposals,
    columns,
    gram,
    dots,
    closest,
    order,
    picks,
    control,
    segments,
    N,
    D,
    stride_b,
    stride_n,
    num_seeds,
    k_core,
    k_diverse,
    programs,
    in_slots,
    chunks,
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
    UPDATE_ROWS: tl.constexpr,
    UPDATE_OWN: tl.constexpr,
    FINISHED: tl.constexpr,
    VOTES: tl.constexpr,
    COPIES: tl.constexpr,
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
    closest += seg * programs * BLOCK
    order += seg * BLOCK
    first, tokens, origin, base, length, core, diverse, slot = segment(
        seg, table, N, stride_b, stride_n, k_core, k_diverse
    )
    slots = core + diverse
    own_seeds, count_seeds = seed_list(seeds, seg, num_seeds, in_slots, slot, core)
    x = visual + origin
    inv = inv_norm + first
    m = nearest + first
    w = None
    if weights is not None:
        w = weights + tokens
    if PHASE == "begin":
        stage, done, folded = phases.begin(
            inv, m, w, own_seeds, count_seeds, control, base, length, slots, me, programs,
            in_slots, BLOCK,
        )  # fmt: skip
        count = 0
        if stage == FOLD:
            count = phases.seed_columns(
                own_seeds, count_seeds, folded, columns, base, length, BLOCK
            )
        tl.store(known + STAGE, stage)
        tl.store(known + COUNT, count)
        tl.store(known + FILLED, done)
        tl.store(known + FOLDED, folded)
        tl.store(known + BEST, KEY_LAST)
        tl.store(known + EDGE, KEY_LAST)
        tl.store(known + PROPOSED, 0)
        tl.store(known + SHIFT, 0)
        return
    count = tl.load(known + COUNT).to(tl.int32)
    shift = tl.load(known + SHIFT).to(tl.int32)
    updating = (stage == FOLD) | (stage == FINISH)
    own_dots, chunk_size = dot_memory(dots, seg, first, table, N, programs, BLOCK)
    if PHASE == "products" and updating:
        tiles.update_dots(
            stage, x, inv, m, columns, count, own_dots, chunk_size, chunks, length, D, stride_n,
            me, programs, BLOCK, UPDATE_ROWS, COLS, BLOCK_K, CHUNK,
        )  # fmt: skip
    if PHASE == "products" and not updating:
        tiles.products(
            stage, x, inv, m, columns, count, gram, length, D, stride_n, me, programs,
            None, 0, shift, BLOCK, ROWS, COLS, BLOCK_K, CHUNK, SPLIT,
        )  # fmt: skip
        if stage == GRAM:
            candidates.places(columns, count, order, me, programs, BLOCK)
    if PHASE == "update" and updating:
        tiles.update(
            stage, inv, m, columns, count, own_dots, chunk_size, chunks, gram, closest, length,
            me, programs, BLOCK, UPDATE_OWN,
        )  # fmt: skip
    if PHASE == "scale" and stage == GRAM:
        tiles.scale(inv, columns, count, gram, D, me, programs, BLOCK, CHUNK, SPLIT)
    if PHASE == "chain" and stage == GRAM:
        phases.chain(
            m, w, columns, count, order, tl.load(known + EDGE), gram, picks, control,
            indices + slot, base, slots, BLOCK, COPIES,
        )  # fmt: skip
    if PHASE == "settle":
        folded = tl.load(known + FOLDED).to(tl.int32)
        if stage == GRAM:
            stage, count, done = accept(picks, control, columns, slots, BLOCK)
            tl.store(known + FILLED, done)
        elif (stage == FOLD) & (folded + BLOCK < count_seeds):
            folded += BLOCK
            count = phases.seed_columns(
                own_seeds, count_seeds, folded, columns, base, length, BLOCK
            )
        elif (stage == NEAR) & (shift > 0):
            tl.store(known + SHIFT, -shift)
        else:
            folded = count_seeds
            candidates.propose(stage, m, w, proposals, length, me, programs, WIDTH, OWN)
            tl.store(known + PROPOSED, 1)
        tl.store(known + STAGE, stage)
        tl.store(known + COUNT, count)
        tl.store(known + FOLDED, folded)
    if PHASE == "choose" and tl.load(known + PROPOSED) == 1:
        seeding = stage != FOLD
        stage, count, best, edge, shift = candidates.choose(
            stage, inv, proposals, columns, count, tl.load(known + BEST), gram, shift, closest,
            length, programs, BLOCK, WIDTH, PROGRAMS, FINISHED, VOTES,
        )  # fmt: skip
        if seeding & (stage == FOLD):
            stage, done = phases.first_pick(
                inv, m, best, control, indices + slot, base, length, slots,
                tl.load(known + FILLED), me, programs, BLOCK,
            )  # fmt: skip
            tl.store(known + FILLED, done)
        tl.store(known + STAGE, stage)
        tl.store(known + COUNT, count)
        tl.store(known + BEST, best)
        tl.store(known + EDGE, edge)
        tl.store(known + SHIFT, shift)
        tl.store(known + PROPOSED, 0)
