# SPDX-License-Identifier: Apache-2.0
"""Prove and measure the GPU path: `python -m bench.gpu --minutes 9`, or one of its stages.

For a machine with a GPU, torch and Triton, and perhaps nothing else: no network, no virtual
environment. Hence argparse and plain text: typer and rich, which `bench.run` uses, may be missing
there. Every check and every workload runs in a process of its own with a time limit, and the files
in --out are complete after each of them: environment.json, one file a stage, summary.txt. The stage
`all` is correctness and timing, the most telling first. The stage end_to_end needs transformers as
well; its models have random weights.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from bench import gpu_report
from bench.gpu_check import BY_DTYPE
from bench.gpu_checks import CHECKS
from bench.gpu_jobs import ROOT, Job, Outcome, python, run_all, write
from bench.gpu_phases import OPS as PHASED
from bench.gpu_sweep import FORMS
from bench.gpu_timing import COMPARED
from bench.registry import gpu_suite
from zspa_kernels.testing.cases import DTYPES

STAGES = ("all", "correctness", "sanitizer", "timing", "sweep", "end_to_end")
NO_DEVICE = 2  # exit code
#: What is timed before all else.
SOONEST = (
    *("ceilings", "barrier", "parts", *gpu_report.GOALS),
    *("llavanext-2880x4096-k288-core0-vlm-bf16", "picks", "few"),
)
#: Checks that come before all others: whether a cosine is symmetric on matrix units, on which the
#: picks of all paths depend, and whether the barrier orders memory.
FIRST_CHECKS = ("the_barrier_orders_memory", "law_pairs")
#: Ops whose checks are named after them.
NAMED = ("relevance_topk", *(op for op in PHASED if op != "diversity"))
#: Jobs that call several ops, or none of selection; all others call select or diversity.
CALLS: dict[str, tuple[str, ...]] = {
    "greedy": ("dpp", "facility_location", "min_sum"),
    "suppress": ("suppress", "soft_suppress"),
    **dict.fromkeys(("no_synchronisation", "graphs"), ("diversity", "select", *NAMED)),
    **dict.fromkeys(("ceilings", "barrier", "sensitivity", "sensitivity_cases", "errors"), ()),
}
#: Modules of the checks of other ops than select and diversity.
OTHER_OPS = ("bench.gpu_greedy", "bench.gpu_sensitivity", "bench.gpu_suppress")
#: Seconds of a job that others wait for: one that hangs must not cost them the time.
AWAITED = 150
#: What the sanitizer runs: short, and with one and with many programs an image.
SANITIZED = ("law_core_then_diversity", "law_paths", "law_seeds", "no_synchronisation")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


def why_not(stage: str) -> str | None:
    """Why nothing of a stage can be run here."""
    if not torch.cuda.is_available():
        return f"no CUDA device: torch {torch.__version__} finds none, so nothing was run"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, so nothing was run"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0, so nothing was run"
    if stage == "sanitizer" and not sanitizer_command():
        return "compute-sanitizer is not installed, so nothing was run"
    if stage == "end_to_end" and importlib.util.find_spec("transformers") is None:
        return "transformers is not installed, so nothing was run"
    return None


def environment(commit: str | None = None) -> dict[str, Any]:
    """Device, driver, versions, commit, date. A copy may have to be told its commit."""
    import triton

    device = torch.cuda.get_device_properties(0)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git": {"sha": commit, "dirty": False} if commit else _git(),
        "device": device.name,
        "devices": torch.cuda.device_count(),
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": device.multi_processor_count,
        "memory_bytes": device.total_memory,
        "l2_bytes": getattr(device, "L2_cache_size", None),
        **driver(),
        "nvcc": _first_line("nvcc", "--version", line=-1),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
    }


def driver() -> dict[str, str | None]:
    """Its version; clocks, highest and now; who may use the device, and whether it is divided."""
    queries = {
        "driver": "driver_version",
        "clocks": "clocks.max.sm,clocks.sm",
        "mode": "compute_mode,mig.mode.current",
    }
    return {
        name: _first_line("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
        for name, query in queries.items()
    }


def _git() -> dict[str, Any] | None:
    sha = _first_line("git", "rev-parse", "HEAD")
    changes = _first_line("git", "status", "--porcelain", "-uno")
    return None if sha is None else {"sha": sha, "dirty": bool(changes)}


def _first_line(*command: str, line: int = 0) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20
        )
    except subprocess.TimeoutExpired:  # a driver that is slow to say its version may still work
        return None
    lines = done.stdout.strip().splitlines()
    return lines[line] if lines and not done.returncode else None


def target() -> str:
    """The architecture of the GPU of this machine; an H100's where there is none."""
    if not torch.cuda.is_available():
        return "sm_90"
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(0).gcnArchName.split(":")[0])
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def _check(name: str, seconds: float, turn: int) -> Iterator[Job]:
    """A check, or one of each dtype."""
    dtypes = [str(dtype)[6:] for dtype in DTYPES] if name in BY_DTYPE else []
    for more in [[dtype] for dtype in dtypes] or [[]]:
        command = python("-m", "bench.gpu_checks", name, *more)
        yield Job(" ".join([name, *more]), command, seconds, turn=turn, follows=_follows(name))


