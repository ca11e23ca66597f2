# SPDX-License-Identifier: Apache-2.0
"""Kernels that ask what a barrier and a launch cost, and whether the barrier orders memory."""

from __future__ import annotations

import triton
import triton.language as tl

from zspa_kernels.backends.triton._common import POLLS, give_up, meet


@triton.jit(do_not_specialize=["count", "programs"])
def meetings_kernel(arrivals, count, programs, HIP: tl.constexpr):
    """All programs meet `count` times."""
    for meeting in range(count):
        meet(arrivals, (meeting + 1) * programs, HIP)


@triton.jit
def meet_by_loads(arrivals, target, THREADS: tl.constexpr):
    """Another way to meet: each thread polls by itself, with loads, and no barrier in between."""
    tl.debug_barrier()
    tl.atomic_add(arrivals, 1, sem="release", scope="gpu")
    polls = 0
    while tl.load(arrivals, volatile=True) - target < 0:
        polls += 1
        if polls == POLLS:
            give_up(polls, False)
    # What was read and a fence are an acquire together; each element is a thread.
    tl.inline_asm_elementwise(
        "fence.acq_rel.gpu; mov.u32 $0, $1;",
        "=r,r",
        [tl.arange(0, THREADS)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["count", "programs"])
def meetings_by_loads_kernel(arrivals, count, programs, THREADS: tl.constexpr):
    """All programs meet `count` times."""
    for meeting in range(count):
        meet_by_loads(arrivals, (meeting + 1) * programs, THREADS)


@triton.jit
def empty_kernel(arrivals):
    """One store, so that there is something to launch."""
    tl.store(arrivals + 1, 0)


@triton.jit(do_not_specialize=["rounds", "programs"])
def letters_kernel(
    arrivals, letters, wrong, rounds, programs, WORDS: tl.constexpr, HIP: tl.constexpr,
    THREADS: tl.constexpr = 0,
):  # fmt: skip
    """Every program writes, meets, and reads what another one wrote, at places it has read before.

    wrong[program]: words that were not those of the round, because a cache kept an old line or a
    store was late. THREADS: they meet by loads.
    """
    me = tl.program_id(0)
    word = tl.arange(0, WORDS)
    bad = tl.full([WORDS], 0, tl.int32)
    for turn in range(rounds):
        tl.store(letters + me * WORDS + word, turn * WORDS + word + me)
        if THREADS > 0:
            meet_by_loads(arrivals, (2 * turn + 1) * programs, THREADS)
        else:
            meet(arrivals, (2 * turn + 1) * programs, HIP)
        for step in range(1, 4):
            other = (me + step) % programs
            got = tl.load(letters + other * WORDS + word)
            bad += (got != turn * WORDS + word + other).to(tl.int32)
        meet(arrivals, (2 * turn + 2) * programs, HIP)
    tl.store(wrong + me, tl.sum(bad, 0))
