# SPDX-License-Identifier: Apache-2.0
"""Time against the number of tokens: this package's op, the baselines, and the floor."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.contenders import OURS
from bench.registry import Workload
from bench.results import Record, Results

#: Okabe and Ito's colours, told apart by everybody.
_STYLE = {
    OURS: ("zspa_kernels", "#D55E00", "o", "-"),
    "divprune_loop": ("DivPrune loop", "#009E73", "s", "-"),
    "zspaprune_loop": ("ZSPAPrune loop", "#009E73", "s", "-"),
    "incremental": ("incremental", "#56B4E9", "^", "-"),
    "gram_incremental": ("Gram + incremental", "#0072B2", "v", "-"),
    "compiled": ("compiled loop", "#CC79A7", "D", "-"),
    "fpsample": ("fpsample", "#999999", "x", "-"),
}
_FLOOR = ("floor (counted dots)", "#000000", "", "--")


def plot(path: Path, results: Results) -> None:
    """Write the picture of all sizes of `vlm` bf16 tokens in one image a call."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = {
        "diversity only (DivPrune's seed included)": lambda w: w.k_core == 0,
        "core by relevance 0.4 K, then diversity": lambda w: w.k_core == round(0.4 * w.k) > 0,
    }
    axes = figure.subplots(1, len(panels), sharey=True)
    for at, (title, wanted) in zip(axes, panels.items(), strict=True):
        chosen = {
            name: workload
            for name, workload in results.workloads.items()
            if wanted(workload) and _plain(workload)
        }
        _panel(at, title, results, chosen)
    axes[0].set_ylabel("milliseconds a call, median")
    environment = results.environment
    figure.suptitle(
        f"{environment['cpu']['model']}, {environment['threads']} threads, {environment['isa']}; "
        "bf16 vlm tokens, K = N / 10, loops in float32",
        fontsize=10,
    )
    # No version of matplotlib in the file: the same results give the same bytes.
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _plain(workload: Workload) -> bool:
    usual = workload.tokens == "vlm" and workload.dtype == "bf16"
    return workload.single and usual and workload.shape != "narrow"  # widths of a plot are alike


def _panel(at: Axes, title: str, results: Results, chosen: dict[str, Workload]) -> None:
    curves: dict[str, list[tuple[int, float, float, float]]] = defaultdict(list)
    floor: list[tuple[int, float]] = []
    for name, workload in chosen.items():
        for record in results.of(name).values():
            if record.times is not None:
                times = record.times
                point = (workload.n, times.median_ms, times.p10_ms, times.p90_ms)
                curves[record.contender.split()[0]].append(point)
            _add_floor(floor, workload, record)
    for name, (label, color, marker, line) in _STYLE.items():
        if name in curves:
            n, middle, low, high = zip(*sorted(curves[name]), strict=True)
            width = 2.4 if name == OURS else 1.4
            at.plot(n, middle, line, color=color, marker=marker, ms=5, lw=width, label=label)
            at.fill_between(n, low, high, color=color, alpha=0.2, lw=0)
    if floor:
        label, color, _, line = _FLOOR
        at.plot(*zip(*sorted(floor), strict=True), line, color=color, lw=1.2, label=label)
    at.set_xscale("log", base=2)
    at.set_yscale("log")
    sizes = sorted({workload.n for workload in chosen.values()})
    at.set_xticks(sizes, [str(n) for n in sizes], rotation=45)
    at.minorticks_off()
    at.set_xlabel("tokens N")
    at.set_title(title, fontsize=10)
    at.grid(True, which="major", alpha=0.3)
    if chosen:
        at.legend(fontsize=8, loc="upper left")


def _add_floor(floor: list[tuple[int, float]], workload: Workload, record: Record) -> None:
    if record.contender == OURS and record.floor is not None:
        floor.append((workload.n, record.floor.dots_ms))
