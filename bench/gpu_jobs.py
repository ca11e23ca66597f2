# SPDX-License-Identifier: Apache-2.0
"""Jobs in processes of their own, with a time limit, whose outcome is on disk before the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Of the output of a job that is kept.
TAIL = 4000


@dataclass(frozen=True)
class Job:
    """A command and how long it may take."""

    name: str
    command: Sequence[str]
    seconds: float
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        name: Of the job.
        status: "passed", "failed", "too slow" (killed at its limit), or "not run" (the time of the
            stage was up).
        seconds: It took.
        tail: End of its output.
        data: The JSON objects it printed, one a line.
    """

    name: str
    status: str
    seconds: float = 0.0
    tail: str = ""
    data: list[dict[str, Any]] = field(default_factory=list)


def python(*arguments: str) -> tuple[str, ...]:
    """A command of this interpreter."""
    return (sys.executable, *arguments)


def run(job: Job) -> Outcome:
    """Run a job to its end or its limit; its children end with it."""
    start = time.perf_counter()
    process = subprocess.Popen(
        job.command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **job.variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    status = None
    try:
        output, _ = process.communicate(timeout=job.seconds)
    except subprocess.TimeoutExpired:
        status = "too slow"
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    status = status or ("passed" if process.returncode == 0 else "failed")
    lines = output.splitlines()
    data = [json.loads(line) for line in lines if line.startswith("{")]
    tail = "\n".join(line for line in lines if not line.startswith("{"))[-TAIL:]
    return Outcome(job.name, status, round(time.perf_counter() - start, 2), tail, data)


def write(path: Path, content: Any) -> None:
    """Replace a JSON file; a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)


def run_all(
    jobs: Iterable[Job],
    path: Path,
    head: dict[str, Any],
    end: float,
    say: Callable[[str], None],
) -> list[Outcome]:
    """Run jobs one after another until `end` (of `time.perf_counter`).

    The file at `path` has `head` and all outcomes so far after every job. A job gets no more than
    the time that is left; one that would have none is recorded as "not run".
    """
    outcomes: list[Outcome] = []
    for job in jobs:
        left = end - time.perf_counter()
        if left < 1:
            outcome = Outcome(job.name, "not run", tail="the time of the stage was up")
        else:
            limit = min(job.seconds, left)
            outcome = run(Job(job.name, job.command, limit, job.variables))
        outcomes.append(outcome)
        write(path, {**head, "jobs": [asdict(o) for o in outcomes]})
        last = outcome.tail.strip().splitlines()[-1:] if outcome.status != "passed" else []
        say(f"{outcome.status:8} {outcome.seconds:7.1f} s  {job.name}  {' '.join(last)[:150]}")
    return outcomes
