# SPDX-License-Identifier: Apache-2.0
"""The greedy ops and the methods on them: `python -m bench.greedy [--suite cpu|smoke]`.

Each method beside the plain PyTorch reading of its paper, in one process, interleaved: the loops of
`zspa_kernels.testing.baselines` and `method_readings` on a full matrix. The first picks of a timed
call are replayed against the float64 oracle; a wrong one ends the run. Writes greedy.json and the
table of docs/greedy.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

import zspa_kernels as zk
from bench.environment import ROOT, environment
from bench.method_readings import todre
from bench.timing import interleave, quiet, summary, warm_up
from zspa_kernels.methods import SCOPE, CDPruner, MMTok
from zspa_kernels.testing import bound, prompt, tokens
from zspa_kernels.testing.baselines import dpp_loop, facility_location_loop
from zspa_kernels.testing.dpp import check_dpp
from zspa_kernels.testing.facility_location import check_facility_location
from zspa_kernels.testing.min_sum import check_min_sum

#: suite -> ((N, D, K) with their token models, seconds a pair)
SUITES: dict[str, tuple[dict[tuple[int, int, int], tuple[str, ...]], float]] = {
    "cpu": (
        {
            (64, 4096, 8): ("vlm",),
            (576, 4096, 58): ("vlm", "iid", "video"),
            (1296, 3584, 130): ("vlm",),
            (2880, 4096, 288): ("vlm", "iid", "video"),
        },
        0.5,
    ),
    "smoke": ({(40, 32, 6): ("vlm", "iid")}, 0.01),
}
WORDS = 16
#: Picks of a timed call that are replayed in float64.
REPLAYED = 24
MARKS = ("<!-- bench:greedy:begin -->", "<!-- bench:greedy:end -->")

console = Console()


@dataclass(frozen=True)
class Pair:
    """This package's call, the plain reading, and a check of the picks of the former."""

    name: str
    ours: Callable[[], Tensor]
    plain: Callable[[], Tensor]
    check: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Record:
    """One pair, timed."""

    rule: str
    dtype: str
    model: str
    n: int
    d: int
    k: int
    ours_ms: float
    plain_ms: float
    gain: float
    same: float  # share of picks the plain loop has too; its float32 decides near ties its own way
    replayed: int
    decided: int


def pairs(n: int, d: int, k: int, model: str, dtype: torch.dtype) -> Iterator[Pair]:
    """The five rules on one image."""
    visual = tokens(model, n, d, dtype=dtype)
    words = prompt(model, WORDS, d, dtype=dtype)
    draw = torch.Generator().manual_seed(0)
    attention = torch.rand(n, generator=draw)
    wide, texts = visual.float(), words.float()  # half-precision loops choose other tokens
    error = bound(d)
    few = min(k, REPLAYED)

    yield Pair(
        "dpp",
        lambda: zk.dpp(visual, k),
        lambda: dpp_loop(wide, k),
        lambda picks: check_dpp(visual, picks[:few], few, bound=error),
    )

    yield Pair(
        "min_sum",
        lambda: zk.min_sum(visual, k),
        lambda: todre(k, visual=wide),
        lambda picks: check_min_sum(visual, picks[:few], few, bound=error),
    )

    cdpruner = CDPruner(k, space="llm", sorted=False)
    weights = cdpruner.select(visual, words).scores

    def plain_cdpruner() -> Tensor:
        relevance = (normalize(wide, dim=-1) @ normalize(texts, dim=-1).T).mean(-1)
        scaled = (relevance - relevance.min()) / (relevance.max() - relevance.min())
        return dpp_loop(wide, k, scaled)

    yield Pair(
        "CDPruner",
        lambda: cdpruner.select(visual, words).indices,
        plain_cdpruner,
        lambda picks: check_dpp(visual, picks[:few], few, weights=weights, bound=error),
    )

    scope = SCOPE(k, sorted=False)

    def plain_scope() -> Tensor:
        unit = normalize(wide, dim=-1)
        return facility_location_loop(unit @ unit.T, k, attention.sqrt())

    yield Pair(
        "SCOPE",
        lambda: scope.select(visual, attention=attention).indices,
        plain_scope,
        lambda picks: check_facility_location(
            visual, picks[:few], few, weights=attention.sqrt(), bound=error
        ),
    )

    mmtok = MMTok(k, sorted=False)
    benefits, _ = mmtok._words(visual, words)

    def plain_mmtok() -> Tensor:
        unit = normalize(wide, dim=-1)
        rows = torch.softmax(normalize(texts, dim=-1) @ unit.T / 0.02, -1) / WORDS
        own = torch.softmax(unit @ unit.T / 0.2, -1) / n
        return facility_location_loop(torch.cat([rows, 0.5 * own]), k)

    yield Pair(
        "MMTok",
        lambda: mmtok.select(visual, words).indices,
        plain_mmtok,
        lambda picks: check_facility_location(
            visual,
            picks[:few],
            few,
            benefits=benefits,
            temperature=0.2,
            scale=0.5,
            bound=error,
        ),
    )


