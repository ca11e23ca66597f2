# SPDX-License-Identifier: Apache-2.0
"""What a call costs before its kernel starts: `python -m bench.overhead [--out FILE]`.

Checks, dispatch, table of segments, allocation of the result: everything between `torch.ops` and
the entry of the native module, which notes the time and does nothing. Tokens are tiny, so that
nothing has to be copied. The picks of the real call are compared with the reference's first.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bench.environment import environment
from zspa_kernels._ops import register
from zspa_kernels.backends.cpp import (
    diversity,
    dpp,
    facility_location,
    min_sum,
    relevance_topk,
    select,
    soft_suppress,
    suppress,
)

#: What DESIGN.md promises.
LIMIT_US = 15.0
_CALLS = 2000
_BACKENDS = (
    *(select, relevance_topk, diversity, dpp),
    *(facility_location, min_sum, suppress, soft_suppress),
)


def cases() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Name -> (op, arguments)."""
    draw = torch.Generator().manual_seed(0)
    visual, prompt = torch.randn(2, 1, 8, 16, generator=draw)
    masks = torch.ones(1, 8, dtype=torch.bool)
    packed = torch.eye(16).repeat(4, 1)  # two tokens cover each other alike, but for rounding

    def table(segments: int) -> tuple[Any, ...]:
        offsets = torch.arange(segments + 1) * 2
        spans = torch.stack((offsets[:-1], offsets[1:]), dim=1)
        return offsets, spans, torch.ones(segments, dtype=torch.int64)

    calls: dict[str, tuple[str, tuple[Any, ...]]] = {
        "select [B, N, D]": ("select", (visual, prompt, 2, 3)),
        "select [B, N, D], masks": ("select", (visual, prompt, 2, 3, masks, masks)),
        "select [N, D]": ("select", (visual[0], prompt[0], 2, 3)),
        "select [N, D], masks": ("select", (visual[0], prompt[0], 2, 3, masks[0], masks[0])),
        "relevance_topk [N, D]": ("relevance_topk", (visual[0], prompt[0], 2)),
    }
    rated = (visual[0], visual[0, :, 0].contiguous())
    for op, given in {
        **dict.fromkeys(("diversity", "dpp", "facility_location", "min_sum"), (visual[0], 3)),
        "suppress": (*rated, 3, 0.9),
        "soft_suppress": (*rated, 3, 20.0),
    }.items():
        calls[f"{op} [N, D]"] = (op, given)
    for segments in (1, 2, 32):
        offsets, spans, one = table(segments)
        tokens, k = packed[: 2 * segments], 2 * segments
        calls[f"select_varlen, {segments} images"] = (
            "select_varlen",
            (tokens, offsets, tokens, spans, one, one, k, 2),
        )
        for op in ("diversity_varlen", "dpp_varlen", "facility_location_varlen", "min_sum_varlen"):
            calls[f"{op}, {segments} images"] = (op, (tokens, offsets, one, segments, 2))
    return calls


def before_the_kernel(op: str, arguments: tuple[Any, ...]) -> float:
    """Median microseconds from the call of the op to the entry of the native module."""
    call = getattr(torch.ops.zspa, op)
    _check(op, arguments, call)
    times = []
    with _entries() as entered:
        for _ in range(_CALLS):
            start = time.perf_counter_ns()
            call(*arguments)
            times.append(entered[-1] - start)
    return statistics.median(times) / 1e3


def _check(op: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> None:
    """The call that is measured is one that works."""
    got, expected = call(*arguments), getattr(register, op)(*arguments, backend="reference")
    if isinstance(got, Tensor):
        got, expected = (got,), (expected,)
    if not torch.equal(got[0], expected[0]):
        raise RuntimeError(f"{op}: the picks differ from the reference's")


class _Entry:
    """In place of the native module: every function notes when it was entered."""

    def __init__(self) -> None:
        self.times: list[int] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._enter

    def _enter(self, *arguments: object) -> None:
        self.times.append(time.perf_counter_ns())


@contextmanager
def _entries() -> Iterator[list[int]]:
    entry, native = _Entry(), vars(select)["module"]
    for backend in _BACKENDS:
        vars(backend)["module"] = lambda: entry
    try:
        yield entry.times
    finally:
        for backend in _BACKENDS:
            vars(backend)["module"] = native


def main(
    out: Annotated[Path | None, typer.Option(help="JSON file to write as well.")] = None,
) -> None:
    """Print the microseconds before the kernel of every selection; exit code 1 above the limit."""
    console = Console(stderr=True)
    found = {
        name: before_the_kernel(op, arguments)
        for name, (op, arguments) in track(cases().items(), console=console, transient=True)
    }
    grid = Table(title=f"before the kernel, limit {LIMIT_US:.0f} us")
    grid.add_column("call")
    grid.add_column("us", justify="right")
    for name, microseconds in found.items():
        grid.add_row(name, f"{microseconds:.1f}")
    console.print(grid)
    if out is not None:
        record = {"environment": environment(torch.get_num_threads()), "us": found}
        out.write_text(json.dumps(record, indent=1) + "\n")
    raise typer.Exit(int(max(found.values()) > LIMIT_US))


if __name__ == "__main__":
    typer.run(main)
