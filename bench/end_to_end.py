# SPDX-License-Identifier: Apache-2.0
"""What pruning saves in a whole answer: `python -m bench.end_to_end [--preset small]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import pages
from bench.end_to_end_models import PRESETS
from bench.end_to_end_report import TABLE, added, plot, tables, write_page
from bench.end_to_end_runs import CONTENDERS, measure
from bench.environment import RESULTS, ROOT, SCRATCH, environment
from bench.timing import quiet
from zspa_kernels._contract import values as _values

PAGE = ROOT / "docs" / "efficiency.md"

console = Console(stderr=True)


def run(preset: str, device: torch.device, new_tokens: int, rounds: int) -> dict[str, Any]:
    """Measure one model, with a bar."""
    import transformers

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    threads = torch.get_num_threads()
    steps = 1 + len(CONTENDERS) * (2 + rounds)
    with Progress(*columns, console=console) as progress, quiet(threads):
        task = progress.add_task(preset, total=steps)

        def tick(what: str) -> None:
            progress.update(task, advance=1, description=f"{preset}: {what}")

        found = measure(PRESETS[preset], device, new_tokens, rounds, tick)
    found["environment"] = {**environment(threads), "transformers": transformers.__version__}
    return found


def main(
    preset: Annotated[
        list[str] | None,
        typer.Option(help=f"Of {', '.join(PRESETS)}; may be repeated. By default small."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default a GPU if there is one.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Length of an answer.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed answers of each contender.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.")] = None,
    add: Annotated[
        Path | None,
        typer.Option(help="end_to_end.json of bench.gpu: its models are added, none is measured."),
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Into bench/results and docs/efficiency.md.")
    ] = False,
) -> None:
    """Time whole answers: unpruned, DivPrune's published loop, DivPrune and ZSPAPrune from here.

    Models have the shapes of well-known ones and random weights, on which time does not depend.
    Results are added to end_to_end.json, a model each; its picture and table show all of them.
    """
    chosen = preset or ([] if add else ["small"])
    unknown = [name for name in chosen if name not in PRESETS]
    if unknown:
        _stop(f"--preset must be one of {', '.join(PRESETS)}, got {unknown[0]}", 2)
    try:
        wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
        place = _values.place("bench.end_to_end", "--device", wanted)
    except ValueError as error:
        _stop(str(error), 2)
    if place.type == "cpu" and any(PRESETS[name].gpu for name in chosen):
        _stop(f"{', '.join(chosen)}: too slow for a CPU, and there is no GPU here", 2)
    if publish and out is not None:
        _stop("--out must not be given with --publish, which has a place of its own", 2)
    if publish:
        pages.rewrite(PAGE.read_text(), TABLE, "")  # which fails before minutes have passed
    folder = RESULTS if publish else out or SCRATCH
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "end_to_end.json"
    results = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    if add is not None:
        try:
            names = added(results, json.loads(add.read_text()))
        except (OSError, ValueError, KeyError) as error:
            _stop(f"--add must be a file of bench.gpu's end_to_end stage: {error!r}", 2)
        console.print(f"added: {', '.join(names) or 'nothing, no job passed'}", highlight=False)
        path.write_text(json.dumps(results, indent=1) + "\n")
    for name in chosen:
        try:
            results["runs"][name] = run(name, place, new_tokens, rounds)
        except AssertionError as error:
            _stop(f"{name}: no figure: {error}")
        path.write_text(json.dumps(results, indent=1) + "\n")
    plot(path.with_suffix(".png"), results)
    if publish:
        write_page(PAGE, results)
    print(tables(results))
    console.print(f"{path}, {path.with_suffix('.png').name}", highlight=False)


def _stop(text: str, code: int = 1) -> NoReturn:
    console.print(text, style="red", highlight=False, markup=False)
    sys.exit(code)


if __name__ == "__main__":
    typer.run(main)
