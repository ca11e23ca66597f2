# SPDX-License-Identifier: Apache-2.0
"""The greedy ops and the methods on them: `python -m bench.greedy [--suite cpu|smoke]`.

Each method beside the plain PyTorch reading of its paper, in one process, interleaved: the loops of
`zspa_kernels.testing.baselines` and `method_readings` on a full matrix. The first picks of a timed
call are replayed against the float64 oracle; a wrong one ends the run. Writes greedy.json and the
table of docs/greedy.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

import zspa_kernels as zk
from bench import pages
from bench.environment import ROOT, environment
from bench.method_readings import todre
from bench.timing import Machine, Samples, interleave, quiet, summary, warm_up
from zspa_kernels.backends.cpp.dpp import dpp as native_dpp
from zspa_kernels.backends.cpp.min_sum import min_sum as native_min_sum
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
            (576, 4096, 58): ("vlm", "iid", "video", "clusters"),
            (1296, 3584, 130): ("vlm",),
            (2880, 4096, 288): ("vlm", "iid", "video", "clusters"),
        },
        0.5,
    ),
    "smoke": ({(40, 32, 6): ("vlm", "iid")}, 0.01),
}
WORDS = 16
#: Picks of a timed call that are replayed in float64.
REPLAYED = 24
TABLE = "bench:greedy"
PAGE = ROOT / "docs" / "greedy.md"

console = Console()


@dataclass(frozen=True)
class Pair:
    """This package's call, the plain reading, and a check of the picks of the former."""

    name: str
    ours: Callable[[], Tensor]
    plain: Callable[[], Tensor]
    check: Callable[[Tensor], Any]
    dots: Callable[[], float] | None = None  # of ours, over N K; None where they are N^2 / 2


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
    dots: float | None = None  # computed, over N K; see `Pair`


def dots_share(native: Any, visual: Tensor, k: int, *others: Tensor | None) -> float:
    """How many dots a native greedy computed, over those of every token with every pick."""
    stats = torch.zeros(3, dtype=torch.int64)
    native(visual, k, *others, stats)
    return int(stats[1]) / (len(visual) * k)


def relevance(visual: Tensor, words: Tensor) -> Tensor:
    """CDPruner's weight of each token."""
    cosines = (normalize(visual, dim=-1) @ normalize(words, dim=-1).T).mean(-1)
    return (cosines - cosines.min()) / (cosines.max() - cosines.min())


def word_shares(visual: Tensor, words: Tensor) -> Tensor:
    """What each token gives to each word in MMTok."""
    cosines = normalize(words, dim=-1) @ normalize(visual, dim=-1).T
    return torch.softmax(cosines / 0.02, -1) / len(words)


