# SPDX-License-Identifier: Apache-2.0
"""One timing job of `bench.gpu`: `python -m bench.gpu_timing JOB`, one of `main` or a workload.

Prints one JSON object a line. A workload is timed in three ways: `eager` is the time of a call as
its caller sees it, host included; `graph` is a replay of a captured call with its inputs where the
kernels before left them (in L2 where they fit); `graph cold` is a replay after L2 was overwritten.
No verification, no figure: the picks of a replay are judged in float64.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench import (
    contenders,
    gpu_greedy,
    gpu_jobs,
    gpu_parts,
    gpu_sensitivity,
    gpu_suppress,
    gpu_sweep,
)
from bench.compiled import sync_free
from bench.contenders import Contender
from bench.problem import PROMPT_TOKENS, Image, Problem, Tokens, draw
from bench.registry import Workload, gpu_suite
from bench.timing import POISON, summary
from bench.verify import Verifier

DEVICE = "cuda"
#: Calls of a slot, and slots of each contender, which take turns.
CALLS = 20
SLOTS = 5
#: A slot of long calls has fewer of them.
SLOT_MS = 60.0
#: Cycles of the device before a replay, some 100 us: a host takes 10 to launch a graph.
BUSY = 200_000


def on_device(problem: Problem) -> Problem:
    """The same problem with its tokens on the GPU."""
    images = [
        Image(
            Tokens(image.visual.to(DEVICE), image.prompt.to(DEVICE)), image.k_core, image.k_diverse
        )
        for image in problem.images
    ]
    return Problem(problem.workload, images)


# --- clocks ---------------------------------------------------------------------------------------


def eager(call: Callable[[], Tensor]) -> float:
    """Milliseconds until the picks of a call could be read."""
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - start) * 1e-6


class Replay:
    """A captured call."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # outside of the capture: compiles, fills caches
                call()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = call()

    def milliseconds(self, flush: Tensor | None = None) -> float:
        """Of one replay, on the device."""
        self.output.fill_(POISON)
        if flush is not None:
            flush.fill_(1)
        # The device is busy until the host has launched the graph: that is not timed.
        torch.cuda._sleep(BUSY)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def flush_buffer() -> Tensor:
    """Twice the L2 cache, or 256 MB where its size is not known."""
    size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 128 * 2**20
    return torch.empty(2 * size, dtype=torch.uint8, device=DEVICE)


def interleave(clocks: dict[str, Callable[[], float]]) -> dict[str, list[list[float]]]:
    """Slots of all clocks, one after another, several times."""
    slots: dict[str, list[list[float]]] = {name: [] for name in clocks}
    for _ in range(SLOTS):
        for name, clock in clocks.items():
            first = clock()
            calls = max(1, min(CALLS, round(SLOT_MS / max(first, 1e-3))))
            slots[name].append([clock() for _ in range(calls)])
    return slots


# --- a workload -----------------------------------------------------------------------------------


def rivals(problem: Problem, moved: Problem) -> list[tuple[str, Contender, bool]]:
    """(mode, contender, whether it is captured): the published loop, and Gram + incremental."""
    loop = "zspaprune_loop" if problem.workload.k_core else "divprune_loop"
    gram = contenders.contender("gram_incremental", moved)
    images = moved.floats
    free = sync_free("gram_incremental")

    def call() -> Tensor:
        return torch.cat([free(i.visual, i.prompt, i.k_core, i.k_diverse) for i in images])

    captured = dataclasses.replace(gram, name="gram_incremental sync-free", call=call)
    return [
        ("eager", contenders.contender(loop, moved), False),
        ("eager", gram, False),
        ("graph", captured, True),
    ]


