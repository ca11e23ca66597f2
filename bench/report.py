# SPDX-License-Identifier: Apache-2.0
"""What a result file says: one line a workload, and the README's table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from bench import pages
from bench.contenders import OURS
from bench.registry import SHAPES, Workload
from bench.results import Record, Results
from zspa_kernels import split_core
from zspa_kernels.testing import MODELS

PUBLISHED = ("divprune_loop", "zspaprune_loop")


@dataclass(frozen=True)
class Line:
    """One workload, this package's op against the others.

    Attributes:
        workload: The workload.
        ours: Record of the op; without times if its picks were wrong.
        strongest: Fastest verified baseline, or None.
        other: The other record of this package, verified: an image or a column at a time.
        published: Record of the published loop, verified, or None.
        refused: How many contenders have no figure because their picks were wrong.
    """

    workload: Workload
    ours: Record
    strongest: Record | None
    other: Record | None
    published: Record | None
    refused: int

    @property
    def gain(self) -> float | None:
        """How many times faster than the strongest baseline."""
        return ratio(self.strongest, self.ours)

    @property
    def published_gain(self) -> float | None:
        """How many times faster than the published loop."""
        return ratio(self.published, self.ours)

    @property
    def other_gain(self) -> float | None:
        """How many times faster than an image, or a column, at a time."""
        return ratio(self.other, self.ours)

    @property
    def dots_share(self) -> float | None:
        """Counted dots over N K."""
        return None if self.ours.work is None else self.ours.work.dots / plain_dots(self.workload)

    @property
    def seed_share(self) -> float | None:
        """Those of DivPrune's seed over N K."""
        if self.ours.work is None:
            return None
        return self.ours.work.seed_dots / plain_dots(self.workload)

    @property
    def over_floor(self) -> float | None:
        """Time over the counted dots at the GEMM rate."""
        if self.ours.times is None or self.ours.floor is None or not self.ours.floor.dots_ms:
            return None
        return self.ours.times.median_ms / self.ours.floor.dots_ms


def ratio(slower: Record | None, faster: Record | None) -> float | None:
    """Ratio of two medians, where both exist."""
    above, below = milliseconds(slower), milliseconds(faster)
    return None if above is None or below is None else above / below


def plain_dots(workload: Workload) -> int:
    """N K, summed over the images."""
    return sum(n * (core + diverse) for n, core, diverse in workload.images)


def lines(results: Results) -> Iterator[Line]:
    """The workloads of a file in its order."""
    for name, workload in results.workloads.items():
        records = results.of(name)
        if OURS not in records:
            continue
        baselines = [r for r in records.values() if r.kind == "baseline" and r.times is not None]
        strongest = min(baselines, key=lambda r: milliseconds(r) or 0.0, default=None)
        published = next((r for r in baselines if r.contender in PUBLISHED), None)
        own = (r for r in records.values() if r.kind == "ours" and r.contender != OURS)
        refused = sum(record.status == "wrong" for record in records.values())
        yield Line(workload, records[OURS], strongest, next(own, None), published, refused)


def milliseconds(record: Record | None) -> float | None:
    """Median of a record that has times."""
    return None if record is None or record.times is None else record.times.median_ms


def table(results: Results) -> Table:
    """All workloads, for a terminal."""
    cpu = results.environment["cpu"]["model"]
    out = Table(title=f"{results.suite}: {cpu}, {results.environment['threads']} threads")
    out.add_column("workload", no_wrap=True)
    for name in (
        "ms", "+-", "strongest", "ms", "x", "published x", "own x", "passes", "dots/NK", "seed/NK",
        "/floor", "checked",
    ):  # fmt: skip
        out.add_column(name, justify="right")
    for line in lines(results):
        ours = line.ours
        out.add_row(
            line.workload.name,
            number(milliseconds(ours)),
            _percent(ours.times.noise if ours.times else None),
            line.strongest.contender if line.strongest else "-",
            number(milliseconds(line.strongest)),
            number(line.gain),
            number(line.published_gain),
            number(line.other_gain),
            str(ours.work.passes) if ours.work else "-",
            number(line.dots_share),
            number(line.seed_share),
            number(line.over_floor),
            _checked(line),
        )
    return out