def _follows(name: str) -> tuple[str, ...]:
    """The first calls of what a job calls: where one of them hangs, the job would hang as well."""
    if name in FIRST_CHECKS or name.startswith("first_"):
        return ()
    named = tuple(op for op in NAMED if name.startswith(f"{op}_"))
    return tuple(f"first_{op}" for op in CALLS.get(name, named or ("diversity", "select")))


def _late(name: str) -> tuple[bool, bool]:
    """Standard cases have many D, for each of which kernels are compiled: laws come before them.

    Of both, select and diversity come first, on which most methods depend.
    """
    return name.endswith("_cases"), CHECKS[name].__module__ in OTHER_OPS


def correctness() -> Iterator[Job]:
    """Every op's first calls; then all checks, the kernels, and the marked tests."""
    for name in (*FIRST_CHECKS, *(name for name in CHECKS if name.startswith("first_"))):
        yield from _check(name, AWAITED, 0)
    for op in PHASED:
        yield Job(f"phases of {op}", python("-m", "bench.gpu_phases", op), 300, turn=1)
    rest = [name for name in CHECKS if name not in FIRST_CHECKS and not name.startswith("first_")]
    for name in sorted(rest, key=_late):
        yield from _check(name, 600, 1)
    # Registers, spills and shared memory of each kernel, compiled for this machine.
    for dtype in ("bfloat16", "float32"):
        command = python("-m", "python_tests.triton_aot", target(), "default", dtype)
        yield Job(f"kernels of {dtype}", command, 300, {"TRITON_INTERPRET": "0"}, turn=2)
    missing = [n for n in ("setuptools", "pybind11") if importlib.util.find_spec(n) is None]
    if not missing and not list((ROOT / "zspa_kernels").glob("_C*.so")):
        # For the marked tests; a failure is reported and stops nothing.
        command = python("setup.py", "-q", "build_ext", "--inplace")
        yield Job("build the native module", command, 600, turn=2)
    if all(importlib.util.find_spec(n) for n in ("pytest", "hypothesis")):
        tests = python("-m", "pytest", "-q", "-m", "gpu", *_marked())
        yield Job("pytest -m gpu", tests, 1200, {"TRITON_INTERPRET": "0"}, turn=3)


def _marked() -> list[str]:
    """Files that have marked tests, but for the checks, which are run already.

    The other files are not even collected: some need packages that may be missing.
    """
    files = sorted((ROOT / "python_tests").glob("test_*.py"))
    marked = [file for file in files if "@pytest.mark.gpu" in file.read_text()]
    return [str(file.relative_to(ROOT)) for file in marked if file.name != "test_gpu.py"]


def sanitizer_command() -> str | None:
    """NVIDIA's compute-sanitizer, on the path or where CUDA is usually installed."""
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )


def sanitizer() -> Iterator[Job]:
    """Some checks under compute-sanitizer; there must be one."""
    tool = sanitizer_command()
    for kind in TOOLS if tool else ():
        for name in SANITIZED:
            command = (str(tool), "--tool", kind, "--error-exitcode", "1")
            yield Job(
                f"{kind}: {name}", (*command, *python("-m", "bench.gpu_checks", name)), 900,
                # The caching allocator hides accesses beyond a tensor's end.
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )  # fmt: skip


