# SPDX-License-Identifier: Apache-2.0
"""Selection among the tokens of real towers: `python -m bench.real [--only PATTERN]`.

The towers of `bench.towers` see the photographs of `bench.photographs`; the contenders of the other
benchmarks choose among their tokens. What the synthetic token models claim is measured of both.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from bench import ceilings, pages, photographs, report, towers
from bench.environment import RESULTS, ROOT, SCRATCH, environment
from bench.greedy import dots_share
from bench.registry import SHAPES, Shape, Workload, loops, workload
from bench.report import Line, number, times
from bench.results import Results
from bench.run import console, run_in, stop_if_wrong
from bench.towers import TOWERS
from zspa_kernels import split_core
from zspa_kernels.backends.cpp.dpp import dpp
from zspa_kernels.backends.cpp.min_sum import min_sum
from zspa_kernels.testing import MODELS, tokens

PAGE = ROOT / "docs" / "real_tokens.md"
SPEED, FACTS, DOTS = "bench:real", "bench:facts", "bench:dots"
SHAPE_NAMES = ("llava15", "qwen25vl", "llavanext")
CORES = (0.0, 0.4)
#: The model whose figures the README shows stands beside the photographs.
SYNTHETIC = "vlm"


def suite(only: str = "*") -> list[Workload]:
    """Every photograph by every tower, and `vlm` tokens, in every shape.

    Raises:
        ValueError: For a pattern that matches no name.
    """
    every = (*photographs.names(), SYNTHETIC)
    chosen = [name for name in every if fnmatch(name, only)]
    if not chosen:
        raise ValueError(f"only must match one of {every}, got {only!r}")
    return [
        workload(shape, core, tokens=name, against=(*loops(core > 0), "compiled"), seconds=0.5)
        for shape in SHAPE_NAMES
        for core in CORES
        for name in chosen
    ]


# ---- what the tokens are like --------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What makes a selection easy or hard, of the tokens of one square image.

    Attributes:
        common: Mean cosine of two tokens.
        beside: Mean cosine of a token and its right neighbour.
        nearest: Cosine of a token and the one most similar to it, the median.
        outliers: Share of tokens more than twice as long as the median.
        longest: Length of the longest token over the median.
        directions: Principal directions that hold 90 % of the variance.
    """

    common: float
    beside: float
    nearest: float
    outliers: float
    longest: float
    directions: float


def facts(visual: Tensor) -> Facts:
    """Of tokens `[N, D]` of a square image in raster order, in float64."""
    n = len(visual)
    x = visual.double()
    lengths = x.norm(dim=-1)
    cosines = (x / lengths[:, None]) @ (x / lengths[:, None]).T
    others = cosines.masked_fill(torch.eye(n, dtype=torch.bool), -1.0)
    right = cosines.diagonal(1)[torch.arange(1, n) % round(n**0.5) != 0]  # not of the last column
    shares = torch.linalg.svdvals(x - x.mean(0)).square().cumsum(0)
    return Facts(
        float((cosines.sum() - cosines.trace()) / (n * (n - 1))),
        float(right.mean()),
        float(others.amax(1).median()),
        float((lengths > 2 * lengths.median()).double().mean()),
        float(lengths.max() / lengths.median()),
        int((shares < 0.9 * shares[-1]).sum()) + 1,
    )


def facts_table(n: int = 576, d: int = 4096) -> str:
    """Markdown: a row a tower, the median and the range over its photographs, and a row a model."""
    heads = ("tokens", *Facts.__dataclass_fields__)
    rows = pages.head(*heads)
    for source, names in _sources().items():
        real = source in TOWERS
        visual = [photographs.seen(x, n).tokens if real else tokens(x, n, d) for x in names]
        columns = zip(*(astuple(facts(each)) for each in visual), strict=True)
        cells = (_spread(values) if real else number(values[0]) for values in columns)
        rows.append(pages.row(_title(source), *cells))
    return "\n".join(rows)


def _spread(values: Iterable[float]) -> str:
    low, *_, high = ordered = sorted(values)
    return f"{number(statistics.median(ordered))} ({number(low)} to {number(high)})"


# ---- what other rules compute --------------------------------------------------------------------


RULES: dict[str, Callable[[Tensor, int], float]] = {
    "dpp": lambda visual, k: dots_share(dpp, visual, k, None, None),
    "min_sum": lambda visual, k: dots_share(min_sum, visual, k, None, None),
}


def dots_table(shapes: tuple[str, ...] = ("llava15", "llavanext")) -> str:
    """Markdown: dots over N K of the other rules, a row a source; of a tower median and range."""
    columns = [(rule, SHAPES[shape]) for rule in RULES for shape in shapes]
    heads = ("tokens", *(f"{rule}, {shape.n} x {shape.d}" for rule, shape in columns))
    rows = pages.head(*heads)
    for source, names in _sources().items():
        cells = []
        for rule, shape in columns:
            found = [RULES[rule](_bf16(name, shape), shape.k) for name in names]
            cells.append(_spread(found) if len(found) > 1 else number(found[0]))
        rows.append(pages.row(_title(source), *cells))
    return "\n".join(rows)


