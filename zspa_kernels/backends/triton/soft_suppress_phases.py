# SPDX-License-Identifier: Apache-2.0
"""The phases of soft suppression: scores before the first pick, proposals, and what a pick takes.

What is kept of a token, in float64: its length, its score before anything was taken, in steps of
2**-40 of the largest one or of its logarithm (-inf: it cannot be taken, or was), and what it has
lost since. A loss is one chain of additions in the order of the picks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import INF
from ._exact import STEPS, rounded, wide
from ._group import LAST_ROW, own_rows

NOTHING = tl.constexpr(-1e300)  # the logarithm of 0


@triton.jit
def group_memory(group, programs, best, who):
    """A group's part of the scratch: two sets of proposals."""
    return best + group * 2 * programs, who + group * 2 * programs


@triton.jit
def usable_scores(scores, inv_norm, places, scaled, i, length):
    """(scores of the rows `i`, which of them may be taken)."""
    score = tl.load(scores + i, mask=i < length, other=0.0)
    usable = tl.load(inv_norm + i, mask=i < length, other=-1.0) >= 0.0
    usable = usable & (tl.abs(score) < INF) & ((scaled == 0) | (score >= 0.0))  # False for NaN
    if places is not None:
        at = places + 2 * i.to(tl.int64)
        down = tl.load(at, mask=i < length, other=0.0)
        across = tl.load(at + 1, mask=i < length, other=0.0)
        usable = usable & (tl.abs(down) < INF) & (tl.abs(across) < INF)
    return score, usable


