# SPDX-License-Identifier: Apache-2.0
"""The tables of the sensitivity study, for the terminal and for a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import pages

TABLE = "study"


def tables(results: dict[str, Any]) -> str:
    """Everything that was found, in Markdown."""
    where = f"`python -m bench.sensitivity`: {pages.where(results['environment'])}"
    agreement = (
        f"Agreement with a float64 run of the published formula, {_size(results, 'agreement')}: "
        "Spearman's correlation, share of the top 10 % in common, median relative difference."
    )
    cost = (
        f"Cost, {_size(results, 'cost')}, bfloat16 unless said otherwise; {where}. Median of the "
        "calls, time in forward passes of the projector, largest error of the checked tokens "
        "against float64. What was over twice as slow in float32 was not run with more directions."
    )
    memory = ", ".join(f"{name} {mb:.0f} MB" for name, mb in results["peak_mb"].items())
    ratios = "\n".join(f"- {name}: {ratio:.2f}" for name, ratio in results["checks"].items())
    parts = [agreement, _agreement(results), cost, _cost(results)]
    parts += [f"Peak memory beside the arguments: {memory}.", ratios]
    return "\n\n".join(parts) + "\n"


def write_page(path: Path, results: dict[str, Any]) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        ValueError: If the page has no marks.
    """
    path.write_text(pages.rewrite(path.read_text(), TABLE, f"\n{tables(results)}"))


def _size(results: dict[str, Any], which: str) -> str:
    size = results["sizes"][which]
    return f"N = {size['n']}, {size['d']} -> {size['h']} -> {size['o']}"


def _agreement(results: dict[str, Any]) -> str:
    ratios = results["participation"]
    heads = [f"{name} (participation ratio {ratio:.0f})" for name, ratio in ratios.items()]
    rows: dict[tuple[str, int], list[str]] = {}
    for record in results["agreement"]:
        error = "" if record["error"] is None else f"{record['error']:.0e}"
        cell = f"{record['spearman']:.3f} {record['top10']:.2f} {error}".strip()
        rows.setdefault((record["variant"], record["m"]), []).append(cell)
    lines = pages.head("variant", "m", *heads)
    lines += [pages.row(variant, str(m), *cells) for (variant, m), cells in rows.items()]
    return "\n".join(lines)


def _cost(results: dict[str, Any]) -> str:
    lines = pages.head("variant", "m", "ms", "p10 - p90", "GFLOP", "forward passes", "error")
    for cost in results["cost"]:
        error = "" if cost["error"] is None else f"{cost['error']:.0e}"
        cells = (
            str(cost["m"] or ""),
            f"{cost['median_ms']:.1f}",
            f"{cost['p10_ms']:.1f} - {cost['p90_ms']:.1f}",
            f"{cost['gflop']:.1f}",
            f"{cost['forward']:.2f}",
        )
        lines.append(pages.row(cost["variant"], *cells, error))
    return "\n".join(lines)
