# SPDX-License-Identifier: Apache-2.0
"""Where a greedy kernel goes wrong on a GPU: `python -m bench.gpu_phases OP`.

The phases of such a kernel can be launched one by one, which is what Triton's interpreter does.
Here the GPU does it as well, on tokens whose cosines are exact, and its memory after each launch
must be the interpreter's. The first launch that leaves something else names a phase, a tensor and a
place. If there is none, all phases run as the one launch in which programs wait for each other:
what then is wrong or hangs lies between the phases.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import zspa_kernels as zk
from bench import gpu_jobs
from bench.gpu_jobs import ROOT, python_path
from bench.interpreter import take_any_numpy
from zspa_kernels.testing import tokens

OPS = ("diversity", "dpp", "facility_location", "min_sum", "suppress", "soft_suppress")
#: Images, N, D and K: some passes, and two chunks of channels.
SIZE = (1, 200, 2048, 24)
#: Enough for the kernels that many programs share.
PROGRAMS = 33
_TRITON = "zspa_kernels.backends.triton"

#: What each launch left: its name, and tensors by the kernel's names for them.
Memory = list[tuple[str, dict[str, Tensor]]]


def call(op: str, device: str) -> Tensor:
    """One call of an op."""
    batch, n, d, k = SIZE
    rows = [tokens("exact", n, d, seed, torch.bfloat16) for seed in range(batch)]
    visual = torch.stack(rows).to(device)
    scores = (torch.arange(batch * n, device=device) * 7919 % 64).view(batch, n) / 64.0
    more: dict[str, Callable[[], Tensor]] = {
        "suppress": lambda: zk.suppress(visual, scores, k, threshold=0.25, backend="triton"),
        "soft_suppress": lambda: zk.soft_suppress(
            visual, scores, k, sharpness=2.0, backend="triton"
        ),
    }
    plain: Callable[..., Tensor] = getattr(zk, op)
    return more[op]() if op in more else plain(visual, k, backend="triton")


class _EndlessError(Exception):
    """A group whose phases are wrong may never come to its end."""


def trace(op: str, device: str, most: int | None = None) -> tuple[Tensor, Memory]:
    """The picks of an op, and its memory after each launch of a phase.

    It ends after `most` launches and one more, without picks.
    """
    from zspa_kernels.backends.triton._common import launch as real
    from zspa_kernels.backends.triton._steps import greedy_in_steps

    steps = import_module(f"{_TRITON}.{op}_steps")
    phases: dict[str, Any] = {
        "phases": getattr(steps, "PHASES", None),
        "once": getattr(steps, "ONCE", None),
    }
    if op == "facility_location":
        phases["phases"] = ("propose", "take")
    memory: Memory = []

    def launch(
        kernel: Any, programs: int, at: Any, *args: Any, together: bool = False, **options: Any
    ) -> None:
        if together:
            step = getattr(steps, f"{op}_step")
            given = {name: names for name, names in phases.items() if names}
            greedy_in_steps(step, launch, programs, at, *args, **given, **options)
            return
        real(kernel, programs, at, *args, **options)
        named = zip(kernel.arg_names, args, strict=False)
        left = {name: x.cpu().clone() for name, x in named if isinstance(x, Tensor)}
        memory.append((f"{kernel.__name__} {options.get('PHASE', '')}".strip(), left))
        if most is not None and len(memory) > most:
            raise _EndlessError

    with ExitStack() as stack:
        # Words that nothing was written to are the same everywhere.
        stack.enter_context(mock.patch.object(torch, "empty", torch.zeros))
        _few_programs(op, stack)
        for name in {op, "diversity", "facility_location_matrix"}:
            module = import_module(f"{_TRITON}.{name}")
            stack.enter_context(mock.patch.object(module, "launch", launch))
        try:
            return call(op, device).cpu(), memory
        except _EndlessError:
            return torch.empty(0), memory


def _few_programs(op: str, stack: ExitStack) -> None:
    """Groups of a few programs, as many on every machine, and no matrix of all cosines."""
    grid, few = (lambda cfg, segments, device: (segments.count, PROGRAMS)), (lambda *_: False)
    stack.enter_context(mock.patch(f"{_TRITON}.{op}.group_grid", grid))
    stack.enter_context(mock.patch(f"{_TRITON}.diversity.few_tokens", few))


def difference(got: Memory, want: Memory) -> str | None:
    """The first thing that a launch left otherwise than it should."""
    for turn, ((label, left), (name, right)) in enumerate(zip(got, want, strict=False)):
        if label != name:
            return f"launch {turn} is {label}, and should be {name}"
        for tensor, values in left.items():
            wrong = ~_close(values, right[tensor]).flatten()
            if wrong.any():
                at = int(wrong.nonzero()[0])
                one, other = (x.flatten()[at].item() for x in (values, right[tensor]))
                return (
                    f"{label} (launch {turn}) leaves {int(wrong.sum())} of {wrong.numel()} values "
                    f"of {tensor} wrong, the first at {at}: {one} instead of {other}"
                )
    if len(got) != len(want):
        return f"{len(got)} launches instead of {len(want)}"
    return None


def _close(a: Tensor, b: Tensor) -> Tensor:
    """Equal but for some last bits, which multiply-adds and logarithms may differ in."""
    if a.is_floating_point():
        return torch.isclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
    # A key has the bits of a value above its index.
    return (a == b) | (((a ^ b) & 0xFFFFFFFF == 0) & (((a >> 32) - (b >> 32)).abs() <= 64))


def interpreted(op: str) -> tuple[Tensor, Memory]:
    """`trace` by the interpreter, in a process of its own: Triton decides when it is imported."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "memory.pt")
        variables = {
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": python_path(),
        }
        subprocess.run(
            [sys.executable, "-m", "bench.gpu_phases", op, file],
            cwd=ROOT, env={**os.environ, **variables}, check=True,
        )  # fmt: skip
        found: tuple[Tensor, Memory] = torch.load(file)
    return found


def main(op: str, file: str | None = None) -> int:
    """Compare the phases of an op with the interpreter's; with a file, write those to it."""
    if file is not None:
        take_any_numpy()
        torch.save(trace(op, "cpu"), file)
        return 0
    want, right = interpreted(op)
    picks, memory = trace(op, "cuda", most=len(right))
    wrong = difference(memory, right)
    if wrong is None and not torch.equal(picks, want):
        wrong = f"picks {picks.tolist()} instead of {want.tolist()}"
    record: dict[str, Any] = {"phases": op, "launches": len(memory), "difference": wrong}
    print(json.dumps(record), flush=True)
    if wrong is not None:
        print(f"{op}: {wrong}")
        return 1
    print(f"{op}: {len(memory)} launches of phases are right; now one launch", flush=True)
    with ExitStack() as stack:
        _few_programs(op, stack)
        together = call(op, "cuda").cpu()
    if not torch.equal(together, want):
        print(f"{op}: one launch picks {together.tolist()} instead of {want.tolist()}")
        return 1
    return 0


if __name__ == "__main__":
    gpu_jobs.watch()
    sys.exit(main(*sys.argv[1:]))