@triton.jit
def begin(
    visual, inv_norm, scores, places, start, lost, lengths, scaled, length, D, stride_n,
    me, programs,
    LANES: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Own rows before the first pick."""
    largest = tl.full([], 0.0, tl.float64)
    for i0 in range(0, tl.where(scaled != 0, 0, length), LANES):
        i = i0 + tl.arange(0, LANES)
        score, usable = usable_scores(scores, inv_norm, places, scaled, i, length)
        largest = tl.maximum(largest, tl.max(tl.where(usable, tl.abs(score), 0.0), 0))
    largest = tl.where(largest == 0.0, 1.0, largest)
    rows = own_rows(length, me, programs)
    for r0 in range(0, rows, LANES):
        i = me + programs * (r0 + tl.arange(0, LANES))
        score, usable = usable_scores(scores, inv_norm, places, scaled, i, length)
        part = tl.where(scaled != 0, tl.log(tl.where(usable, score, 1.0)), score / largest)
        part = tl.maximum(rounded(part * STEPS), NOTHING)
        tl.store(start + i, tl.where(usable, part, -INF), mask=i < length)
        tl.store(lost + i, tl.full([LANES], 0.0, tl.float64), mask=i < length)
    for r0 in range(0, rows, ROWS):
        row = r0 + tl.arange(0, ROWS)
        i = me + programs * row
        read = tl.load(inv_norm + i, mask=row < rows, other=-1.0) > 0.0
        x = visual + i.to(tl.int64) * stride_n
        square = dots(x, read, None, D, ROWS, WIDE, AHEAD)
        tl.store(lengths + i, tl.sqrt(square), mask=read)
    tl.debug_barrier()  # other threads of this program read these rows next


@triton.jit
def dots(
    x, ok, y, D, ROWS: tl.constexpr, WIDE: tl.constexpr, AHEAD: tl.constexpr
):  # fmt: skip
    """float64 [ROWS]: dots of the rows at `x` [ROWS] with the row at `y`, or with themselves."""
    k = tl.arange(0, WIDE)
    total = tl.full([ROWS, WIDE], 0.0, tl.float64)
    for k0 in range(0, D, AHEAD * WIDE):
        for ahead in tl.static_range(AHEAD):
            at = (k0 + ahead * WIDE + k)[None, :]
            some = ok[:, None] & (at < D)
            a = wide(tl.load(x[:, None] + at, mask=some, other=0.0))  # [ROWS, WIDE]
            if y is None:
                total += a * a
            else:
                b = tl.load(y + at, mask=at < D, other=0.0)  # [1, WIDE]
                total += a * wide(b)
    return tl.sum(total, 1)


@triton.jit
def propose(start, lost, best, who, turn, length, me, programs, LANES: tl.constexpr):
    """The own row of the highest score, the lowest of several; -inf if none can be taken.

    Proposals of one turn are read while those of the next are made, so there are two sets.
    """
    highest = tl.full([], -INF, tl.float64)
    token = tl.full([], LAST_ROW, tl.int32)
    for r0 in range(0, own_rows(length, me, programs), LANES):
        i = me + programs * (r0 + tl.arange(0, LANES))
        first = tl.load(start + i, mask=i < length, other=-INF)
        score = tl.maximum(rounded(first - tl.load(lost + i, mask=i < length, other=0.0)), NOTHING)
        score = tl.where(first > -INF, score, -INF)
        top = tl.max(score, 0)
        at = tl.min(tl.where(score == top, i, LAST_ROW), 0)
        token = tl.where(top > highest, at, token)  # later rows have higher indices
        highest = tl.maximum(highest, top)
    tl.store(best + (turn % 2) * programs + me, highest)
    tl.store(who + (turn % 2) * programs + me, token)


@triton.jit
def choose(best, who, turn, programs, PROGRAMS: tl.constexpr):
    """(score, token) of the best proposal. Every program finds it by itself."""
    p = tl.arange(0, PROGRAMS)
    score = tl.load(best + (turn % 2) * programs + p, mask=p < programs, other=-INF)
    token = tl.load(who + (turn % 2) * programs + p, mask=p < programs, other=LAST_ROW)
    top = tl.max(score, 0)
    return top, tl.min(tl.where(score == top, token, LAST_ROW), 0)


@triton.jit
def absorb(
    visual, inv_norm, places, start, lost, lengths, score, pick, scaled, sharpness, narrow,
    reach, length, D, stride_n, me, programs,
    ROWS: tl.constexpr, WIDE: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Own rows lose what the token `pick`, taken with `score`, takes from them."""
    if pick % programs == me:
        tl.store(start + pick, -INF)
        tl.debug_barrier()  # other threads of this program read it next
    # A score that is not positive takes nothing off, and a zero row touches no other.
    takes = ((scaled != 0) | (score > 0.0)) & (tl.load(inv_norm + pick) > 0.0)
    rows = own_rows(length, me, programs)
    for r0 in range(0, tl.where(takes, rows, 0), ROWS):
        row = r0 + tl.arange(0, ROWS)
        i = me + programs * row
        open_ = tl.load(start + i, mask=row < rows, other=-INF) > -INF
        touched = open_ & (tl.load(inv_norm + i, mask=row < rows, other=-1.0) > 0.0)
        exponent = tl.full([ROWS], 0.0, tl.float64)
        if places is not None:
            at, here = places + 2 * i.to(tl.int64), places + 2 * pick.to(tl.int64)
            down = tl.load(at, mask=touched, other=0.0) - tl.load(here)
            across = tl.load(at + 1, mask=touched, other=0.0) - tl.load(here + 1)
            square = down * down + across * across
            touched = touched & (square <= reach)  # what is beyond is not even read
            exponent = narrow * square
        x = visual + i.to(tl.int64) * stride_n
        y = visual + pick.to(tl.int64) * stride_n
        product = dots(x, touched, y, D, ROWS, WIDE, AHEAD)
        both = tl.load(lengths + i, mask=touched, other=1.0) * tl.load(lengths + pick)
        cosine = rounded(product / both * STEPS) / STEPS  # of equal directions exactly 1
        weight = tl.exp(exponent - sharpness * ((1.0 - cosine) * (1.0 - cosine)))
        if scaled != 0:
            loss = logarithm(weight) * -STEPS
        else:
            loss = weight * score
        was = tl.load(lost + i, mask=touched, other=0.0)
        tl.store(lost + i, was + loss, mask=touched)
    tl.debug_barrier()  # other threads of this program read these rows next


@triton.jit
def logarithm(w):
    """log(1 - w), of small w as well: what is lost in 1 - w is put back (Kahan)."""
    u = 1.0 - w
    return tl.where(u == 1.0, -w, tl.log(u) * (w / (1.0 - u)))
