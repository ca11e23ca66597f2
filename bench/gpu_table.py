# SPDX-License-Identifier: Apache-2.0
"""The README's table of a GPU: `python -m bench.gpu_table FILE`, a file that `bench.gpu` wrote.

Medians of captured calls as they are replayed, and of whole calls; ratios are to verified baselines
of the same process. What has no verified figure has none here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import gpu_report, pages
from bench.environment import RESULTS, ROOT
from bench.gpu_report import Medians
from bench.registry import Workload, gpu_suite

TABLE = "bench:gpu"
PUBLISHED = RESULTS / "h100.json"


def medians(results: dict[str, Any]) -> dict[str, Medians]:
    """Of each workload."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in _records(results):
        found.setdefault(record["workload"], []).append(record)
    return {name: gpu_report.medians(records) for name, records in found.items()}


def _records(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [r for job in results["jobs"] for r in job["data"] if "workload" in r]


def table(results: dict[str, Any]) -> str:
    """The workloads in the order of the suite, as markdown, and where they ran."""
    found = medians(results)
    rows = pages.head(
        *("images x N x D", "K (core)", "replay, us", "with cold L2, us", "whole call, us"),
        *("over Gram + incremental, captured", "over the published loop"),
    )
    for work in gpu_suite():
        if work.name in found:
            rows.append(_row(work, found[work.name]))
    return "\n".join([*rows, "", *_notes(results)])


def _row(work: Workload, times: Medians) -> str:
    replay, cold, whole = (times.get(("zspa", mode)) for mode in gpu_report.MODES)
    gram, loop = gpu_report.rivals(times)
    images = 1 if work.single else len(work.images)
    model = "" if work.tokens == "vlm" else f", {work.tokens}"
    dtype = "" if work.dtype == "bf16" else f", {work.dtype}"
    return pages.row(
        f"{images} x {work.n} x {work.d}{model}{dtype}", f"{work.k} ({work.k_core})",
        *(_us(value) for value in (replay, cold, whole)),
        _times(gram, replay), f"{_times(loop, replay)} ({_times(loop, whole)})",
    )  # fmt: skip


def _us(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{1000 * milliseconds:.0f}"


def _times(slower: float | None, faster: float | None) -> str:
    return "-" if slower is None or faster is None else f"{slower / faster:.0f}x"


def _notes(results: dict[str, Any]) -> Iterator[str]:
    records = _records(results)
    verified = sum(record["status"] == "verified" for record in records)
    yield (
        f"{results['device']}, driver {results['driver']}, torch {results['torch']}, Triton "
        f"{results['triton']}, {pages.commit(results)}, {results['date'][:10]}."
    )
    yield (
        "Medians, `vlm` tokens in bfloat16; the baselines get float32 copies and the same core. "
        "*Over the published loop*: DivPrune's without core, ZSPAPrune's with, against a replay "
        "and, in parentheses, against a whole call."
    )
    yield f"Verified in float64: {verified} of {len(records)} records."


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the table in the README."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_table", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=PUBLISHED)
    results = json.loads(parser.parse_args(arguments).file.read_text())
    readme = ROOT / "README.md"
    readme.write_text(pages.rewrite(readme.read_text(), TABLE, table(results)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