def measure(suite: str, threads: int) -> list[Record]:
    """Time every pair of a suite."""
    shapes, seconds = SUITES[suite]
    records = []
    for (n, d, k), models in shapes.items():
        for model in models:
            for dtype in (torch.bfloat16, torch.float32)[: 2 if model == "vlm" else 1]:
                for pair in pairs(n, d, k, model, dtype):
                    with quiet(threads):
                        warm_up(pair.ours)
                        samples = interleave(pair.ours, {"plain": pair.plain}, seconds)
                    ours, plain = (summary(samples[x].slots).median_ms for x in ("", "plain"))
                    picks, other = samples[""].result, samples["plain"].result
                    if picks is None or other is None or not samples[""].steady:
                        raise RuntimeError(f"{pair.name}: calls with the same arguments differ")
                    replay = pair.check(picks)
                    same = len(set(picks.tolist()) & set(other.tolist())) / k
                    name = str(dtype).removeprefix("torch.")
                    sizes = (pair.name, name, model, n, d, k)
                    records.append(Record(*sizes, ours, plain, plain / ours, same, *replay))
                    console.print(
                        f"{pair.name} {name} {model} {n} x {d}, K = {k}: {ours:.2f} ms, "
                        f"plain {plain:.1f} ms, {plain / ours:.1f}x, "
                        f"{replay.picks} picks replayed, {replay.decided} decided"
                    )
    return records


def table(records: list[Record]) -> str:
    """Markdown: a row a rule and shape, `vlm` tokens; the least gain of the other models."""
    lines = [
        "| rule | N x D | K | bf16, ms | float32, ms | plain, ms | gain, bf16 | fp32 | elsewhere |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        if record.model != "vlm" or record.dtype != "bfloat16":
            continue
        like = [r for r in records if (r.rule, r.n, r.d) == (record.rule, record.n, record.d)]
        wide = next(r for r in like if r.model == "vlm" and r.dtype == "float32")
        others = [r for r in like if r.model != "vlm"]
        least = min(others, key=lambda r: r.gain, default=None)
        worst = f"{least.gain:.1f}x ({least.model})" if least else "-"
        lines.append(
            f"| {record.rule} | {record.n} x {record.d} | {record.k} | {record.ours_ms:.3g} | "
            f"{wide.ours_ms:.3g} | {record.plain_ms:.4g} | {record.gain:.1f}x | {wide.gain:.1f}x | "
            f"{worst} |"
        )
    return "\n".join(lines)


def main(
    suite: Annotated[str, typer.Option(help="cpu or smoke.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder of greedy.json.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 for torch's choice.")] = 0,
) -> None:
    """Time the greedy ops; the cpu suite without --out rewrites the table of docs/greedy.md."""
    if suite not in SUITES:
        raise typer.BadParameter(f"must be one of {', '.join(SUITES)}, got {suite}")
    threads = threads or torch.get_num_threads()
    records = measure(suite, threads)
    where = environment(threads)
    published = suite == "cpu" and out is None
    folder = out or ROOT / ("bench/results" if published else "build/bench")
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "schema": 1,
        "suite": suite,
        "environment": where,
        "records": [asdict(record) for record in records],
    }
    (folder / "greedy.json").write_text(json.dumps(results, indent=1) + "\n")
    if published:
        page = ROOT / "docs" / "greedy.md"
        text = page.read_text()
        start, end = (text.index(mark) for mark in MARKS)
        note = (
            f"\n\n`python -m bench.greedy`: {where['cpu']['model']}, {threads} threads, "
            f"{where['isa']}, torch {torch.__version__}, {where['date'][:10]}.\n"
        )
        page.write_text(text[:start] + MARKS[0] + "\n" + table(records) + note + text[end:])
    console.print(table(records), markup=False)


if __name__ == "__main__":
    typer.run(main)