def timing() -> Iterator[Job]:
    """Ceilings, barrier and picks first, then the workloads, the most telling first.

    What they need is compiled before, side by side.
    """
    for part in (*COMPARED, *dict.fromkeys(work.shape for work in gpu_suite())):
        name = f"ready {part}"
        command = python("-m", "bench.gpu_timing", name)
        yield Job(name, command, AWAITED, follows=_follows(part))
    jobs = {name: name for name in (*SOONEST, "sensitivity", "greedy", "suppress")}
    for work in gpu_suite():
        if work.name not in SOONEST:  # of the others a process has all of a shape
            name = f"{work.shape}: others"
            jobs[name] = ",".join(filter(None, (jobs.get(name), work.name)))
    for name, argument in jobs.items():
        turn, seconds = (1, AWAITED) if name in SOONEST else (2, 300)
        command = python("-m", "bench.gpu_timing", argument)
        yield Job(name, command, seconds, turn=turn, alone=True, follows=_follows(name))


def sweep() -> Iterator[Job]:
    """Other sizes of kernels, of each workload that has some; compiled before, side by side."""
    for turn, first in enumerate(("ready", "sweep")):
        for name in FORMS:
            job = f"{first} {name}"
            command = python("-m", "bench.gpu_timing", job)
            yield Job(job, command, 600, turn=turn, alone=turn == 1)


def everything() -> Iterator[Job]:
    """First calls, what is timed before all else, the checks, and then the rest."""
    # The turns of timing stand between those of correctness.
    for job in correctness():
        yield replace(job, turn=2 * job.turn)
    for job in timing():
        yield replace(job, turn=max(0, 2 * job.turn - 1))


def end_to_end() -> Iterator[Job]:
    """Whole answers of models of 7 billion random parameters; see docs/efficiency.md."""
    from bench.gpu_end_to_end import runs  # needs transformers

    for preset, attention in runs():
        command = python("-m", "bench.gpu_end_to_end", preset, attention)
        # Nothing may be looked for on a network; an allocator that grows has room for all models.
        variables = {"HF_HUB_OFFLINE": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        yield Job(f"{preset} {attention}", command, 900, variables)


JOBS: dict[str, Callable[[], Iterator[Job]]] = {
    "all": everything,
    "correctness": correctness,
    "sanitizer": sanitizer,
    "timing": timing,
    "sweep": sweep,
    "end_to_end": end_to_end,
}


def run_stage(
    stage: str, minutes: float, out: Path, head: dict[str, Any], only: str = "*"
) -> list[Outcome]:
    """Run the jobs of a stage whose names match `only` somewhere, for at most `minutes`.

    Its file in `out` and the summary are complete after every job.
    """
    end = time.perf_counter() + 60 * minutes
    jobs = [job for job in JOBS[stage]() if fnmatch(job.name, f"*{only}*")]
    # Compilers and oracles, on one CPU each, take most of the time of a check.
    cpus = os.cpu_count() or 1
    workers = 1 if stage in ("sanitizer", "end_to_end") else max(1, min(12, cpus - 2))
    threads = {"OMP_NUM_THREADS": str(max(1, cpus // workers))}
    jobs = [
        job if job.alone else replace(job, variables={**threads, **job.variables}) for job in jobs
    ]

    def summarise() -> None:
        (out / "summary.txt").write_text(gpu_report.summary(out))

    return run_all(
        jobs, out / f"{stage}.json", head, end, lambda text: print(text, flush=True), workers,
        summarise,
    )  # fmt: skip


def _stopped(*_: object) -> None:
    """A request to end is an exception, so that no job goes on without anybody waiting for it."""
    sys.exit(128 + signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if all passed, 1 if something failed, 2 without a device to run on."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--stage", choices=STAGES, default="all")
    parser.add_argument("--minutes", type=float, default=30.0, help="most time of the stage")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "gpu", help="folder of results"
    )
    parser.add_argument("--only", default="*", help="jobs whose names match this pattern")
    parser.add_argument("--commit", help="of a copy whose git does not know it")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes must be positive, got {options.minutes}")
    reason = why_not(options.stage)
    if reason is not None:
        print(f"bench.gpu: {reason}", file=sys.stderr)
        return NO_DEVICE
    options.out.mkdir(parents=True, exist_ok=True)
    head = environment(options.commit)
    write(options.out / "environment.json", head)
    signal.signal(signal.SIGTERM, _stopped)
    outcomes = run_stage(options.stage, options.minutes, options.out, head, options.only)
    if not outcomes:
        parser.error(f"--only must match a job of {options.stage}, got {options.only!r}")
    print((options.out / "summary.txt").read_text())
    return 0 if all(outcome.status == "passed" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
