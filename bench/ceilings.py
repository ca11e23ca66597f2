# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at best, measured in the run, and what a selection costs at least."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.problem import Problem
from bench.timing import quiet
from zspa_kernels.backends.cpp.select import select as native_select

#: Edge of the square products: large enough for the best rate of a matrix library.
GEMM_SIZE = 2048
#: What each further thread must add to a product's rate at least, of a few threads; 1 is perfect.
_SCALING, _FEW = 0.5, 4
#: Elements of the float32 vectors that are added: far more than a cache holds.
STREAM_SIZE = 2**26


@dataclass(frozen=True)
class Ceilings:
    """Best rates by number of threads.

    Attributes:
        sgemm_gflops: Square float32 product.
        bf16_gflops: Square bfloat16 product.
        add_gbs: Gigabytes read and written per second by a vector addition.
    """

    sgemm_gflops: dict[int, float]
    bf16_gflops: dict[int, float]
    add_gbs: dict[int, float]

    def gemm_gflops(self, threads: int) -> float:
        """The faster of the two products, whatever the dtype of the tokens."""
        return max(self.sgemm_gflops[threads], self.bf16_gflops[threads])

    def busy(self, threads: int) -> bool:
        """Whether something else keeps the machine from the rate its threads should reach."""
        rate = self.gemm_gflops(threads) / self.gemm_gflops(1)
        return rate < 1 + _SCALING * (min(threads, _FEW) - 1)

    def refusal(self, threads: int) -> str:
        """Why figures of a busy machine are not published."""
        return (
            f"{threads} threads multiply at {self.gemm_gflops(threads):.0f} GFLOP/s and one at "
            f"{self.gemm_gflops(1):.0f}: something else runs on this machine; leave it alone"
        )


@dataclass(frozen=True)
class Work:
    """What the native kernels counted: dots are similarities of two tokens."""

    passes: int
    dots: int
    seed_dots: int


@dataclass(frozen=True)
class Floor:
    """Least times in milliseconds.

    Attributes:
        dots_ms: The counted dots at the GEMM rate.
        plain_ms: N K dots at the GEMM rate: every token with every pick.
        read_ms: Reading the tokens once at the rate of a vector addition.
    """

    dots_ms: float
    plain_ms: float
    read_ms: float


def measure(
    threads: int, gemm_size: int = GEMM_SIZE, stream_size: int = STREAM_SIZE, seconds: float = 0.4
) -> Ceilings:
    """Measure all ceilings for one thread and for `threads`, each for `seconds`."""
    counts = sorted({1, threads})
    draw = torch.Generator().manual_seed(0)  # products of zeros would be faster than real ones
    square = torch.randn(gemm_size, gemm_size, generator=draw)
    half = square.bfloat16()
    x, y = torch.randn(2, stream_size, generator=draw)
    out = torch.empty_like(x)
    flops, gigabytes = 2e-9 * gemm_size**3, 3e-9 * x.nbytes
    ceilings = Ceilings({}, {}, {})
    for count in counts:
        with quiet(count):
            ceilings.sgemm_gflops[count] = flops / _best(lambda: square @ square, seconds)
            ceilings.bf16_gflops[count] = flops / _best(lambda: half @ half, seconds)
            ceilings.add_gbs[count] = gigabytes / _best(lambda: torch.add(x, y, out=out), seconds)
    return ceilings


def _best(call: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of the calls that fit into `seconds`, of three at least."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def count_work(problem: Problem) -> Work:
    """Passes and dots of every image of a problem; they do not depend on the batch it is in."""
    total = torch.zeros(3, dtype=torch.int64)
    for image in problem.images:
        stats = torch.zeros(3, dtype=torch.int64)
        native_select(
            image.visual[None],
            image.prompt[None] if image.k_core else None,
            image.k_core,
            image.k_diverse,
            None,
            None,
            "mean",
            False,
            stats,
        )
        total += stats
    return Work(*total.tolist())


def floor(problem: Problem, work: Work, ceilings: Ceilings, threads: int) -> Floor:
    """The least times of a problem."""
    per_dot = 2 * problem.workload.d / (1e6 * ceilings.gemm_gflops(threads))  # milliseconds
    return Floor(
        work.dots * per_dot,
        problem.plain_dots * per_dot,
        problem.bytes / (1e6 * ceilings.add_gbs[threads]),
    )
