# SPDX-License-Identifier: Apache-2.0
"""Compare two result files: `python -m bench.compare OLD NEW`.

Exit code 0: nothing got worse beyond noise; 1: something did; 2: the files cannot be compared.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.registry import Workload
from bench.report import milliseconds, plain_dots, ratio
from bench.results import Record, Results

#: Two builds of the same code differ by this much through the layout of their instructions alone.
LEAST_NOISE = 0.03


@dataclass(frozen=True)
class Change:
    """One of this package's records in two files.

    Attributes:
        workload: Its name.
        contender: Its name.
        old: Earlier record.
        new: Later record.
        noise: Relative difference of times that says nothing.
    """

    workload: str
    contender: str
    old: Record
    new: Record
    noise: float

    @property
    def ratio(self) -> float | None:
        """New time over old time."""
        return ratio(self.new, self.old)

    @property
    def verdict(self) -> str:
        """One of "wrong", "slower", "more work", "faster" and "same"."""
        if self.new.status != "verified":
            return "wrong" if self.old.status == "verified" else "same"
        if self.ratio is not None and self.ratio > 1 + self.noise:
            return "slower"
        if self.new.work and self.old.work and self.new.work.dots > self.old.work.dots:
            return "more work"
        if self.ratio is not None and self.ratio < 1 / (1 + self.noise):
            return "faster"
        return "same"

    @property
    def worse(self) -> bool:
        """Whether this is a regression. More work at the same speed is told, and is none."""
        return self.verdict in ("wrong", "slower")


def drift(old: Results, new: Results) -> float:
    """How much the baselines moved between two files, as a median of relative differences.

    Their code is the same in both, so what they moved is the machine.
    """
    before = {(r.workload, r.contender): r for r in old.records if r.kind == "baseline"}
    moves = []
    for record in new.records:
        change = ratio(record, before.get((record.workload, record.contender)))
        if change is not None:
            moves.append(max(change, 1 / change) - 1)
    return statistics.median(moves) if moves else 0.0


def compare(old: Results, new: Results) -> list[Change]:
    """This package's records that both files have.

    Raises:
        ValueError: If the files are of different machines, threads or seeds, a workload has
            another meaning, or they share no record.
    """
    for what, before, after in (
        ("CPU", old.environment["cpu"]["model"], new.environment["cpu"]["model"]),
        ("instruction set", old.environment["isa"], new.environment["isa"]),
        ("threads", old.environment["threads"], new.environment["threads"]),
        ("seed", old.seed, new.seed),
    ):
        if before != after:
            raise ValueError(f"{what} must be the same in both files, got {before} and {after}")
    for name in old.workloads.keys() & new.workloads.keys():
        if _asked(old.workloads[name]) != _asked(new.workloads[name]):
            raise ValueError(f"workload {name} must be the same in both files")
    earlier = {(r.workload, r.contender): r for r in old.records if r.kind == "ours"}
    moved = drift(old, new)
    changes = []
    for record in new.records:
        before = earlier.get((record.workload, record.contender))
        if record.kind == "ours" and before is not None:
            spread = [r.times.noise or 0.0 for r in (before, record) if r.times is not None]
            noise = max([LEAST_NOISE, moved, *spread])
            changes.append(Change(record.workload, record.contender, before, record, noise))
    if not changes:
        raise ValueError("the files share no record")
    return changes


def _asked(workload: Workload) -> Workload:
    """What is selected from what; not what else runs, nor for how long."""
    return dataclasses.replace(workload, against=(), seconds=0.0, warm=True)


def missing(old: Results, new: Results) -> list[str]:
    """Workloads of which only the earlier file has a record of this package."""
    measured = {r.workload for r in new.records if r.kind == "ours"}
    return sorted({r.workload for r in old.records if r.kind == "ours"} - measured)


def table(changes: list[Change], workloads: dict[str, int]) -> Table:
    """All changes, for a terminal; `workloads` gives N K by name."""
    out = Table()
    out.add_column("workload", overflow="fold")
    for name in ("old ms", "new ms", "new / old", "noise", "dots/NK old", "new", ""):
        out.add_column(name, justify="right")
    for change in changes:
        dots = workloads[change.workload]
        out.add_row(
            f"{change.workload} {change.contender}",
            _cell(milliseconds(change.old)),
            _cell(milliseconds(change.new)),
            _cell(change.ratio),
            f"{100 * change.noise:.0f} %",
            _share(change.old, dots),
            _share(change.new, dots),
            change.verdict,
            style="red" if change.worse else None,
        )
    return out


def _share(record: Record, dots: int) -> str:
    return "-" if record.work is None else f"{record.work.dots / dots:.3g}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def main(
    old: Annotated[Path, typer.Argument(help="Earlier result file.")],
    new: Annotated[Path, typer.Argument(help="Later result file.")],
) -> None:
    """Compare this package's records of two result files of one machine."""
    console = Console()
    console.width = max(console.width, 120)
    try:
        before, after = Results.read(old), Results.read(new)
        changes = compare(before, after)
    except (OSError, ValueError, KeyError, TypeError) as error:
        console.print(str(error), style="red", highlight=False)
        sys.exit(2)
    console.print(table(changes, {name: plain_dots(w) for name, w in after.workloads.items()}))
    worse = [change for change in changes if change.worse]
    console.print(
        f"{len(worse)} of {len(changes)} worse beyond noise; the baselines moved by "
        f"{100 * drift(before, after):.0f} %"
    )
    absent = missing(before, after)
    if absent:
        console.print(f"not compared, as the later file lacks them: {', '.join(absent)}")
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    typer.run(main)
