# SPDX-License-Identifier: Apache-2.0
"""Checks of what happens between host and device: synchronisation, graphs, streams, memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import zspa_kernels as zk
from bench import gpu_check
from bench.gpu_check import alike, calls_of, check, draw, error_of, same
from zspa_kernels.testing import tokens

#: That a program writes in `late_words`; so many are wrong until it has counted.
WORDS = 1024


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """A synchronisation raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def late_words(warps: int, rounds: int = 1000, **options: Any) -> tuple[int, int]:
    """How many words programs did not see in time, and of how many, with so many warps each."""
    from bench.gpu_kernels import letters_kernel
    from zspa_kernels.backends.triton._common import launch, multiprocessors

    device = torch.device(gpu_check.DEVICE)
    programs = multiprocessors(device)
    arrivals = torch.zeros(32, dtype=torch.int32, device=device)
    wrong = torch.full((programs,), WORDS, dtype=torch.int32, device=device)
    letters = torch.full((programs, WORDS), -1, dtype=torch.int32, device=device)
    launch(
        letters_kernel, programs, device, arrivals, letters, wrong, rounds, programs,
        together=True, WORDS=WORDS, HIP=torch.version.hip is not None, num_warps=warps, **options,
    )  # fmt: skip
    return int(wrong.sum()), programs * 3 * WORDS * rounds


@check
def the_barrier_orders_memory() -> None:
    """What programs write before they meet is what all read after it, with any number of warps."""
    for warps in (1, 4, 8):
        late, words = late_words(warps)
        assert late == 0, f"{late} of {words} words, {warps} warps"


@check
def no_synchronisation() -> None:
    """No op waits for the device."""
    visual = draw(3, 700, 512)
    for name, call in calls_of(visual, visual[:, 1:5] + 1).items():
        want = call()
        with no_sync():
            got = call()
        alike(got, want, name)


@check
def graphs() -> None:
    """Captured once, replayed on inputs that were written after the capture."""
    for shape in ((3, 700, 512), (1, 300, 512)):  # blocks, and all cosines at once
        _replayed([draw(*shape), draw(2 * shape[0], *shape[1:])[shape[0] :] * 2])


def _replayed(inputs: list[Tensor]) -> None:
    visual = inputs[0].clone()
    for name, call in calls_of(visual, visual[:, 1:5]).items():
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
        for turn in (1, 0, 1):
            visual.copy_(inputs[turn])
            output.fill_(-7)
            graph.replay()
            alike(output, call(), f"{name}, replay {turn}")


@check
def capture_of_a_cold_kernel() -> None:
    """A kernel that is not compiled yet cannot be captured; the error says what to do."""
    visual = draw(1, 64, 64)
    torch.cuda.synchronize()

    def capture() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            zk.diversity(visual, 5)

    text = error_of(capture, RuntimeError)
    assert "zk.warmup" in text, text
    zk.warmup("cuda", visual.dtype, num_tokens=64, dim=64, ops=["diversity"])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = zk.diversity(visual, 5)
    graph.replay()
    alike(output, zk.diversity(visual, 5), "after warmup")


@check
def streams() -> None:
    """Two streams at the same time, of two priorities, while products of others hold the device.

    Programs of a launch that get a place wait for those that do not have one yet.
    """
    visual = draw(2, 2000, 512)
    want = [zk.diversity(row, 150) for row in visual]
    large = torch.randn(8192, 8192, device=gpu_check.DEVICE).bfloat16()
    torch.cuda.synchronize()
    side, other = [torch.cuda.Stream(), torch.cuda.Stream(priority=-1)], torch.cuda.Stream()
    got: list[list[Tensor]] = [[], []]
    for _ in range(10):
        with torch.cuda.stream(other):
            for _ in range(3):
                large @ large
        for stream, row, out in zip(side, visual, got, strict=True):
            with torch.cuda.stream(stream):
                out.append(zk.diversity(row, 150))
    torch.cuda.synchronize()
    for out, expected in zip(got, want, strict=True):
        for picks in out:
            alike(picks, expected, "stream")


@check
def second_device() -> None:
    """Tensors on a device that is not the current one; passes where there is one device only."""
    if torch.cuda.device_count() < 2:
        print("one device only")
        return
    visual = tokens("vlm", 500, 256, 0, torch.bfloat16)
    one, other = (zk.diversity(visual.to(device), 50).cpu() for device in ("cuda:0", "cuda:1"))
    alike(other, one, "the second device")


@check
def compiled() -> None:
    """torch.compile(fullgraph=True) with another N on the second call."""

    @torch.compile(fullgraph=True, dynamic=True)
    def pruned(visual: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        picks = torch.ops.zspa.select(visual, prompt, 5, 20)
        return picks, zk.gather(visual, picks)

    for n in (300, 411):
        visual = draw(2, n, 128)
        want = torch.ops.zspa.select(visual, visual[:, :3], 5, 20)
        picks, kept = pruned(visual, visual[:, :3])
        alike(picks, want, f"picks of {n}")
        same(kept, zk.gather(visual, want), f"tokens of {n}")


@check
def no_square_matrix() -> None:
    """Scratch of a call does not grow with N squared."""
    visual = draw(1, 16384, 256)
    scores = torch.rand(1, 16384, device=gpu_check.DEVICE)

    def suppress(visual: Tensor, k: int) -> Tensor:
        return zk.suppress(visual, scores, k, threshold=0.9)

    def soft_suppress(visual: Tensor, k: int) -> Tensor:
        return zk.soft_suppress(visual, scores, k, sharpness=9.0)

    for op in (zk.diversity, zk.dpp, zk.min_sum, suppress, soft_suppress):
        want = op(visual, 20)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        got = op(visual, 20)
        used = torch.cuda.max_memory_allocated() - before
        assert used < 16 * 2**20, f"{op.__name__}: {used} bytes"
        alike(got, want, op.__name__)


@check
def more_than_two_to_the_31_elements() -> None:
    """Rows that only 64-bit offsets reach."""
    from zspa_kernels.backends.triton import diversity

    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        print("not enough memory")
        return
    n, d = 40, 64
    stride = 2**31 // (n - 8)
    buffer = torch.empty(n * stride, dtype=torch.bfloat16, device=gpu_check.DEVICE)
    near = draw(1, n, d)[0]
    far = buffer.as_strided((n, d), (stride, 1))
    far.copy_(near)
    for few in (True, False):
        with mock.patch.object(diversity, "few_tokens", return_value=few):
            alike(zk.diversity(far, 20), zk.diversity(near, 20), f"rows, few: {few}")
    alike(zk.dpp(far, 20), zk.dpp(near, 20), "rows of dpp")
    for pooling in ("mean", "none_max"):
        scores = [zk.relevance_topk(x, near[:3], 5, pooling=pooling)[1] for x in (far, near)]
        same(scores[0], scores[1], f"rows of relevance_topk, {pooling}")
    whole = zk.select(far[:, None], near[:, None], k_core=0, k_diverse=1)
    same(whole, torch.zeros_like(whole), "batch")