def measure(workload: Workload, judge_limit: int = 1500) -> Iterator[dict[str, Any]]:
    """The records of a workload; a contender whose picks are wrong has no times."""
    problem = draw(workload)
    moved = on_device(problem)
    verifier = Verifier(problem, judge_limit, backend="triton")
    ours = contenders.ours(moved)
    ours.call()
    replay, flush = Replay(ours.call), flush_buffer()
    clocks: dict[str, Callable[[], float]] = {
        "graph": replay.milliseconds,
        "graph cold": lambda: replay.milliseconds(flush),
        "eager": lambda: eager(ours.call),
    }
    results: dict[str, tuple[Contender, Callable[[], Tensor]]] = {
        name: (ours, lambda: replay.output) for name in clocks
    }
    kept = [replay]
    for mode, other, graph in rivals(problem, moved):
        name = f"{other.name}: {mode}"
        if graph:
            kept.append(Replay(other.call))
            clocks[name] = kept[-1].milliseconds
            results[name] = (other, lambda taken=kept[-1]: taken.output)  # type: ignore[misc]
        else:
            other.call()
            clocks[name] = lambda call=other.call: eager(call)  # type: ignore[misc]
            results[name] = (other, other.call)
    slots = interleave(clocks)
    for name, (contender, result) in results.items():
        record: dict[str, Any] = {
            "workload": workload.name,
            "contender": contender.name,
            "kind": contender.kind,
            "mode": name.rpartition(": ")[2],
        }
        try:
            verdict = verifier.check(_on_host(contender), result().cpu())
        except AssertionError as error:
            yield {**record, "status": "wrong", "reason": str(error)}
            continue
        times = dataclasses.asdict(summary(slots[name]))
        yield {**record, "status": "verified", **dataclasses.asdict(verdict), **times}


def _on_host(contender: Contender) -> Contender:
    """The contender with its picks in the order of picking on the CPU, where they are judged."""
    unsorted = contender.unsorted
    if unsorted is None:
        return contender
    return dataclasses.replace(contender, unsorted=lambda: unsorted().cpu())


# --- the machine ----------------------------------------------------------------------------------


def best(call: Callable[[], object], times: int = 30) -> float:
    """Fewest milliseconds of a captured call."""

    def counted() -> Tensor:
        call()
        return torch.zeros(1, device=DEVICE)

    replay = Replay(counted)
    return min(replay.milliseconds() for _ in range(times))


def ceilings(size: int = 8192, elements: int = 2**29) -> Iterator[dict[str, Any]]:
    """Rates of a large copy and of a large bfloat16 product."""
    x = torch.randn(elements, device=DEVICE)
    y = torch.empty_like(x)
    yield {"ceiling": "copy GB/s", "value": 2e-6 * x.nbytes / best(lambda: y.copy_(x))}
    a, b = torch.randn(2, size, size, device=DEVICE).bfloat16()
    yield {"ceiling": "bf16 TFLOP/s", "value": 2e-9 * size**3 / best(lambda: a @ b)}


def barrier(times: int = 1000) -> Iterator[dict[str, Any]]:
    """A meeting of one program a multiprocessor, against a node of a graph."""
    from bench.gpu_kernels import empty_kernel, meetings_kernel
    from zspa_kernels.backends.triton._common import launch, multiprocessors

    device = torch.device(DEVICE, torch.cuda.current_device())
    programs = multiprocessors(device)
    arrivals = torch.zeros(32, dtype=torch.int32, device=device)

    def meet(count: int) -> None:
        arrivals.zero_()
        launch(
            meetings_kernel, programs, device, arrivals, count, programs,
            together=True, HIP=torch.version.hip is not None, num_warps=8,
        )  # fmt: skip

    def nodes(count: int) -> None:
        for _ in range(count):
            launch(empty_kernel, programs, device, arrivals, num_warps=8)

    ways: dict[str, Callable[[int], None]] = {"barrier": meet, "graph node": nodes}
    for name, call in ways.items():
        few, many = best(lambda c=call: c(10)), best(lambda c=call: c(10 + times))  # type: ignore[misc]
        yield {"step": name, "programs": programs, "ns": 1e6 * (many - few) / times}


