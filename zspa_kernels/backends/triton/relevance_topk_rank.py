# SPDX-License-Identifier: Apache-2.0
"""Top-k by counting: a token's rank is the number of tokens that precede it.

A token precedes another if its score is higher, or if it is the same and its index is lower. So of
the columns before those in which a block's own rows stand a score as high is enough, of those after
them it has to be higher, and only among their own an index is looked at: two instructions for a
comparison on sm_90. (score, index) as an int64 key, summed over the threads at each step, took
eleven.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import INF, only_if, program, segment


@triton.jit
def counted(
    ahead, at, own, lane, left, TIES: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr
):
    """`ahead` [ROWS, COLUMNS] plus 1 where a score ahead of `own` stands at `at` [1, COLUMNS].

    STEPS times COLUMNS scores, of which `left` are there; their loads wait for nothing. With TIES a
    score that is the same is ahead. In float32, because comparison and sum are then one instruction
    each, on two units.
    """
    for step in tl.static_range(STEPS):
        there = lane < left - step * COLUMNS
        other = tl.load(at + step * COLUMNS, mask=there, other=-INF)  # [1, COLUMNS]
        if TIES:
            ahead += (other >= own).to(tl.float32)
        else:
            ahead += (other > own).to(tl.float32)
    return ahead


@triton.jit(do_not_specialize=["N", "k_core", "k_diverse", "programs"])
def _relevance_topk_rank_kernel(
    scores,
    count,
    indices,
    table,
    N,
    k_core,
    k_diverse,
    programs,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """Writes the k_core best tokens of a segment, best first, to its first slots.

    Slots that get no token are left as they are. COLUMNS is a multiple of ROWS, and no less than
    N / 2^24: a sum of so many ones is exact. A score is no NaN; -inf is that of a masked token,
    which may count as ahead of another one of those, for none is written.
    """
    seg, me = program(programs, REVERSED)
    first, _, _, base, length, k_core, _, slot = segment(seg, table, N, 0, 0, k_core, k_diverse)
    if k_core == 0:
        length = length * 0
    heard = tl.load(count + seg)  # no valid prompt token: there is no core; awaited at the end only
    lane = tl.arange(0, COLUMNS)[None, :]
    at = scores + first + lane
    for block in range(me * ROWS, length, programs * ROWS):
        i = block + tl.arange(0, ROWS)[:, None]
        own = tl.load(scores + first + i, mask=i < length, other=-INF)  # [ROWS, 1]
        near = block // COLUMNS * COLUMNS  # the columns among which the rows stand
        level = tl.load(at + near, mask=near + lane < length, other=-INF)
        ahead = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
        for j0 in range(0, near, STEPS * COLUMNS):
            ahead = counted(ahead, at + j0, own, lane, near - j0, True, COLUMNS, STEPS)
        for j0 in range(near, length, STEPS * COLUMNS):
            ahead = counted(ahead, at + j0, own, lane, length - j0, False, COLUMNS, STEPS)
        ahead += ((level == own) & (near + lane < i)).to(tl.float32)
        rank = tl.sum(ahead.to(tl.int32), 1)[:, None]
        chosen = (own > -INF) & (rank < k_core)
        tl.store(indices + slot + rank, base + i, mask=only_if(heard > 0, chosen))