def _sources() -> dict[str, list[str]]:
    """Names of tokens by what made them: a tower's photographs, or a model by itself."""
    made = {tower: [f"{tower}:{p}" for p in photographs.PHOTOGRAPHS] for tower in TOWERS}
    return made | {model: [model] for model in MODELS if model != "exact"}


def _bf16(name: str, shape: Shape) -> Tensor:
    if name in MODELS:
        return tokens(name, shape.n, shape.d, dtype=torch.bfloat16)
    return photographs.draw(name, shape.n, shape.d, torch.bfloat16)[0]


# ---- what a selection costs ----------------------------------------------------------------------


def speed_table(results: Results) -> str:
    """Markdown: for each shape and core a row a tower, with its photographs, and one of `vlm`."""
    every = list(report.lines(results))
    heads = ("N x D", "K (core)", "tokens", "ours, ms", "gain", "least gain", "dots / NK", "most")
    rows = pages.head(*heads)
    for shape in SHAPE_NAMES:
        for core in CORES:
            k_core = split_core(SHAPES[shape].k, core)
            alike = [x for x in every if (x.workload.shape, x.workload.k_core) == (shape, k_core)]
            for source in (*TOWERS, SYNTHETIC):
                own = [x for x in alike if x.workload.tokens.partition(":")[0] == source]
                rows += [_row(source, own)] if own else []
    return "\n".join([*rows, "", *_notes(results, every)])


def _row(source: str, own: list[Line]) -> str:
    first = own[0].workload
    least = min(own, key=lambda line: line.gain or 0.0)
    most = max(own, key=lambda line: line.dots_share or 0.0)
    cells = (
        f"{first.n} x {first.d}",
        f"{first.k} ({first.k_core})",
        _title(source),
        number(_middle(report.milliseconds(line.ours) for line in own)),
        times(_middle(line.gain for line in own)),
        _where(times(least.gain), least),
        number(_middle(line.dots_share for line in own)),
        _where(number(most.dots_share), most),
    )
    return pages.row(*cells)


def _title(source: str) -> str:
    return TOWERS[source].title if source in TOWERS else f"`{source}`"


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _where(text: str, line: Line) -> str:
    _, _, photograph = line.workload.tokens.partition(":")
    return f"{text} ({photograph})" if photograph else "-"


def _notes(results: Results, every: list[Line]) -> Iterator[str]:
    wrong = sum(line.ours.status != "verified" for line in every)
    verified = sum(record.status == "verified" for record in results.records)
    yield f"`python -m bench.real`: {pages.where(results.environment)}."
    yield (
        "Medians of one image a call, bf16 tokens, then over the photographs. *Gain*: over the "
        "strongest PyTorch loop, which gets float32 copies and the same core. *Dots / NK*: dot "
        "products, the first pick's included, over N K."
    )
    yield (
        f"Verified in float64: {verified} of {len(results.records)} records"
        + (f"; **wrong picks of ours in {wrong}**" if wrong else "")
        + ("." if results.complete else "; **the run was interrupted**.")
    )


def main(
    only: Annotated[
        str, typer.Option(help="Shell pattern of tokens, such as 'clip:*'; vlm is one of them.")
    ] = "*",
    out: Annotated[Path | None, typer.Option(help="Folder of real.json.")] = None,
) -> None:
    """Time selections among real tokens; without options, rewrite the tables of the page.

    Downloads 90 MB for each tower, once; `pip install onnx` is needed to read them.
    """
    published = only == "*" and out is None
    threads = torch.get_num_threads()
    try:
        workloads = suite(only)
        if published:  # which fails before minutes have passed
            for mark in (SPEED, DOTS, FACTS):
                pages.rewrite(PAGE.read_text(), mark, "")
        for name in TOWERS:
            towers.fetch(name)
        rates = ceilings.measure(threads)
        if published and rates.busy(threads):
            raise RuntimeError(rates.refusal(threads))
    except (RuntimeError, ValueError) as error:
        console.print(str(error), style="red", highlight=False)
        sys.exit(1)
    folder = out or (RESULTS if published else SCRATCH)
    folder.mkdir(parents=True, exist_ok=True)
    results = Results("real", 0, environment(threads), rates)
    _, refusal = run_in(folder, workloads, results, published)
    made = {SPEED: speed_table(results), DOTS: dots_table(), FACTS: facts_table()}
    if published and not refusal:
        page = PAGE.read_text()
        for mark, content in made.items():
            page = pages.rewrite(page, mark, content)
        PAGE.write_text(page)
    console.print("\n\n".join(made.values()), markup=False, soft_wrap=True)
    if refusal:
        console.print(refusal, style="red", highlight=False)
        sys.exit(1)
    stop_if_wrong(results)


if __name__ == "__main__":
    typer.run(main)
