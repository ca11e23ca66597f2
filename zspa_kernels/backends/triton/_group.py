# SPDX-License-Identifier: Apache-2.0
"""What the programs of a group share and know: stages, memory, costs.

A group of programs works on one segment. Program `me` owns the rows me, me + programs, ...: rows
next to each other look alike, so blocks of them would crowd the candidates into few programs.

The group is always at one of these stages:

GRAM    the columns are candidates for picks: products of each with each
FOLD    the columns are seeds or picks: every row's largest cosine takes them in
NEAR    looking for DivPrune's seed: products of each block of rows with itself, later with those
        some rows before and behind it
FINISH  looking for DivPrune's seed: the columns are tokens whose largest cosine becomes final
OPEN    the first pick is the heaviest token: nothing to multiply
STOP    nothing is left to do
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._common import INF

GRAM = tl.constexpr(0)
FOLD = tl.constexpr(1)
NEAR = tl.constexpr(2)
FINISH = tl.constexpr(3)
OPEN = tl.constexpr(4)
STOP = tl.constexpr(5)

KEY_LAST = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # after the key of every row
LAST_ROW = tl.constexpr(0x7FFFFFFF)  # after every row
# What a group shares: int32 words. The arrivals have a line of their own, they are polled.
ARRIVED = tl.constexpr(0)
PICKED = tl.constexpr(32)  # picks of the last pass
DONE = tl.constexpr(33)  # slots filled
CONTROL = tl.constexpr(64)


@triton.jit
def seed_list(seeds, seg, num_seeds, in_slots, slot, core):
    """(pointer, count) of a segment's seeds: a row of a list [B, S], or its core slots."""
    at = tl.where(in_slots != 0, slot, tl.cast(seg, tl.int64) * num_seeds)
    return seeds + at, tl.where(in_slots != 0, core, num_seeds)


@triton.jit
def group_memory(
    group, me, programs, proposals, columns, gram, picks, control, D,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A group's part of the scratch; the columns are the program's own."""
    chunks = 1
    if SPLIT:
        chunks = tl.cdiv(D, CHUNK)
    return (
        proposals + group * programs * WIDTH,
        columns + (group * programs + me) * BLOCK,
        gram + (group * chunks).to(tl.int64) * BLOCK * BLOCK,
        picks + group * BLOCK,
        control + group * CONTROL,
    )


@triton.jit
def dot_memory(dots, group, first, table, N, programs, BLOCK: tl.constexpr):
    """(where the dots of an update with a segment's rows begin, elements of a chunk of channels).

    A row has BLOCK of them in each chunk. The segments of a padded batch that a group does one
    after another share its part; those of a ragged one, whose lengths differ, have rows of their
    own, as in the rest of the scratch.
    """
    if table is not None:
        return dots + first * BLOCK, tl.cast(N, tl.int64) * BLOCK
    else:
        groups = tl.num_programs(0) // programs
        rows = tl.cast(N, tl.int64)
        return dots + group * rows * BLOCK, groups * rows * BLOCK


@triton.jit
def cost(nearest, w):
    """What a pick minimises: m, or -w (1 - m); +inf of a token that cannot be picked."""
    if w is not None:
        return tl.where(nearest < INF, -(w * (1.0 - nearest)), INF)
    else:
        return nearest


@triton.jit
def nothing_selected(inv):
    """Largest cosine of a token to nothing: -1, 1 of a zero row, +inf of a masked one."""
    return tl.where(inv > 0.0, -1.0, tl.where(inv == 0.0, 1.0, INF))


@triton.jit
def own_rows(length, me, programs):
    """How many rows program `me` owns."""
    return tl.cdiv(length - me, programs)


@triton.jit
def own_places(length, programs):
    """How many places a program has for its own rows, a multiple of 16 bytes of float32."""
    return 4 * tl.cdiv(tl.cdiv(length, programs), 4)


@triton.jit
def accept(picks, control, columns, slots, BLOCK: tl.constexpr):
    """The picks become this program's columns. Returns (stage, count, slots filled)."""
    count = tl.load(control + PICKED)
    done = tl.load(control + DONE)
    lane = tl.arange(0, BLOCK)
    tl.store(columns + lane, tl.load(picks + lane, mask=lane < count, other=-1))
    tl.debug_barrier()
    return tl.where(done < slots, FOLD, STOP), count, done
