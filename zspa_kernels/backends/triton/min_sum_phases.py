# SPDX-License-Identifier: Apache-2.0
"""The phases of the min-sum greedy but for products and candidates.

What is kept of a token: its sum of cosines to what is selected, in float64 (+inf: it cannot be
picked), and its cost, what the candidates are chosen by: that sum in float32, -inf of the token
that is known to be picked next. Cosines with the picks of a pass are columns with a place for each
row, the own rows of a program next to each other.

A sum is one chain of additions in the order of selection, whatever the passes were.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._candidates import PART, lanes_in_order
from ._common import INF, only_if, row_sums
from ._group import DONE, FOLD, KEY_LAST, OPEN, PICKED, STOP, own_places, own_rows
from .diversity_phases import STEPS
from .diversity_phases import lowest as smallest

# The sum of a zero row: behind all others, and no cosine changes it.
BEHIND = tl.constexpr(2.0**100)
# Entries of directions are at most 1 and are added as integers of this unit, so that neither the
# order nor masked rows in between show in a bit. Cut off, each is wrong by less than a unit.
UNIT = tl.constexpr(2.0**-30)
PER_UNIT = tl.constexpr(2.0**30)
INF_BITS = tl.constexpr(0x7F800000)  # `order_bits` of what cannot be picked


@triton.jit
def group_sums(
    group, programs, cosines, parts, total, foreseen, lowest, reached, longest, D,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """A group's part of the scratch that no other op has, and how far columns are apart."""
    stride_f = (programs * own_places(longest, programs)).to(tl.int64)
    return (
        cosines + group * COLUMNS * stride_f,
        parts + (group * programs).to(tl.int64) * D,
        total + group.to(tl.int64) * D,
        foreseen + group * COLUMNS,
        lowest + group * programs,
        reached + group * programs,
        stride_f,
    )


@triton.jit
def begin(
    inv_norm, seeds, num_seeds, sums, costs, length, slots, me, programs, BLOCK: tl.constexpr
):  # fmt: skip
    """Own rows before the first pick. Returns the stage.

    FOLD: there are seeds to be added. OPEN: the first pick has the smallest sum over all tokens.
    """
    t = tl.arange(0, BLOCK)
    for t0 in range(0, own_rows(length, me, programs), BLOCK):
        i = me + programs * (t0 + t)
        inv = tl.load(inv_norm + i, mask=i < length, other=-1.0)
        m = tl.where(inv > 0.0, 0.0, tl.where(inv == 0.0, BEHIND, INF))
        tl.store(sums + i, m.to(tl.float64), mask=i < length)
        tl.store(costs + i, m, mask=i < length)
    valid = 0
    for s0 in range(0, num_seeds, BLOCK):
        j = tl.load(seeds + s0 + t, mask=s0 + t < num_seeds, other=-1)
        inside = (j >= 0) & (j < length)
        inv = tl.load(inv_norm + j, mask=inside, other=-1.0)
        valid += tl.sum((inv >= 0.0).to(tl.int32), 0)
    tl.debug_barrier()  # other threads of this program read these rows next
    return tl.where(slots > 0, tl.where(valid > 0, FOLD, OPEN), STOP)


@triton.jit
def seed_columns(seeds, num_seeds, folded, columns, length, COLUMNS: tl.constexpr):
    """The next seeds become this program's columns. Returns how many.

    -1: a seed that names no token, or one that stands before it already.
    """
    lane = tl.arange(0, COLUMNS)
    s = folded + lane
    j = tl.load(seeds + s, mask=s < num_seeds, other=-1)
    before = tl.full([COLUMNS], 0, tl.int32)
    for q0 in range(0, tl.minimum(folded + COLUMNS, num_seeds), PART):
        q = q0 + tl.arange(0, PART)
        other = tl.load(seeds + q, mask=q < num_seeds, other=-1)
        same = (other[None, :] == j[:, None]) & (q[None, :] < s[:, None])
        before += tl.sum(same.to(tl.int32), 1)
    counts = (j >= 0) & (j < length) & (before == 0)
    tl.store(columns + lane, tl.where(counts, j, -1).to(tl.int32))
    tl.debug_barrier()
    return tl.maximum(tl.minimum(num_seeds - folded, COLUMNS), 0)


