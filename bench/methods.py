# SPDX-License-Identifier: Apache-2.0
"""Every method beside the plain PyTorch reading of its paper: `python -m bench.methods`.

Both run in turn in one process; what the timed calls of ours returned must be what the reading
returns in float64, or pass the replay of every pick. Writes methods.json, and the table of
docs/methods.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from torch import Tensor

import zspa_kernels as zk
from bench import pages
from bench.environment import ROOT, environment
from bench.method_readings import GREEDY, READINGS, aligned, anchor, distinct, scaled
from bench.registry import SHAPES
from bench.timing import Machine, interleave, quiet, summary, warm_up
from zspa_kernels.testing import bound, check_diversity, check_select, prompt, tokens
from zspa_kernels.testing.min_sum import check_min_sum

TABLE = "bench:methods"
PAGE = ROOT / "docs" / "methods.md"

#: suite -> (shape, token model, seconds for each method). Left out of the registry's shapes are
#: `video`, where a reading's matrix of similarities takes a gigabyte, and `large`, where readings
#: take seconds.
SUITES = {
    "cpu": (
        ("tiny", "vlm", 0.3),
        ("llava15", "vlm", 0.8),
        ("llavanext", "vlm", 1.0),
        ("llavanext", "iid", 1.0),
        ("narrow", "vlm", 0.3),
        ("small", "vlm", 0.3),
        ("qwen25vl", "vlm", 0.5),
    ),
    "smoke": (("small", "vlm", 0.01), ("small", "exact", 0.01)),
}
#: Columns of the table; the last one is the least gain of all records.
SHOWN = (("tiny", "vlm"), ("llava15", "vlm"), ("llavanext", "vlm"), ("llavanext", "iid"))
#: Width of keys: ToMe's are the mean of heads, others' all heads of CLIP ViT-L.
KEYS = {"dart": 1024, "tome": 64, "visionzip": 1024}

console = Console()


@dataclass(frozen=True)
class Record:
    """One method on one workload.

    Attributes:
        method: Its name.
        shape: Name of the shape, see `registry`.
        model: Of the tokens.
        n: Tokens.
        d: Their width.
        k: Kept.
        greedy: Whether its cost is a greedy loop.
        ours_ms: Median, tokens in bfloat16.
        reading_ms: Median, tokens copied to float32 beforehand.
        gain: How many times as long the reading takes.
        noise: Of ours, see `timing.Summary`.
        verified: "equal" to the float64 reading, "replayed" pick by pick, or what is wrong; then
            there are no times.
    """

    method: str
    shape: str
    model: str
    n: int
    d: int
    k: int
    greedy: bool
    ours_ms: float | None
    reading_ms: float | None
    gain: float | None
    noise: float | None
    verified: str


def inputs(name: str, n: int, d: int, model: str, seed: int = 0) -> dict[str, Tensor]:
    """What the method takes: tokens and prompt in bfloat16, distinct scores."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.randperm(n, generator=generator).float() / n
    keys = torch.randn(n, KEYS.get(name, 1), generator=generator).bfloat16()
    if name == "adaptprune":  # of a layer of the language model, as wide as its tokens
        keys = tokens(model, n, d, seed + 1, torch.bfloat16)
    place, columns = torch.arange(n), math.isqrt(n)
    everything = {
        "visual": tokens(model, n, d, seed, torch.bfloat16),
        "prompt": prompt(model, 16, d, seed, torch.bfloat16),
        "keys": keys,
        "image_embeds": torch.randn(n, 768, generator=generator).bfloat16(),
        "text_embeds": torch.randn(1, 768, generator=generator).bfloat16(),
        "positions": torch.stack((place // columns, place % columns), -1),
        **dict.fromkeys(("attention", "saliency", "scores", "sensitivity"), score),
    }
    names = [x.name for x in zk.methods.about(name).inputs]
    return {x: everything[x] for x in names if x in everything}


def ours(name: str, k: int, given: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    """The call that is timed; VisionZip's also merges, as that is most of its work."""
    method: Any = (
        zk.methods.get(name, keep=k, sorted=False)
        if name not in ("tome", "scoredtopk")
        else zk.methods.get(name, keep=k)
    )

    def zip_() -> Tensor:
        merging = method.assign(**given)
        merging.merge(given["visual"])
        indices: Tensor = merging.selection.indices
        return indices

    def select() -> Tensor:
        indices: Tensor = method.select(**given).indices
        return indices

    return zip_ if name == "visionzip" else select


def verify(name: str, picks: Tensor, k: int, given: Mapping[str, Tensor]) -> str:
    """What was verified of the picks, or what is wrong with them."""
    wide = {x: v.double() for x, v in given.items()}
    right = READINGS[name](k, **wide)
    if torch.equal(picks.sort().values, right.sort().values):
        return "equal"
    visual, tolerance = given["visual"], bound(given["visual"].shape[-1], "cpp")
    try:
        if name in ("divprune", "zspaprune"):
            core = round(0.2 * k) if name == "zspaprune" else 0
            check_select(visual, given.get("prompt"), core, k - core, picks, bound=tolerance)
        elif name == "zooprune":
            weights = scaled(wide["sensitivity"]).float()
            check_diversity(visual, picks, k, bound=tolerance, weights=weights)
        elif name == "cenprune":
            # Its own weights: a replay has no tolerance for what float32 does to them.
            own = zk.methods.get(name, keep=k).select(**given).scores
            torch.testing.assert_close(own, distinct(wide["visual"]).float(), rtol=0.0, atol=1e-4)
            middle = zk.primitives.centred(visual)
            check_diversity(middle, picks, k, bound=tolerance, weights=own)
        elif name == "anchorprune":
            first = anchor(k, wide["image_embeds"], wide["text_embeds"])
            core = len(first)
            assert torch.equal(picks[:core], first), "the anchor differs from float64"
            later, weights = picks[core:], given["attention"]
            check_diversity(
                visual, later, k - core, bound=tolerance, seeds=picks[:core], weights=weights
            )
        elif name in ("todre", "trimtokenator"):
            mask = torch.ones(len(visual), dtype=torch.bool)
            if name == "trimtokenator":
                mask = torch.zeros_like(mask).index_fill(
                    0, aligned(wide["visual"], wide["prompt"]), True
                )
            check_min_sum(visual, picks, k, bound=tolerance, mask=mask)
        else:
            return f"{len(set(picks.tolist()) - set(right.tolist()))} picks differ from float64"
    except AssertionError as error:
        return str(error)
    return "replayed"


def measure(name: str, shape: str, model: str, seconds: float, seed: int = 0) -> Record:
    """Time one method on one workload."""
    size = SHAPES[shape]
    given = inputs(name, size.n, size.d, model, seed)
    single = {x: v.float() for x, v in given.items()}
    call = ours(name, size.k, given)

    def reading() -> Tensor:
        return READINGS[name](size.k, **single)

    warm_up(call)
    warm_up(reading, 0.0)
    samples = interleave(call, {"reading": reading}, seconds)
    result = samples[""].result
    verified = "calls disagree"
    if result is not None and samples[""].steady:
        verified = verify(name, result, size.k, given)
    head = (name, shape, model, size.n, size.d, size.k, name in GREEDY)
    if verified not in ("equal", "replayed"):
        return Record(*head, None, None, None, None, verified)
    mine, other = summary(samples[""].slots), summary(samples["reading"].slots)
    gain = other.median_ms / mine.median_ms
    return Record(*head, mine.median_ms, other.median_ms, gain, mine.noise, verified)


def table(results: Mapping[str, Any]) -> str:
    """The records as Markdown, and where they were made.

    A row a method: some workloads, and the least gain of all of them.
    """
    sizes = {(r["shape"], r["model"]): r for r in results["records"]}
    workloads = [x for x in sizes if x in SHOWN] or list(sizes)
    heads = ["method"] + [
        f"{model}, {sizes[shape, model]['n']} x {sizes[shape, model]['d']}, "
        f"K = {sizes[shape, model]['k']}"
        for shape, model in workloads
    ]
    heads.append("least gain")
    lines = pages.head(*heads)
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for r in results["records"]:
        methods.setdefault(r["method"], []).append(r)
    for name, records in methods.items():
        title = f"`{name}`" + (" (greedy)" if records[0]["greedy"] else "")
        cells = [_cell(r) for r in records if (r["shape"], r["model"]) in workloads]
        lines.append(pages.row(title, *cells, _least(records)))
    good = sum(r["gain"] is not None for r in results["records"])
    where = (
        f"{pages.where(results['environment'])}. Medians of one image a call, ours / reading. "
        f"Verified against float64: {good} of {len(results['records'])} records. The least gain is "
        f"that of all of a method's records: {_names(sizes.values())}."
    )
    lines += ["", where]
    return "\n".join(lines)


def _cell(record: Mapping[str, Any]) -> str:
    if record["gain"] is None:
        return f"**{record['verified']}**"
    return f"{record['ours_ms']:.3g} / {record['reading_ms']:.3g} ms, {record['gain']:.3g}x"


def _least(records: list[Mapping[str, Any]]) -> str:
    """The smallest gain and where; what is wrong, if a record has none."""
    for r in records:
        if r["gain"] is None:
            return f"**{r['verified']}**"
    least = min(records, key=lambda r: r["gain"])
    return f"{least['gain']:.3g}x ({_names([least])})"


def _names(records: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{r['model']} {r['n']} x {r['d']}" for r in records)


def main(
    suite: Annotated[Literal["cpu", "smoke"], typer.Option()] = "cpu",
    only: Annotated[str | None, typer.Option(help="One method.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of methods.json.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for torch's choice.")] = 0,
    seed: Annotated[int, typer.Option(help="Of tokens and scores.")] = 0,
) -> None:
    """Run the comparison.

    The whole cpu suite goes to bench/results and docs/methods.md; parts of it and the smoke suite
    to build/bench, or to the folder of --out.
    """
    if only is not None and only not in READINGS:
        raise typer.BadParameter(f"--only must be one of {', '.join(READINGS)}, got {only}")
    threads = threads or torch.get_num_threads()
    published = suite == "cpu" and only is None and out is None
    if published:
        pages.rewrite(PAGE.read_text(), TABLE, "")  # which fails before minutes have passed
    start, machine = time.perf_counter(), Machine()
    records: list[Record] = []
    with quiet(threads):
        for name in READINGS if only is None else [only]:
            for shape, model, seconds in SUITES[suite]:
                records.append(measure(name, shape, model, seconds, seed))
                r = records[-1]
                gain = "no figure" if r.gain is None else f"{r.ours_ms:.3g} ms, {r.gain:.3g}x"
                console.print(f"{name:15} {shape:10} {model:8} {gain}, {r.verified}")
    results = {
        "schema": 1,
        "suite": suite,
        "seed": seed,
        "environment": environment(threads),
        "records": [asdict(r) for r in records],
        "seconds": round(time.perf_counter() - start, 1),
    }
    refusal = machine.refusal() if published else ""
    published = published and not refusal
    pages.write("methods", results, published, out)
    if published:
        PAGE.write_text(pages.rewrite(PAGE.read_text(), TABLE, table(results)))
    console.print(table(results), markup=False, soft_wrap=True)
    wrong = [r for r in records if r.gain is None]
    if refusal:
        console.print(refusal, style="red", highlight=False)
        raise typer.Exit(1)
    if wrong:
        names = ", ".join(sorted({r.method for r in wrong}))
        console.print(f"wrong picks, no figure: {names}", style="red", highlight=False)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
