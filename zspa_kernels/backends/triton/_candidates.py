# SPDX-License-Identifier: Apache-2.0
"""The phases that choose the next columns: what each program proposes, and what is chosen of it."""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import INF, KEY_END, order_key
from ._group import (
    FINISH,
    FOLD,
    GRAM,
    KEY_LAST,
    LAST_ROW,
    NEAR,
    OPEN,
    STOP,
    cost,
    nothing_selected,
    own_rows,
)

PART = tl.constexpr(16)  # candidates that each is compared with at a time; all at once would spill
OTHERS = tl.constexpr(32)  # own rows that OWN of them are compared with at a time


@triton.jit
def propose(
    stage,
    nearest,
    weights,
    proposals,
    length,
    me,
    programs,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
):
    """The WIDTH best keys of own rows, in order: a key's place is the number of smaller ones.

    Rows past the end have keys too, so there are always WIDTH.
    """
    rows = tl.maximum(own_rows(length, me, programs), WIDTH)
    t = tl.arange(0, OWN)
    s = tl.arange(0, OTHERS)
    for t0 in range(0, rows, OWN):
        key = row_keys(stage, nearest, weights, length, me + programs * (t0 + t))
        smaller = tl.full([OWN, OTHERS], 0, tl.int32)
        for s0 in range(0, rows, OTHERS):
            other = row_keys(stage, nearest, weights, length, me + programs * (s0 + s))
            smaller += (other[None, :] < key[:, None]).to(tl.int32)
        place = tl.sum(smaller, 1)
        tl.store(proposals + me * WIDTH + place, key, mask=place < WIDTH)


@triton.jit
def row_keys(stage, nearest, weights, length, i):
    """Keys of the rows `i`; the heaviest row comes first at stage OPEN."""
    value = tl.load(nearest + i, mask=i < length, other=INF)
    # While DivPrune's seed is looked for there are no weights.
    if weights is not None:
        w = tl.load(weights + i, mask=i < length, other=0.0)
        value = cost(tl.where((stage == OPEN) & (value < INF), 0.0, value), w)
    return order_key(value, i)


@triton.jit
def choose(
    stage,
    inv_norm,
    proposals,
    columns,
    count,
    best,
    gram,
    shift,
    closest,
    length,
    programs,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PROGRAMS: tl.constexpr,
    FINISHED: tl.constexpr,
    VOTES: tl.constexpr,
):
    """The next columns and stage, from what all programs proposed. Every program does it by itself.

    Any bound that no program's last proposal lies below is a bound of the rows that were not
    proposed. The w-th proposals of all programs give WIDTH such bounds; the largest that at most
    BLOCK keys lie below is taken (one key a program lies below the first but one, so programs must
    not be more than BLOCK).

    `best`: the key of DivPrune's seed as far as it is known. `shift`: 0 until finished tokens have
    told how far apart similar ones lie.

    Returns (stage, count, best, edge, shift).
    """
    p = tl.arange(0, PROGRAMS)[:, None]
    at = p * WIDTH + tl.arange(0, WIDTH)[None, :]
    table = tl.load(proposals + at, mask=p + at * 0 < programs, other=KEY_LAST)
    bounds = tl.minimum(tl.min(table, 0), KEY_END)  # [WIDTH], ascending
    keys = tl.reshape(table, [PROGRAMS * WIDTH])
    below = tl.sum((keys[:, None] < bounds[None, :]).to(tl.int32), 0)  # [WIDTH]
    edge = tl.max(tl.where(below <= BLOCK, bounds, -KEY_LAST), 0)
    first = tl.min(keys, 0)

    onward = GRAM + 0
    if (stage == NEAR) | (stage == FINISH) | (stage == OPEN):
        onward = FINISH + 0
        if stage == FINISH:
            final, votes, offset = finished(
                inv_norm, columns, count, gram, closest, length, programs, BLOCK, FINISHED
            )
            best = tl.minimum(best, final)
            # More rows can still win than one pass would finish.
            if (shift == 0) & (votes >= VOTES) & (edge < best):
                onward = NEAR + 0
                shift = offset
        if stage == OPEN:
            best = first
        edge = tl.minimum(edge, best)  # what cannot win any more is not finished
        if first >= tl.minimum(best, KEY_END):
            onward = FOLD + 0
            if best >= KEY_END:
                onward = STOP + 0
    chosen = keys < edge
    count = tl.sum(chosen.to(tl.int32), 0)
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.debug_barrier()  # the old columns have been read
    if onward == FOLD:
        count = 1
        lane = tl.arange(0, BLOCK)
        tl.store(columns + lane, (best & 0xFFFFFFFF).to(tl.int32) + lane * 0, mask=lane == 0)
    else:
        tl.store(columns + place, (keys & 0xFFFFFFFF).to(tl.int32), mask=chosen)
    tl.debug_barrier()
    if count == 0:
        onward = STOP + 0
    return onward, count, best, edge, shift