@triton.jit
def add_directions(
    visual, inv_norm, parts, length, D, stride_n, me, programs,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The sum of the directions of own rows, in units, into parts[me]."""
    rows = own_rows(length, me, programs)
    for d0 in range(0, D, CHANNELS):
        d = d0 + tl.arange(0, CHANNELS)
        total = tl.full([CHANNELS], 0, tl.int64)
        for r0 in range(0, rows, ROWS):
            row = r0 + tl.arange(0, ROWS)
            i = me + programs * row
            inv = tl.load(inv_norm + i, mask=row < rows, other=-1.0)
            at = visual + (i.to(tl.int64) * stride_n)[:, None] + d[None, :]
            v = tl.load(at, mask=(inv > 0.0)[:, None] & (d < D)[None, :], other=0.0)
            v = v.to(tl.float32) * inv[:, None]  # [ROWS, CHANNELS]
            total += tl.sum((v * PER_UNIT).to(tl.int32).to(tl.int64), 0)
        tl.store(parts + me.to(tl.int64) * D + d, total, mask=d < D)


@triton.jit
def add_parts(
    parts, total, D, me, programs, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """total[d]: the sum of all directions, a share of the channels by each program."""
    for d0 in range(me * CHANNELS, D, programs * CHANNELS):
        d = d0 + tl.arange(0, CHANNELS)
        units = tl.full([CHANNELS], 0, tl.int64)
        for p0 in range(0, programs, ROWS):
            p = p0 + tl.arange(0, ROWS)
            at = parts + p.to(tl.int64)[:, None] * D + d[None, :]
            ok = (p < programs)[:, None] & (d < D)[None, :]
            units += tl.sum(tl.load(at, mask=ok, other=0), 0)
        tl.store(total + d, units.to(tl.float32) * UNIT, mask=d < D)


@triton.jit
def sum_over_all(
    visual, inv_norm, total, sums, length, D, stride_n, me, programs,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums of own rows over all tokens: one dot with the sum of all directions.

    They are read next by `compare`, which begins with a barrier.
    """
    rows = own_rows(length, me, programs)
    for r0 in range(0, rows, ROWS):
        row = r0 + tl.arange(0, ROWS)
        i = me + programs * row
        inv = tl.load(inv_norm + i, mask=row < rows, other=-1.0)
        x = visual + (i.to(tl.int64) * stride_n)[:, None]
        _, dots = row_sums(x, inv > 0.0, total, D, ROWS, BLOCK_K)
        tl.store(sums + i, (dots * inv).to(tl.float64), mask=inv > 0.0)


@triton.jit
def follow(
    s, i, ok, cosines, stride_f, columns, foreseen, count, AHEAD: tl.constexpr
):  # fmt: skip
    """The sums `s` of the rows `i` after `count` columns, and how many columns went into each.

    A token whose column is added cannot be picked any more. With `foreseen`, what the pick of each
    column had when it was its turn, a row stops where it would be picked instead. The first pick is
    certain.
    """
    added = tl.full(s.shape, 0, tl.int32)
    for t0 in range(0, count, AHEAD):
        for ahead in tl.static_range(AHEAD):
            t = t0 + ahead
            c = tl.load(cosines + t * stride_f, mask=only_if(t < count, ok), other=0.0)
            pick = tl.load(columns + t, mask=t < count, other=-1)
            goes_on = added == t
            if foreseen is not None:
                best = tl.load(foreseen + t, mask=t < count, other=-INF)
                first = (s < best) | ((s == best) & (i < pick))
                goes_on = goes_on & ((t == 0) | (first == 0))
            goes_on = goes_on & (t < count)
            s = tl.where(goes_on, tl.where(i == pick, INF, s + c.to(tl.float64)), s)
            added += goes_on.to(tl.int32)
    return s, added


@triton.jit
def compare(
    sums, cosines, stride_f, columns, foreseen, count, reached, lowest, length, me, programs,
    ROWS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """How many picks of the forecast no own row beats, and the best own row then.

    reached[me]: (picks, row) as one word; lowest[me]: the sum of the row, +inf if there is none.
    """
    tl.debug_barrier()  # the cosines are there
    rows = own_rows(length, me, programs)
    own = cosines + me * own_places(length, programs)
    most = tl.cast(count, tl.int64)
    best = tl.full([], INF, tl.float64)
    token = tl.full([], 0, tl.int64)
    for r0 in range(0, rows, ROWS):
        row = r0 + tl.arange(0, ROWS)
        i = me + programs * row
        s = tl.load(sums + i, mask=row < rows, other=INF)
        s, added = follow(s, i, row < rows, own + row, stride_f, columns, foreseen, count, AHEAD)
        least = tl.min(added, 0).to(tl.int64)
        s = tl.where(added == least, s, INF)
        low = tl.min(s, 0)
        at = tl.min(tl.where(s == low, i, 0x7FFFFFFF), 0).to(tl.int64)
        # Later rows have higher indices, so of equal sums the first stays.
        better = (least < most) | ((least == most) & (low < best))
        most = tl.where(better, least, most)
        best = tl.where(better, low, best)
        token = tl.where(better, at, token)
    tl.store(reached + me, (most << 32) | token)
    tl.store(lowest + me, best)


@triton.jit
def settle(
    stage, sums, costs, cosines, stride_f, columns, reached, lowest, indices, base, done, slots,
    length, me, programs,
    PROGRAMS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Picks of the forecast that no row beats are picks; own sums take them in.

    Every program finds out by itself which these are, and what is picked next. Returns (stage,
    slots filled).
    """
    p = tl.arange(0, PROGRAMS)
    word = tl.load(reached + p, mask=p < programs, other=KEY_LAST)
    low = tl.load(lowest + p, mask=p < programs, other=INF)
    count = tl.min(word >> 32, 0)
    low = tl.where((word >> 32) == count, low, INF)
    best = tl.min(low, 0)
    token = tl.min(tl.where(low == best, word & 0xFFFFFFFF, KEY_LAST), 0)
    count = count.to(tl.int32)
    some = best < INF
    lane = tl.arange(0, COLUMNS)
    if me == 0:
        picks = tl.load(columns + lane, mask=lane < count, other=0)
        tl.store(indices + done + lane, base + picks, mask=lane < count)
        if some & (done + count + 1 == slots):  # the last pick needs no pass
            tl.store(indices + done + count, base + token)
    onward = tl.where(some & (done + count + 1 < slots), FOLD, STOP)
    absorb(
        stage, tl.where(some, token, -1), sums, costs, cosines, stride_f, columns, count, length,
        me, programs, ROWS, AHEAD,
    )  # fmt: skip
    return onward, done + count


@triton.jit
def absorb(
    stage, token, sums, costs, cosines, stride_f, columns, count, length, me, programs,
    ROWS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Own sums take `count` columns in, and the row `token` (-1: none) is picked next.

    At stage OPEN the sums have chosen the first pick, and choose candidates; then they start anew.
    """
    tl.debug_barrier()  # the cosines are there, and all have read the sums
    rows = own_rows(length, me, programs)
    own = cosines + me * own_places(length, programs)
    for r0 in range(0, rows, ROWS):
        row = r0 + tl.arange(0, ROWS)
        i = me + programs * row
        s = tl.load(sums + i, mask=row < rows, other=INF)
        s, _ = follow(s, i, row < rows, own + row, stride_f, columns, None, count, AHEAD)
        tl.store(costs + i, tl.where(i == token, -INF, s.to(tl.float32)), mask=row < rows)
        s = tl.where((stage == OPEN) & (s < BEHIND), 0.0, s)
        tl.store(sums + i, s, mask=row < rows)
    tl.debug_barrier()  # other threads of this program read these rows next


@triton.jit
def foresee(
    sums, costs, columns, count, gram, picks, foreseen, control, done, slots,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """The next picks if only the candidates could be picked. By one program of each group.

    Sums are exact, but compared in float32: one comparison of keys per pick. It may be wrong.
    Each warp has a copy of all candidates, as in the chain of `diversity`.
    """
    copy = tl.arange(0, COPIES)
    own = (copy == 0)[:, None]  # the copy that is written
    lane = tl.arange(0, BLOCK)[None, :] + copy[:, None] * 0  # [COPIES, BLOCK]
    ok = lane < count
    four = lane < 4 * tl.cdiv(count, 4)  # tiles have filled these, so 16 bytes can be read at once
    i = tl.load(columns + lane, mask=ok, other=0)
    s = tl.load(sums + i, mask=ok, other=INF)
    m = tl.load(costs + i, mask=ok, other=INF)
    one = tl.arange(0, BLOCK)
    other = tl.load(columns + one, mask=one < count, other=0)
    code, _ = lanes_in_order(columns, other, one < count, tl.full([], 0, tl.int64), BLOCK)
    code = code[None, :] + copy[:, None] * 0
    most = tl.minimum(slots - done - 1, COLUMNS)
    n = copy * 0
    turn = lane * 0 - 1  # when a candidate was picked
    then = s  # its sum then
    more = 1
    value, who = smallest(m, code)
    while more > 0:
        for _step in tl.static_range(STEPS):
            goes_on = (value < INF_BITS) & (n < most)  # [COPIES]
            at = (who & (BLOCK - 1))[:, None]
            row = gram + at * BLOCK + lane
            c = tl.load(row, mask=four & goes_on[:, None], other=-INF)  # [COPIES, BLOCK]
            picked = (lane == at) & goes_on[:, None]
            turn = tl.where(picked, n[:, None], turn)
            then = tl.where(picked, s, then)
            n += goes_on.to(tl.int32)
            # An entry with a zero row is -inf.
            s = tl.where(picked, INF, s + tl.where(c > -INF, c, 0.0).to(tl.float64))
            value, who = smallest(s.to(tl.float32), code)
        more = tl.max(((value < INF_BITS) & (n < most)).to(tl.int32), 0)
    tl.store(picks + turn, i, mask=own & (turn >= 0))
    tl.store(foreseen + turn, then, mask=own & (turn >= 0))
    # `more` is 0; Triton 3.6 and 3.7 cannot compile a loop of which a value is not used behind it.
    tl.store(control + PICKED + copy * 0, n + more, mask=copy == 0)
    tl.store(control + DONE, done)
