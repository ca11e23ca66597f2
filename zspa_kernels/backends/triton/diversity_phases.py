# SPDX-License-Identifier: Apache-2.0
"""The phases of the blocked greedy but for products and candidates: start, chain, picks.

A phase is what the programs of a group do between two of their barriers. In it a program writes
what it owns and what no other program reads before the next barrier, so the order in which the
programs run a phase changes nothing. All pointers are those of the segment or of the group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._candidates import lanes_in_order
from ._common import INF, order_key
from ._group import (
    DONE,
    FOLD,
    NEAR,
    OPEN,
    PICKED,
    STOP,
    cost,
    nothing_selected,
    own_rows,
)


@triton.jit
def forget(inv_norm, nearest, taken, length, me, programs, BLOCK: tl.constexpr):
    """Own rows as if nothing but the row `taken` (-1: none) had been selected."""
    t = tl.arange(0, BLOCK)
    for t0 in range(0, own_rows(length, me, programs), BLOCK):
        i = me + programs * (t0 + t)
        inv = tl.load(inv_norm + i, mask=i < length, other=-1.0)
        m = tl.where(i == taken, INF, nothing_selected(inv))
        tl.store(nearest + i, m, mask=i < length)
    tl.debug_barrier()  # other threads of this program read these rows next


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
    """The next seeds become this program's columns (-1: none of this segment). Returns how many."""
    s = tl.arange(0, BLOCK)
    j = tl.load(seeds + folded + s, mask=folded + s < num_seeds, other=-1) - base
    tl.store(columns + s, tl.where((j >= 0) & (j < length), j, -1).to(tl.int32))
    tl.debug_barrier()
    return tl.minimum(num_seeds - folded, BLOCK)


@triton.jit
def chain(
    nearest,
    weights,
    columns,
    count,
    edge,
    gram,
    picks,
    control,
    indices,
    base,
    slots,
    BLOCK: tl.constexpr,
):
    """Picks among the candidates while a pick beats every other row. One program a group.

    `edge`: no row outside the candidates has a smaller key.
    """
    lane = tl.arange(0, BLOCK)
    ok = lane < count
    i = tl.load(columns + lane, mask=ok, other=0)
    m = tl.load(nearest + i, mask=ok, other=INF)
    w = None
    if weights is not None:
        w = tl.load(weights + i, mask=ok, other=0.0)
    code, edge = lanes_in_order(columns, i, ok, edge, BLOCK)
    done = tl.load(control + DONE)
    n = 0
    best = tl.min(order_key(cost(m, w), code), 0)
    while (best < edge) & (done + n < slots):
        at = (best & (BLOCK - 1)).to(tl.int32)
        c = tl.load(gram + at * BLOCK + lane, mask=ok, other=-INF)
        pick = tl.load(columns + at)
        tl.store(indices + done + n, base + pick)
        tl.store(picks + n, pick)
        n += 1
        m = tl.where(lane == at, INF, tl.maximum(m, c))
        best = tl.min(order_key(cost(m, w), code), 0)
    tl.store(nearest + i, INF, mask=ok & (m == INF))
    tl.store(control + PICKED, n)
    tl.store(control + DONE, done + n)


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
    """The token of the key `best` is picked. Returns (stage, slots filled)."""
    pick = best & 0xFFFFFFFF
    forget(inv_norm, nearest, pick, length, me, programs, BLOCK)
    if me == 0:
        tl.store(indices + done, base + pick)
        tl.store(control + DONE, done + 1)
    return tl.where(done + 1 < slots, FOLD, STOP), done + 1