@triton.jit
def places(columns, count, order, me, programs, BLOCK: tl.constexpr):
    """order[lane]: with which number the key of a candidate names its lane, see `lanes_in_order`.

    The programs share the lanes out.
    """
    other = tl.arange(0, BLOCK)
    j = tl.load(columns + other, mask=other < count, other=0x7FFFFFFF)
    for c0 in range(me, count, programs * PART):
        lane = c0 + programs * tl.arange(0, PART)
        i = tl.load(columns + lane, mask=lane < count, other=-1)
        place = tl.sum((j[None, :] < i[:, None]).to(tl.int32), 1)  # [PART]
        tl.store(order + lane, place * BLOCK + lane, mask=lane < count)


@triton.jit
def edge_by_place(i, ok, edge, BLOCK: tl.constexpr):
    """The edge for keys that name a lane by its `places`: no candidate `i` moves across it."""
    below = tl.sum((ok & (i < (edge & 0xFFFFFFFF))).to(tl.int32), 0)
    return (edge >> 32 << 32) | (below * BLOCK).to(tl.int64)


@triton.jit
def lanes_in_order(columns, i, ok, edge, BLOCK: tl.constexpr):
    """(codes, edge) of the candidates `i` [BLOCK] in `columns`, with which a key names its lane.

    A candidate's key among candidates is (value, place of its index among them, its lane), and the
    edge is what it was, for such keys.
    """
    lane = tl.arange(0, BLOCK)
    count = tl.sum(ok.to(tl.int32), 0)
    place = tl.full([BLOCK], 0, tl.int32)
    for c0 in range(0, count, PART):
        c = c0 + tl.arange(0, PART)
        other = tl.load(columns + c, mask=c < count, other=0x7FFFFFFF)
        place += tl.sum((other[None, :] < i[:, None]).to(tl.int32), 1)
    return place * BLOCK + lane, edge_by_place(i, ok, edge, BLOCK)


@triton.jit
def finished(
    inv_norm,
    columns,
    count,
    gram,
    closest,
    length,
    programs,
    BLOCK: tl.constexpr,
    FINISHED: tl.constexpr,
):
    """What FINISH has found out by multiplying its columns with every row.

    Returns (the smallest of their keys, votes, offset): so many columns have their nearest row that
    many rows away, in either direction. It is the offset with the most votes, the smallest of
    several, but for short ones: blocks of neighbours have most pairs of them.
    """
    lane = tl.arange(0, BLOCK)
    j = tl.load(columns + lane, mask=lane < count, other=0)
    inv = tl.load(inv_norm + j, mask=lane < count, other=-1.0)
    value = nothing_selected(inv)
    nearest = tl.full([BLOCK], LAST_ROW, tl.int32)
    for p0 in range(0, tl.minimum(programs, length), FINISHED):
        p = p0 + tl.arange(0, FINISHED)[:, None]
        live = (p < tl.minimum(programs, length)) & (lane < count)[None, :]
        met = tl.load(gram + p * BLOCK + lane[None, :], mask=live, other=-INF)  # [FINISHED, BLOCK]
        largest = tl.max(met, 0)
        who = tl.load(closest + p * BLOCK + lane[None, :], mask=live, other=LAST_ROW)
        who = tl.min(tl.where(met == largest[None, :], who, LAST_ROW), 0)
        who = tl.where(largest == value, tl.minimum(who, nearest), who)
        nearest = tl.where(largest >= value, who, nearest)
        value = tl.maximum(value, largest)
    offset = tl.abs(nearest - j)
    voter = (lane < count) & (nearest < LAST_ROW) & (offset >= BLOCK // 4)
    same = voter[:, None] & voter[None, :] & (offset[:, None] == offset[None, :])
    # Along the other axis Triton 3.9 counts in local memory.
    votes = tl.sum(same.to(tl.int32), 0).to(tl.int64) << 32
    winner = tl.max(votes - offset, 0)
    votes = (winner >> 32) + 1
    offset = ((votes << 32) - winner).to(tl.int32)
    return tl.min(tl.where(lane < count, order_key(value, j), KEY_LAST), 0), votes, offset
