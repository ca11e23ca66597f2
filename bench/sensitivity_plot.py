# SPDX-License-Identifier: Apache-2.0
"""The picture of the sensitivity study: who ranks tokens as float64 does, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart by everybody.
_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def plot(path: Path, results: dict[str, Any]) -> None:
    """Write the picture of one run."""
    spectra = list(results["participation"])
    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(spectra) + 1, width_ratios=[1.0] * len(spectra) + [0.75])
    for column, spectrum in enumerate(spectra):
        curves = figure.add_subplot(grid[0, column])
        _agreement(curves, spectrum, results, column == 0)
    names = figure.add_subplot(grid[0, -1])
    names.axis("off")
    names.legend(*curves.get_legend_handles_labels(), fontsize=8, loc="center", handlelength=4)
    _cost(figure.add_subplot(grid[1, :]), results)
    machine = results["environment"]
    figure.suptitle(
        f"{machine['cpu']['model']}, {machine['threads']} threads; random weights, "
        f"agreement at {_size(results['sizes']['agreement'])}, "
        f"cost at {_size(results['sizes']['cost'])} in bfloat16",
        fontsize=10,
    )
    # No version of matplotlib in the file: the same results give the same bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _size(size: dict[str, int]) -> str:
    return f"N = {size['n']}, {size['d']} -> {size['h']} -> {size['o']}"


def _agreement(at: Axes, spectrum: str, results: dict[str, Any], first: bool) -> None:
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in results["agreement"]:
        if record["spectrum"] == spectrum:
            point = (record["m"], 1.0 - record["spearman"])
            curves.setdefault(record["variant"], []).append(point)
    for i, (variant, points) in enumerate(curves.items()):
        m, gap = zip(*points, strict=True)
        style = "o-" if i < len(_COLORS) else "s--"
        color = _COLORS[i % len(_COLORS)]
        at.plot(m, [max(g, 1e-9) for g in gap], style, color=color, ms=4, label=variant)
    at.set_xscale("log", base=2)
    at.set_yscale("log")
    at.set_xlabel("directions m of the published formula")
    if first:
        at.set_ylabel("1 - Spearman's correlation with float64")
    ratio = results["participation"][spectrum]
    at.set_title(f"{spectrum} spectrum (participation ratio {ratio:.0f})", fontsize=10)
    at.grid(True, which="major", alpha=0.3)


def _cost(at: Axes, results: dict[str, Any]) -> None:
    names = [f"{c['variant']}{', m = ' + str(c['m']) if c['m'] else ''}" for c in results["cost"]]
    times = [c["median_ms"] for c in results["cost"]]
    colors = ["#999999" if name[0] == "p" else "#D55E00" for name in names]
    at.barh(range(len(names)), times, color=colors)
    for i, (cost, milliseconds) in enumerate(zip(results["cost"], times, strict=True)):
        text = f" {_digits(milliseconds)} ms, {_digits(cost['gflop'])} GFLOP"
        at.text(milliseconds, i, text, va="center", fontsize=7)
    at.set_yticks(range(len(names)), names, fontsize=7)
    at.invert_yaxis()
    at.set_xscale("log")
    at.set_xlim(right=max(times) * 6)
    at.set_xlabel("milliseconds a call, median (grey: the projector and the published shape)")
    at.grid(True, axis="x", alpha=0.3)


def _digits(x: float) -> str:
    return f"{x:.0f}" if x >= 100.0 else f"{x:.2g}"
