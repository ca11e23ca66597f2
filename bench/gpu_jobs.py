# SPDX-License-Identifier: Apache-2.0
"""Jobs in processes of their own, with a time limit; each outcome is on disk when it is known."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Of the output of a job that is kept.
TAIL = 4000


@dataclass(frozen=True)
class Job:
    """A command and how long it may take.

    Those of one turn run before those of the next. A turn with one that is `alone`, because it is
    timed, runs one after another. A job is not run if one of those it `follows` hung: it would hang
    as well, and the others would wait for it.
    """

    name: str
    command: Sequence[str]
    seconds: float
    variables: dict[str, str] = field(default_factory=dict)
    turn: int = 0
    alone: bool = False
    follows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        name: Of the job.
        status: "passed", "failed", "too slow" (killed at its limit), "cut off" (the time of the
            stage was up before that), or "not run" (it was up already, or a job it follows was too
            slow).
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


def python_path() -> str:
    """This checkout, before what the caller's PYTHONPATH has."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


#: Variable with the time at which a job is killed; so many seconds before it says where it is.
END, BEFORE = "BENCH_GPU_END", 2.0
_ERROR = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|OutOfResources)\b")
_FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\w+)')


def watch() -> None:
    """In the process of a job: let it say where it hangs before it is killed."""
    left = float(os.environ.get(END, "0")) - time.time() - BEFORE
    if left > 0:
        faulthandler.dump_traceback_later(left, exit=False)


def reason(output: str) -> str:
    """What the output of a job says of its end, in a line: the error, and where in `bench`.

    Behind what happened CUDA and Triton write how to find out more.
    """
    hangs = output.rfind("Timeout (")  # the first line of what `watch` lets it say
    frames = [
        f"{Path(path).name}:{line} {name}"
        for path, line, name in _FRAME.findall(output[max(hangs, 0) :])
        if Path(path).parent.name == "bench" and not name.startswith("<")
    ]
    if hangs >= 0 and frames:
        return "still in " + ", of ".join(frames[:3])
    lines = output.strip().splitlines() or ["no output"]
    error = ([line for line in lines if _ERROR.match(line)] or lines)[-1]
    told = "" if error == lines[-1] or "CUDA" in error else f" ... {lines[-1].strip()}"
    asserted = error.startswith("AssertionError")  # which says more than its place
    place = ", of ".join(frames[:-3:-1])
    return error[:200] + told[:100] + (f" ({place})" if place and not asserted else "")


#: Seconds a killed process may take to end.
GRACE = 10.0
#: Groups of the processes that run now.
_running: set[int] = set()


def stop_all() -> None:
    """Kill every job that runs, with its children."""
    for group in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def run(job: Job) -> Outcome:
    """Run a job to its end or its limit; its children end with it."""
    start = time.perf_counter()
    process = subprocess.Popen(
        job.command,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": python_path(),
            END: str(time.time() + job.seconds),
            **job.variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    status = None
    _running.add(process.pid)
    try:
        output, _ = process.communicate(timeout=job.seconds)
    except subprocess.TimeoutExpired:
        status = "too slow"
        os.killpg(process.pid, signal.SIGKILL)
        try:
            output, _ = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired as late:  # stuck in a driver: it is left behind
            if process.stdout is not None:
                process.stdout.close()
            process.poll()
            seen = late.output or b""
            output = seen.decode(errors="replace") if isinstance(seen, bytes) else seen
            output += f"\nkilled, but it has not ended {GRACE:g} s later"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        _running.discard(process.pid)
    status = status or ("passed" if process.returncode == 0 else "failed")
    lines = output.splitlines()
    data = list(_objects(lines))
    tail = "\n".join(line for line in lines if not line.startswith("{"))[-TAIL:]
    return Outcome(job.name, status, round(time.perf_counter() - start, 2), tail, data)


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects among lines; one that was cut off by a kill is left out."""
    for line in lines:
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


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
    workers: int = 1,
    done: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Run jobs until `end` (of `time.perf_counter`), turn by turn, `workers` at a time.

    The file at `path` has `head` and the outcomes so far, in the order of the jobs, after every
    job; then `done` is called. What the file has of other jobs and the same commit stays in it. A
    job gets no more than the time that is left; one that would have none is recorded as "not run".
    """
    jobs = list(jobs)
    names = [job.name for job in jobs]
    before = json.loads(path.read_text()) if path.exists() else {"jobs": []}
    same = before.get("git") == head.get("git")
    kept = [job for job in before["jobs"] if same and job["name"] not in names]
    outcomes: dict[str, Outcome] = {}
    recording = threading.Lock()

    def one(job: Job) -> None:
        left = end - time.perf_counter()
        with recording:
            hung = [n for n in job.follows if n in outcomes and outcomes[n].status == "too slow"]
        outcome = Outcome(job.name, "not run", tail="the time of the stage was up")
        if hung:
            outcome = replace(outcome, tail=f"{hung[0]} was too slow")
        elif left >= 1:
            outcome = run(replace(job, seconds=min(job.seconds, left)))
            if outcome.status == "too slow" and left < job.seconds:
                outcome = replace(outcome, status="cut off")
        with recording:
            outcomes[job.name] = outcome
            found = [asdict(outcomes[name]) for name in names if name in outcomes]
            write(path, {**head, "jobs": kept + found})
            failed = outcome.status in ("failed", "too slow")
            told = reason(outcome.tail) if failed else ""
            say(f"{outcome.status:8} {outcome.seconds:7.1f} s  {job.name}  {told}")
            done()

    for turn in sorted({job.turn for job in jobs}):
        now = [job for job in jobs if job.turn == turn]
        with ThreadPoolExecutor(1 if any(job.alone for job in now) else workers) as pool:
            try:
                for future in [pool.submit(one, job) for job in now]:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                stop_all()
                raise
    return [outcomes[name] for name in names]
