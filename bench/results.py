# SPDX-License-Identifier: Apache-2.0
"""The result file: what a run knows, written after every record."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.ceilings import Ceilings, Floor, Work
from bench.registry import Workload
from bench.timing import Summary
from bench.verify import Verdict

SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """One contender on one workload.

    Attributes:
        workload: Its name; the file has its fields under `workloads`.
        contender: Name of the contender.
        kind: "ours", "baseline" or "inexact".
        status: "verified" (has times), "inexact" (has times, picks other tokens), "wrong" (no
            times: `reason` is the first wrong pick) or "unavailable" (`reason` says why).
        reason: Why there are no times, or why they are inexact.
        verdict: What was verified.
        times: Summary of the times.
        slots: All times in milliseconds, slot by slot.
        work: Passes and dots; this package's op only.
        floor: Least times; this package's op only.
        load_average: Of the last minute, after the timed calls.
    """

    workload: str
    contender: str
    kind: str
    status: str
    reason: str = ""
    verdict: Verdict | None = None
    times: Summary | None = None
    slots: list[list[float]] | None = None
    work: Work | None = None
    floor: Floor | None = None
    load_average: float | None = None


@dataclass
class Results:
    """A result file."""

    suite: str
    seed: int
    environment: dict[str, Any]
    ceilings: Ceilings
    workloads: dict[str, Workload] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0

    def of(self, workload: str) -> dict[str, Record]:
        """The records of a workload by contender."""
        return {r.contender: r for r in self.records if r.workload == workload}

    def write(self, path: Path) -> None:
        """Replace the file at `path`; a reader never sees half of it."""
        head = {
            "schema": SCHEMA,
            "suite": self.suite,
            "complete": self.complete,
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
            "environment": self.environment,
            "ceilings": asdict(self.ceilings),
        }
        workloads = {name: asdict(workload) for name, workload in self.workloads.items()}
        text = json.dumps(head, indent=1)[:-2]  # without the closing brace
        text += ',\n "workloads": {' + _lines(
            f"{json.dumps(name)}: {_dumps(fields)}" for name, fields in workloads.items()
        )
        text += '},\n "records": [' + _lines(_dumps(asdict(r)) for r in self.records) + "]\n}\n"
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        os.replace(part, path)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a result file.

        Raises:
            ValueError: If it is no result file of this schema.
        """
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema must be {SCHEMA}")
        rates = {
            name: {int(threads): rate for threads, rate in by_threads.items()}
            for name, by_threads in data["ceilings"].items()
        }
        return cls(
            data["suite"],
            data["seed"],
            data["environment"],
            Ceilings(**rates),
            {name: _workload(fields) for name, fields in data["workloads"].items()},
            [_record(fields) for fields in data["records"]],
            data["complete"],
            data["seconds"],
        )


def _lines(parts: Any) -> str:
    """One a line, so that two files can be compared by a diff."""
    return "\n  " + ",\n  ".join(parts) + "\n "


def _dumps(fields: dict[str, Any]) -> str:
    return json.dumps(_rounded(fields), separators=(", ", ": "), allow_nan=False)


def _rounded(value: Any) -> Any:
    """Nanoseconds are noise, and raw times are many."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _workload(fields: dict[str, Any]) -> Workload:
    ragged = tuple((n, k_core, k_diverse) for n, k_core, k_diverse in fields["ragged"])
    return Workload(**{**fields, "ragged": ragged, "against": tuple(fields["against"])})


_NESTED = {"verdict": Verdict, "times": Summary, "work": Work, "floor": Floor}


def _record(fields: dict[str, Any]) -> Record:
    parts = {
        key: None if fields[key] is None else make(**fields[key]) for key, make in _NESTED.items()
    }
    return Record(**{**fields, **parts})