def pairs(n: int, d: int, k: int, model: str, dtype: torch.dtype) -> Iterator[Pair]:
    """The five rules on one image.

    Raises:
        AssertionError: what a method weighs tokens by is not what its formula gives in float64.
    """
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
        lambda: dots_share(native_dpp, visual, k, None, None),
    )

    yield Pair(
        "min_sum",
        lambda: zk.min_sum(visual, k),
        lambda: todre(k, visual=wide),
        lambda picks: check_min_sum(visual, picks[:few], few, bound=error),
        lambda: dots_share(native_min_sum, visual, k, None, None),
    )

    cdpruner = CDPruner(k, space="llm", sorted=False)
    weights = cdpruner.select(visual, words).scores
    right = relevance(visual.double(), words.double()).float()
    torch.testing.assert_close(weights, right, rtol=0.0, atol=1e-4)

    yield Pair(
        "CDPruner",
        lambda: cdpruner.select(visual, words).indices,
        lambda: dpp_loop(wide, k, relevance(wide, texts)),
        lambda picks: check_dpp(visual, picks[:few], few, weights=weights, bound=error),
        lambda: dots_share(native_dpp, visual, k, weights, None),
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
    right = word_shares(visual.double(), words.double()).float()
    torch.testing.assert_close(benefits, right, rtol=1e-3, atol=1e-9)

    def plain_mmtok() -> Tensor:
        unit = normalize(wide, dim=-1)
        own = torch.softmax(unit @ unit.T / 0.2, -1) / n
        return facility_location_loop(torch.cat([word_shares(wide, texts), 0.5 * own]), k)

    yield Pair(
        "MMTok",
        lambda: mmtok.select(visual, words).indices,
        plain_mmtok,
        lambda picks: check_facility_location(
            visual, picks[:few], few, benefits=benefits, temperature=0.2, scale=0.5, bound=error
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
                        warm_up(pair.plain, 0.0)
                        samples = interleave(pair.ours, {"plain": pair.plain}, seconds)
                    name = str(dtype).removeprefix("torch.")
                    r = _record(pair, (name, model, n, d, k), samples[""], samples["plain"])
                    records.append(r)
                    console.print(
                        f"{r.rule} {r.dtype} {r.model} {n} x {d}, K = {k}: {r.ours_ms:.2f} ms, "
                        f"plain {r.plain_ms:.1f} ms, {r.gain:.1f}x, "
                        f"{r.replayed} picks replayed, {r.decided} decided"
                    )
    return records


def _record(
    pair: Pair, workload: tuple[str, str, int, int, int], ours: Samples, plain: Samples
) -> Record:
    """What the timed calls of a pair say; the picks of ours are checked first."""
    if ours.result is None or plain.result is None or not ours.steady:
        raise RuntimeError(f"{pair.name}: calls with the same arguments differ")
    replay = pair.check(ours.result)
    same = len(set(ours.result.tolist()) & set(plain.result.tolist())) / len(ours.result)
    ms, plain_ms = (summary(samples.slots).median_ms for samples in (ours, plain))
    dots = None if pair.dots is None else pair.dots()
    times = (ms, plain_ms, plain_ms / ms)
    return Record(pair.name, *workload, *times, same, replay.picks, replay.decided, dots)


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row a rule and shape, `vlm` tokens; the least gain of the other models."""
    records = [Record(**fields) for fields in results["records"]]
    heads = ["rule", "N x D", "K", "bf16, ms", "float32, ms", "plain, ms", "gain, bf16", "fp32"]
    lines = pages.head(*heads, "elsewhere", "dots / NK", "elsewhere")
    for record in records:
        if record.model != "vlm" or record.dtype != "bfloat16":
            continue
        like = [r for r in records if (r.rule, r.n, r.d) == (record.rule, record.n, record.d)]
        wide = next(r for r in like if r.model == "vlm" and r.dtype == "float32")
        others = [r for r in like if r.model != "vlm"]
        least = min(others, key=lambda r: r.gain, default=None)
        worst = f"{least.gain:.1f}x ({least.model})" if least else "-"
        times = f"{record.ours_ms:.3g}", f"{wide.ours_ms:.3g}", f"{record.plain_ms:.4g}"
        gains = f"{record.gain:.1f}x", f"{wide.gain:.1f}x", worst
        sizes = f"{record.n} x {record.d}", str(record.k)
        lines.append(pages.row(record.rule, *sizes, *times, *gains, _dots([record]), _dots(others)))
    lines += ["", f"`python -m bench.greedy`: {pages.where(results['environment'])}."]
    return "\n".join(lines)


def _dots(records: list[Record]) -> str:
    """The most dots of these records over N K."""
    counted = [(r.dots, r.model) for r in records if r.dots is not None]
    if not counted:
        return "-"
    dots, model = max(counted)
    return f"{dots:.2f}" + ("" if model == "vlm" else f" ({model})")


def main(
    suite: Annotated[Literal["cpu", "smoke"], typer.Option()] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder of greedy.json.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for torch's choice.")] = 0,
) -> None:
    """Time the greedy ops; the cpu suite without --out rewrites the table of docs/greedy.md."""
    threads = threads or torch.get_num_threads()
    published = suite == "cpu" and out is None
    if published:
        pages.rewrite(PAGE.read_text(), TABLE, "")  # which fails before minutes have passed
    machine = Machine()
    records = measure(suite, threads)
    refusal = machine.refusal() if published else ""
    published = published and not refusal
    results = {
        "schema": 1,
        "suite": suite,
        "environment": environment(threads),
        "records": [asdict(record) for record in records],
    }
    pages.write("greedy", results, published, out)
    if published:
        PAGE.write_text(pages.rewrite(PAGE.read_text(), TABLE, table(results)))
    console.print(table(results), markup=False, soft_wrap=True)
    if refusal:
        console.print(refusal, style="red", highlight=False)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
