# SPDX-License-Identifier: Apache-2.0
"""Two kernels whose time is that of a barrier, and of a launch."""

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
