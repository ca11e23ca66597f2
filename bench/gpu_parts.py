# SPDX-License-Identifier: Apache-2.0
"""Where the time of a selection goes on a GPU, and which of two ways is faster for few tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench import gpu_check
from bench.gpu_sweep import configured
from bench.registry import SHAPES
from zspa_kernels import split_core
from zspa_kernels.testing import prompt, tokens

#: Tokens of an image for which both ways are timed, and images of a batch.
FEW = ((256, 1), (576, 1), (576, 5), (1024, 1), (576, 32))
#: Forms of the tiles of an update; others have as many columns as a pass has candidates, or fewer
#: rows.
UPDATES: dict[str, dict[str, Any]] = {
    "": {},
    ", 128 columns": {"cols": 128},
    ", 64 rows": {"update_rows": 64},
}
#: Seeds whose updates are timed: a block of columns, and three more.
SEEDS = (128, 512)


def _best(call: Callable[[], object]) -> float:
    from bench.gpu_timing import best

    return 1000 * best(call)


def few(sizes: tuple[tuple[int, int], ...] = FEW, d: int = 4096) -> Iterator[dict[str, Any]]:
    """Microseconds of `diversity` by the matrix of all cosines and by blocks, a tenth picked.

    With two fifths of the picks given as seeds, and with DivPrune's seed. The picks must agree.
    """
    for n, images in sizes:
        visual = torch.stack([tokens("vlm", n, d, i, torch.bfloat16) for i in range(images)])
        k = n // 10
        for given in (split_core(k, 0.4), 0):
            record = {"few": f"{images} x {n}, {given} given", "kind": "ours"}
            yield record | _both(visual.to(gpu_check.DEVICE), given, k - given)


def _both(visual: Tensor, given: int, k: int) -> dict[str, Any]:
    from zspa_kernels.backends.triton import diversity

    seeds = torch.arange(given, device=visual.device).expand(len(visual), -1).contiguous()

    def call() -> Tensor:
        return diversity.diversity(visual, k, seeds if given else None, None, None)

    found, times = [], {}
    for name, choice in (("matrix", True), ("blocks", False)):
        with mock.patch.object(diversity, "few_tokens", return_value=choice):
            found.append(call())
            times[name] = _best(call)
    agree = torch.equal(*found)
    return {**times, "status": "verified"} if agree else {"status": "wrong"}


def parts(names: tuple[str, ...] = ("llava15", "llavanext", "video")) -> Iterator[dict[str, Any]]:
    """Microseconds of each step of `select`, and how often the programs of the greedy met.

    Also of its host, and of an update of all rows by 128 picks.
    """
    for name in names:
        size = SHAPES[name]
        visual = tokens("vlm", size.n, size.d, 0, torch.bfloat16)[None].to(gpu_check.DEVICE)
        words = prompt("vlm", 32, size.d, 0, torch.bfloat16)[None].to(gpu_check.DEVICE)
        yield from _steps(name, visual, words, size.k)


def _steps(name: str, visual: Tensor, words: Tensor, k: int) -> Iterator[dict[str, Any]]:
    from zspa_kernels.backends.triton import _scratch, diversity, relevance_topk, select
    from zspa_kernels.backends.triton._common import Segments
    from zspa_kernels.backends.triton._group import ARRIVED

    core = split_core(k, 0.4)
    segments = Segments(1, visual.shape[1], core, k - core)
    plan = diversity.greedy_plan(visual, segments)
    plan |= relevance_topk.score_plan(visual, words, segments, "mean")
    plan["scores"] = (torch.float32, visual.shape[:-1])
    scratch = _scratch.allocate(visual.device, plan)
    picks = torch.full((1, k), -1, dtype=torch.int64, device=visual.device)
    ordered = torch.empty_like(picks)

    def relevance() -> None:
        masks = (None, None, None)
        relevance_topk.score(visual, words, segments, *masks, "mean", scratch["scores"], scratch)

    def greedy() -> None:
        diversity.greedy(visual, segments, picks, None, None, None, scratch, True, normed=True)

    steps: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,  # the others take as much longer as they take
        "relevance": relevance,
        "top-k": lambda: relevance_topk.rank(scratch["scores"], scratch["count"], segments, picks),
        "greedy": greedy,
        "sort": lambda: select.sort(picks, ordered, segments, k),
    }
    for step, call in steps.items():
        call()
        yield {"part": f"{name}: {step}", "us": _best(call)}
    whole = (visual, words, core, k - core)
    yield {"part": f"{name}: a call's host", "us": _host(lambda: torch.ops.zspa.select(*whole))}
    if "control" in scratch:
        programs = diversity.group_grid(diversity._config(visual), segments, visual.device)[1]
        yield {"meetings": name, "count": int(scratch["control"][ARRIVED.value]) // programs}
        yield from _updates(name, visual)


def _host(call: Callable[[], object], calls: int = 20) -> float:
    """Microseconds that the host takes for a call, while the device is behind."""
    times = []
    for _ in range(10):
        wait()
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        times.append((time.perf_counter_ns() - start) * 1e-3 / calls)
    wait()
    return min(times)


def wait() -> None:
    """Until the device has done everything."""
    if gpu_check.DEVICE != "cpu":
        torch.cuda.synchronize()


def _updates(name: str, visual: Tensor) -> Iterator[dict[str, Any]]:
    """Microseconds by which 128 more seeds prolong a pick: an update of all rows, nothing else.

    In several forms, which must pick the same.
    """
    from zspa_kernels.backends.triton import diversity

    n, found = visual.shape[1], []
    for form, fields in UPDATES.items():
        with configured("diversity", **fields):
            times = []
            for count in SEEDS:
                at = torch.arange(count, device=visual.device) * n // count
                seeds = at[None].contiguous()
                found.append(diversity.diversity(visual, 1, seeds, None, None))
                times.append(_best(lambda s=seeds: diversity.diversity(visual, 1, s, None, None)))  # type: ignore[misc]
        agree = torch.equal(found[-1], found[1]) and torch.equal(found[-2], found[0])
        record = {"part": f"{name}: update by 128{form}", "kind": "ours"}
        us = 128 * (times[1] - times[0]) / (SEEDS[1] - SEEDS[0])
        yield record | ({"us": us, "status": "verified"} if agree else {"status": "wrong"})