def _checked(line: Line) -> str:
    if line.ours.verdict is None:
        return f"[red]WRONG[/red] {line.ours.reason}"
    return line.ours.verdict.judge + (f", {line.refused} refused" if line.refused else "")


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


# ---- README --------------------------------------------------------------------------------------

TABLE = "bench:cpu"
_HEADLINES = ("llava15", "qwen25vl", "llavanext", "large", "video")
_HEADER = (
    "| N x D | K (core) | ours, ms | strongest loop, ms | gain | over the published loop | "
    "least gain elsewhere | time / floor | dots / NK |"
)


def readme_table(results: Results) -> str:
    """The headline shapes as markdown, each with its least gain over all token models."""
    every = list(lines(results))
    rows = [_HEADER, "|---|---|---|---|---|---|---|---|---|"]
    for shape in _HEADLINES:
        for core in (0.0, 0.4):
            k_core = split_core(SHAPES[shape].k, core)
            alike = [line for line in every if _is_headline(line.workload, shape, k_core)]
            rows += [_row(line, alike) for line in alike if line.workload.tokens == "vlm"]
    return "\n".join([*rows, "", *_notes(results, every)])


def _is_headline(workload: Workload, shape: str, k_core: int) -> bool:
    same = workload.shape == shape and workload.k_core == k_core and workload.dtype == "bf16"
    return workload.single and same and workload.tokens in MODELS


def _row(line: Line, alike: list[Line]) -> str:
    workload, strongest = line.workload, line.strongest
    others = [o for o in alike if o is not line and o.gain is not None]
    least = min(others, key=lambda other: other.gain or 0.0, default=None)
    cells = (
        f"{workload.n} x {workload.d}",
        f"{workload.k} ({workload.k_core})",
        number(milliseconds(line.ours)) if line.ours.times else "wrong picks: no figure",
        f"{strongest.contender} {number(milliseconds(strongest))}" if strongest else "-",
        times(line.gain),
        times(line.published_gain),
        f"{times(least.gain)} ({least.workload.tokens})" if least else "-",
        times(line.over_floor),
        number(line.dots_share),
    )
    return pages.row(*cells)


def times(value: float | None) -> str:
    return "-" if value is None else f"{number(value)}x"


def _notes(results: Results, every: list[Line]) -> Iterator[str]:
    wrong = [line for line in every if line.ours.status != "verified"]
    count = len(results.records)
    verified = sum(record.status == "verified" for record in results.records)
    refused = sum(record.status == "wrong" for record in results.records)
    # What has no figure in the table: half-precision loops, and contenders that are not installed.
    others = Counter(
        f"{record.status} (`{record.contender}`)"
        for record in results.records
        if record.status not in ("verified", "wrong")
    )
    yield f"`make bench`: {pages.where(results.environment)}."
    yield (
        "Medians of one image a call, bf16 `vlm` tokens; the loops get float32 copies and the same "
        "core. *Published loop*: DivPrune's without core, ZSPAPrune's with. *Elsewhere*: on the "
        "other token models. *Floor*: the counted dots at the machine's best GEMM rate. "
        "*dots / NK*: their number, the first pick's included, over N K."
    )
    yield (
        f"Verified in float64: {verified} of {count} records"
        + "".join(f"; {number} {what}" for what, number in others.items())
        + (f"; {refused} refused a figure" if refused else "")
        + (f"; **wrong picks of ours in {len(wrong)}**" if wrong else "")
        + ("." if results.complete else "; **the run was interrupted**.")
    )


def update_readme(path: Path, results: Results) -> None:
    """Rewrite the table in the README at `path`."""
    path.write_text(pages.rewrite(path.read_text(), TABLE, readme_table(results)))