def picks() -> Iterator[dict[str, Any]]:
    """Nanoseconds a pick by warps: among 128 candidates, and among 1000 tokens by all cosines.

    What a call takes besides its picks is the same for few picks and for many.
    """
    for field, n in (("warps", 128), ("whole_warps", 1000)):
        for warps in (1, 4, 8):
            record = {"pick": f"of {n}, {warps} warps"}
            try:
                yield {**record, "ns": _pick_ns(n, field, warps)}
            except Exception as error:  # one warp may not compile: the others still count
                yield {**record, "error": f"{type(error).__name__}: {error}"[:300]}


def _pick_ns(n: int, field: str, warps: int) -> float:
    from zspa_kernels.backends.triton import diversity

    visual = torch.randn(1, n, 64, device=DEVICE).bfloat16()
    seeds = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
    with (
        gpu_sweep.configured("diversity", **{field: warps}),
        mock.patch.object(diversity, "few_tokens", return_value=field == "whole_warps"),
    ):
        few = best(lambda: diversity.diversity(visual, 8, seeds, None, None))
        many = best(lambda: diversity.diversity(visual, 120, seeds, None, None))
    return 1e6 * (many - few) / 112


def ready(shape: str) -> Iterator[dict[str, Any]]:
    """Compile what the workloads of a shape need, to Triton's cache: what is timed finds it there.

    Of the jobs in `COMPARED`, and of sweeps, all that they compare, without a figure: others run
    at that time.

    Random tokens: kernels depend on sizes and strides only.
    """
    if shape in COMPARED or shape in gpu_sweep.FORMS:
        start = time.perf_counter()
        for _ in COMPARED[shape]() if shape in COMPARED else gpu_sweep.sweep(shape):
            pass
        yield {"ready": shape, "s": round(time.perf_counter() - start, 1)}
    for work in gpu_suite():
        if work.name.startswith(f"{shape}-") and work.dtype == "bf16" and work.tokens == "vlm":
            start = time.perf_counter()
            images = []
            for n, core, diverse in work.images:
                rows = torch.randn(n, work.d, device=DEVICE).bfloat16()
                images.append(Image(Tokens(rows, rows[:PROMPT_TOKENS]), core, diverse))
            contenders.ours(Problem(work, images)).call()
            yield {"ready": work.name, "s": round(time.perf_counter() - start, 1)}


#: Jobs that time several forms of a kernel.
COMPARED: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "picks": picks, "parts": gpu_parts.parts, "few": gpu_parts.few,
}  # fmt: skip


def several(names: list[str]) -> Iterator[dict[str, Any]]:
    """The records of several workloads in one process: most of a short one is starting it.

    One that fails is told, and the others go on, unless the device does not.
    """
    workloads = {workload.name: workload for workload in gpu_suite()}
    failed: list[str] = []
    for name in names:
        try:
            yield from measure(workloads[name])
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{name}: {type(error).__name__}")
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(names)} workloads failed, {failed[0]}")


def main(name: str) -> int:
    """Run one job; 1 if picks were wrong."""
    wrong = False
    jobs: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "ceilings": ceilings, "barrier": barrier, **COMPARED,
        "sensitivity": gpu_sensitivity.timing, "greedy": gpu_greedy.timing,
        "suppress": gpu_suppress.timing,
    }  # fmt: skip
    with torch.no_grad():
        if name.startswith("ready "):
            records = ready(name.removeprefix("ready "))
        elif name.startswith("sweep "):
            records = gpu_sweep.sweep(name.removeprefix("sweep "))
        else:
            records = jobs[name]() if name in jobs else several(name.split(","))
        for record in records:
            print(json.dumps(record), flush=True)
            wrong |= record.get("status") == "wrong" and record["kind"] == "ours"
    return int(wrong)


if __name__ == "__main__":
    gpu_jobs.watch()
    sys.exit(main(*sys.argv[1:]))
