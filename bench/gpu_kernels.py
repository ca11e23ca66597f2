# SPDX-License-Identifier: Apache-2.0
"""Kernels that ask what a barrier and a launch cost, and whether the barrier orders memory."""

from __future__ import annotations

import triton
import triton.language as tl

from zspa_kernels.backends.triton._common import meet


@triton.jit(do_not_specialize=["count", "programs"])
def meetings_kernel(arrivals, count, programs, HIP: tl.constexpr):
    """All programs meet `count` times."""
    for meeting in range(count):
        meet(arrivals, (meeting + 1) * programs, HIP)


@triton.jit
def empty_kernel(arrivals):
    """One store, so that there is something to launch."""
    tl.store(arrivals + 1, 0)


@triton.jit(do_not_specialize=["rounds", "programs"])
def letters_kernel(
    arrivals, letters, wrong, rounds, programs, WORDS: tl.constexpr, HIP: tl.constexpr
):  # fmt: skip
    """Every program writes, meets, and reads what another one wrote, at places it has read before.

    wrong[program]: words that were not those of the round, because a cache kept an old line or a
    store was late.
    """
    me = tl.program_id(0)
    word = tl.arange(0, WORDS)
    bad = tl.full([WORDS], 0, tl.int32)
    for turn in range(rounds):
        tl.store(letters + me * WORDS + word, turn * WORDS + word + me)
        meet(arrivals, (2 * turn + 1) * programs, HIP)
        for step in range(1, 4):
            other = (me + step) % programs
            got = tl.load(letters + other * WORDS + word)
            bad += (got != turn * WORDS + word + other).to(tl.int32)
        meet(arrivals, (2 * turn + 2) * programs, HIP)
    tl.store(wrong + me, tl.sum(bad, 0))
