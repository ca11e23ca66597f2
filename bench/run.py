# SPDX-License-Identifier: Apache-2.0
"""Run a suite: `python -m bench.run [--suite cpu|smoke|full] [--out DIR] [--only PATTERN]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import ceilings, pages, plot, report
from bench.environment import RESULTS, ROOT, SCRATCH, environment
from bench.measure import measure
from bench.registry import Workload, suite
from bench.results import Results
from bench.timing import Machine
from zspa_kernels._ops import dispatch

console = Console(stderr=True)


def run(workloads: list[Workload], results: Results, path: Path) -> None:
    """Measure the workloads; the file at `path` is valid after every record."""
    start = time.perf_counter()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(results.suite, total=len(workloads))
        for workload in workloads:
            progress.update(task, description=workload.name)
            results.workloads[workload.name] = workload
            threads = results.environment["threads"]
            for record in measure(workload, results.ceilings, threads, results.seed):
                results.records.append(record)
                results.seconds = time.perf_counter() - start
                results.write(path)
                if record.status == "wrong":
                    progress.console.print(
                        f"{record.workload}: {record.contender}: no figure: {record.reason}",
                        markup=False,
                    )
            progress.advance(task)
    results.complete = True
    results.write(path)


def run_in(
    folder: Path, workloads: list[Workload], results: Results, published: bool
) -> tuple[Path, str]:
    """Measure the workloads into a file of `folder`; a published one is replaced at the end.

    Returns:
        The file, and why it is not a published one, if it should be.
    """
    path = (SCRATCH if published else folder) / f"{results.suite}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = Machine()
    try:
        run(workloads, results, path)
    except KeyboardInterrupt:
        _stop(f"interrupted after {len(results.records)} records, which are in {path}", 130)
    refusal = machine.refusal() if published else ""
    if published and not refusal:
        path = path.replace(folder / path.name)
    return path, refusal


def stop_if_wrong(results: Results) -> None:
    """Exit code 1 where picks of this package are wrong."""
    if any(record.kind == "ours" and record.status == "wrong" for record in results.records):
        _stop("wrong picks: see above")


def main(
    suite_name: Annotated[str, typer.Option("--suite", help="smoke, cpu or full.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of <suite>.json and <suite>.png.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="Shell pattern that part of a workload's name must match.")
    ] = "*",
    seed: Annotated[int, typer.Option(help="Seed of the tokens.")] = 0,
    readme: Annotated[
        Path | None, typer.Option(help="File whose table is rewritten between its markers.")
    ] = None,
) -> None:
    """Run a suite and write <suite>.json, <suite>.png and a table.

    The whole cpu suite goes to bench/results and into README.md, and needs the machine for itself;
    a part of it, and the other suites, go to build/bench unless --out says otherwise.
    """
    published = suite_name == "cpu" and only == "*" and out is None
    if published and readme is None:
        readme = ROOT / "README.md"
    try:
        workloads = suite(suite_name, only)
        if readme is not None:
            pages.rewrite(readme.read_text(), report.TABLE, "")
    except (OSError, ValueError) as error:
        _stop(str(error))
    why = dispatch.why_not("cpp", "select", torch.device("cpu"))
    if why is not None:
        _stop(f"the native kernels are what is measured: {why}")
    out = out or (RESULTS if published else SCRATCH)
    out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    smoke = suite_name == "smoke"
    rates = (
        ceilings.measure(threads, gemm_size=256, stream_size=2**16, seconds=0.01)
        if smoke
        else ceilings.measure(threads)
    )
    if published and rates.busy(threads):
        _stop(rates.refusal(threads))
    results = Results(suite_name, seed, environment(threads), rates)
    path, refusal = run_in(out, workloads, results, published)
    if refusal:
        _stop(f"{refusal}; they are in {path}")
    plot.plot(path.with_suffix(".png"), results)
    if readme is not None:
        report.update_readme(readme, results)
    console.width = max(console.width, 175)  # a workload a line
    console.print(report.table(results))
    console.print(f"{path}, {path.with_suffix('.png').name}: {results.seconds:.0f} s")
    stop_if_wrong(results)


def _stop(text: str, code: int = 1) -> None:
    console.print(text, style="red", highlight=False)
    sys.exit(code)


if __name__ == "__main__":
    typer.run(main)
