# SPDX-License-Identifier: Apache-2.0
"""The phases of the blocked greedy but for products and candidates: start, chain, picks.

A phase is what the programs of a group do between two of their barriers. In it a program writes
what it owns and what no other program reads before the next barrier, so the order in which the
programs run a phase changes nothing. All pointers are those of the segment or of the group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._candidates import edge_by_place
from ._common import INF, LARGEST, order_bits
from ._group import (
    DONE,
    FOLD,
    LAST_ROW,
    NEAR,
    OPEN,
    PICKED,
    STOP,
    cost,
    nothing_selected,
    own_rows,
)

READ = tl.constexpr(8)  # rows of `gram` that a warp reads at a time
STEPS = tl.constexpr(4)  # picks after which warps agree whether to go on


@triton.jit
def forget(inv_norm, nearest, taken, length, me, programs, BLOCK: tl.constexpr):
    """Own rows as if nothing but the row `taken` (-1: none) had been selected."""
    t = tl.arange(0, BLOCK)
    for t0 in range(0, own_rows(length, me, programs), BLOCK):
        i = me + programs * (t0 + t)
        inv = tl.load(inv_norm + i, mask=i < length, other=-1.0)
        m = tl.where(i == taken, INF, nothing_selected(inv))
        tl.store(nearest + i, m, mask=i < length)


@triton.jit
def begin(
    inv_norm,
    nearest,
    weights,
    seeds,
    num_seeds,
    control,
    base,
    length,
    slots,
    me,
    programs,
    in_slots,
    BLOCK: tl.constexpr,
):
    """Own rows before the first pick; seeds cannot be picked.

    Returns (stage, slots filled, seeds that need no folding).
    """
    forget(inv_norm, nearest, -1, length, me, programs, BLOCK)
    tl.debug_barrier()  # other threads of this program write these rows next
    s = tl.arange(0, BLOCK)
    filled = 0
    valid = 0
    for s0 in range(0, num_seeds, BLOCK):
        j = tl.load(seeds + s0 + s, mask=s0 + s < num_seeds, other=-1)
        filled += tl.sum((j >= 0).to(tl.int32), 0)
        j -= base
        inside = (j >= 0) & (j < length)
        inv = tl.load(inv_norm + j, mask=inside, other=-1.0)
        valid += tl.sum((inv >= 0.0).to(tl.int32), 0)
        # A seed that does not count is masked out, so +inf is right for it too.
        tl.store(nearest + j, INF, mask=inside & (j % programs == me))
    tl.debug_barrier()
    done = tl.where(in_slots != 0, filled, 0)
    if me == 0:
        tl.store(control + DONE, done)
    stage = FOLD + 0
    folded = 0
    if valid == 0:
        folded = num_seeds
        stage = NEAR + 0
        if weights is not None:
            stage = OPEN + 0
    if done >= slots:
        stage = STOP + 0
    return stage, done, folded


@triton.jit
def seed_columns(seeds, num_seeds, folded, columns, base, length, BLOCK: tl.constexpr):
    """The next seeds become this program's columns (-1: none of this segment). Returns how many.

    The programs meet before they read them.
    """
    s = tl.arange(0, BLOCK)
    j = tl.load(seeds + folded + s, mask=folded + s < num_seeds, other=-1) - base
    tl.store(columns + s, tl.where((j >= 0) & (j < length), j, -1).to(tl.int32))
    return tl.minimum(num_seeds - folded, BLOCK)


@triton.jit
def chain(
    nearest,
    weights,
    columns,
    count,
    order,
    edge,
    gram,
    picks,
    control,
    indices,
    base,
    slots,
    BLOCK: tl.constexpr,
    COPIES: tl.constexpr,
):
    """Picks among the candidates while a pick beats every other row. By one program of each group.

    `edge`: no row outside the candidates has a smaller key.

    Each warp has a copy of all candidates and finds the best by itself. So a pick waits for a row
    of `gram` and two minima inside a warp, and for other warps only every STEPS picks. The rows are
    read once before, so that they come from L1: a pick takes 0.26 us of an H100 then, not 0.36.
    """
    copy = tl.arange(0, COPIES)
    own = (copy == 0)[:, None]  # the copy that is written
    lane = tl.arange(0, BLOCK)[None, :] + copy[:, None] * 0  # [COPIES, BLOCK]
    ok = lane < count
    i = tl.load(columns + lane, mask=ok, other=0)
    m = tl.load(nearest + i, mask=ok, other=INF)
    w = None
    if weights is not None:
        w = tl.load(weights + i, mask=ok, other=0.0)
    one = tl.arange(0, BLOCK)
    other = tl.load(columns + one, mask=one < count, other=0)
    edge = edge_by_place(other, one < count, edge, BLOCK)
    code = tl.load(order + lane, mask=ok, other=0)
    largest = tl.full([COPIES, BLOCK], -INF, tl.float32)
    for row0 in range(0, count, READ * COPIES):
        for step in tl.static_range(READ):
            row = row0 + step * COPIES + copy[:, None]
            seen = tl.load(gram + row * BLOCK + lane, mask=ok & (row < count), other=-INF)
            largest = tl.maximum(largest, seen)
    m = tl.where(largest < LARGEST, m, INF)  # never, but the compiler must not leave out the loads
    done = tl.load(control + DONE)
    n = copy * 0
    turn = lane * 0 - 1  # when a candidate was picked
    more = 1
    value, who = lowest(cost(m, w), code)
    while more > 0:
        for _step in tl.static_range(STEPS):
            best = (value.to(tl.int64) << 32) | who.to(tl.int64)
            goes_on = (best < edge) & (done + n < slots)  # [COPIES]
            at = (who & (BLOCK - 1))[:, None]
            row = gram + at * BLOCK + lane
            c = tl.load(row, mask=ok & goes_on[:, None], other=-INF)  # [COPIES, BLOCK]
            picked = (lane == at) & goes_on[:, None]
            turn = tl.where(picked, n[:, None], turn)
            n += goes_on.to(tl.int32)
            m = tl.where(picked, INF, tl.maximum(m, c))
            value, who = lowest(cost(m, w), code)
        best = (value.to(tl.int64) << 32) | who.to(tl.int64)
        more = tl.max(((best < edge) & (done + n < slots)).to(tl.int32), 0)
    tl.store(indices + done + turn, base + i, mask=own & (turn >= 0))
    tl.store(picks + turn, i, mask=own & (turn >= 0))
    tl.store(nearest + i, INF, mask=own & ok & (m == INF))
    tl.store(control + PICKED + copy * 0, n, mask=copy == 0)
    # `more` is 0; Triton 3.6 and 3.7 cannot compile a loop of which a value is not used behind it.
    tl.store(control + DONE + copy * 0, done + n + more, mask=copy == 0)


@triton.jit
def lowest(value, code):
    """(bits of the value, code) of the smallest key of each row: `order_key` in two halves."""
    bits = order_bits(value)
    least = tl.min(bits, 1)
    return least, tl.min(tl.where(bits == least[:, None], code, LAST_ROW), 1)


@triton.jit
def first_pick(
    inv_norm,
    nearest,
    best,
    control,
    indices,
    base,
    length,
    slots,
    done,
    me,
    programs,
    BLOCK: tl.constexpr,
):
    """The token of the key `best` is picked; the programs meet next.

    Returns (stage, slots filled).
    """
    pick = best & 0xFFFFFFFF
    forget(inv_norm, nearest, pick, length, me, programs, BLOCK)
    if me == 0:
        tl.store(indices + done, base + pick)
        tl.store(control + DONE, done + 1)
    return tl.where(done + 1 < slots, FOLD, STOP), done + 1
