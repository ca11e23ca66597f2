# SPDX-License-Identifier: Apache-2.0
"""The order of the GPU kit's jobs, and checks in parts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import (
    gpu,
    gpu_check,
    gpu_checks,
    gpu_greedy,
    gpu_jobs,
    gpu_parts,
    gpu_report,
    gpu_timing,
    registry,
)
from bench.gpu_jobs import Job, Outcome
from zspa_kernels.backends.triton import _common, diversity
from zspa_kernels.testing.cases import DTYPES


def test_the_most_telling_comes_first() -> None:
    """Within the stage of all: first calls, what has a goal, checks, and then the rest."""
    jobs = {job.name: job for job in gpu.everything()}
    parts = [*gpu.correctness(), *gpu.timing()]
    assert sorted(jobs) == sorted(job.name for job in parts)
    some = ("first_dpp", "law_pairs float16", "barrier", "law_rows", "dpp_cases float16", "greedy")
    assert [jobs[name].turn for name in some] == [0, 0, 1, 2, 2, 3]
    assert {jobs[name].turn for name in gpu_report.GOALS} == {1}
    # Of what runs side by side, laws before standard cases, and other ops behind select.
    late = ("law_rows", "dpp_laws float32", "select_cases float32", "dpp_cases float32")
    places = [list(jobs).index(name) for name in late]
    assert places == sorted(places)
    ready = {*gpu_timing.COMPARED, *(work.shape for work in registry.gpu_suite())}
    assert {name for name in jobs if name.startswith("ready")} == {f"ready {s}" for s in ready}
    assert set(gpu.SOONEST) <= set(jobs)
    # One that hangs costs those that wait for it no more than a part of the time.
    assert all(job.seconds == gpu.AWAITED for job in jobs.values() if job.turn < 2)
    alone = {job.turn for job in jobs.values() if job.alone}
    assert all(job.alone == (job.turn in alone) for job in jobs.values())


def test_what_would_hang_as_well_is_not_waited_for(tmp_path: Path) -> None:
    jobs = {job.name: job for job in gpu.everything()}
    want = {
        "first_select": (),
        "phases of dpp": (),
        "barrier": (),
        "parts": ("first_diversity", "first_select"),
        "ready video": ("first_diversity", "first_select"),
        gpu.SOONEST[3]: ("first_diversity", "first_select"),
        "law_rows": ("first_diversity", "first_select"),
        "suppress_cases float16": ("first_suppress",),
        "soft_suppress_real_sizes": ("first_soft_suppress",),
        "suppress": ("first_suppress", "first_soft_suppress"),
    }
    assert {name: jobs[name].follows for name in want} == want
    assert len(jobs["graphs"].follows) == 8
    assert {first for job in jobs.values() for first in job.follows} <= set(jobs)
    waits = gpu_jobs.python("-c", "import time; time.sleep(60)")
    some = [
        Job("hangs", waits, 0.2),
        Job("wrong", gpu_jobs.python("-c", "1 / 0"), 20),
        Job("another", waits, 20, turn=1, follows=("wrong", "hangs")),
        Job("goes on", gpu_jobs.python("-c", ""), 20, turn=1, follows=("wrong", "nothing")),
    ]
    end = time.perf_counter() + 60
    outcomes = gpu_jobs.run_all(some, tmp_path / "all.json", {}, end, lambda _: None)
    assert [o.status for o in outcomes] == ["too slow", "failed", "not run", "passed"]
    assert outcomes[2].tail == "hangs was too slow"


def test_what_the_end_of_a_stage_cuts_off_does_not_hang(tmp_path: Path) -> None:
    code = "import time; time.sleep(60)"
    some = [
        Job("long", gpu_jobs.python("-c", code), 50),
        Job("after", gpu_jobs.python("-c", ""), 50, turn=1, follows=("long",)),
    ]
    path, end = tmp_path / "correctness.json", time.perf_counter() + 2
    outcomes = gpu_jobs.run_all(some, path, {}, end, lambda _: None)
    assert [outcome.status for outcome in outcomes] == ["cut off", "not run"]
    assert outcomes[1].tail == "the time of the stage was up"
    text = gpu_report.summary(tmp_path)
    assert text == "correctness: 1 cut off, 1 not run\n  left for another run: long, after\n\n"
    left = [Outcome(f"job {n}", "not run") for n in range(gpu_report.LEFT + 2)]
    gpu_jobs.write(path, {"jobs": [vars(outcome) for outcome in left]})
    assert ": job 0, job 1, job 2, job 3, job 4, job 5, job 6, job 7, and 2 more\n" in (
        gpu_report.summary(tmp_path)
    )


def test_a_job_that_hangs_says_where() -> None:
    check = "import time\\ndef waits():\\n  time.sleep(60)\\ndef main():\\n  waits()\\nmain()"
    code = (
        "from bench import gpu_jobs; gpu_jobs.watch();"
        f"exec(compile('{check}', '/x/bench/check.py', 'exec'))"
    )
    outcome = gpu_jobs.run(Job("hangs", gpu_jobs.python("-c", code), 5))
    assert outcome.status == "too slow"
    assert gpu_jobs.reason(outcome.tail) == "still in check.py:3 waits, of check.py:5 main"


def test_what_happened_is_told_from_how_to_find_out_more() -> None:
    trace = (
        "Traceback (most recent call last):\n"
        '  File "<frozen runpy>", line 198, in _run_module_as_main\n'
        '  File "/x/bench/gpu_checks.py", line 334, in <module>\n    sys.exit(main())\n'
        '  File "/x/bench/gpu_checks.py", line 187, in law_rows\n    alike(a, b)\n'
        '  File "/x/bench/gpu_check.py", line 91, in same\n    wrong = (a != b).nonzero()\n'
        '  File "/x/torch/_ops.py", line 5, in __call__\n'
    )
    cuda = (
        "torch.AcceleratorError: CUDA error: unspecified launch failure\n"
        "CUDA kernel errors might be asynchronously reported at some other API call.\n"
        "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
        "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n\n"
    )
    place = " (gpu_check.py:91 same, of gpu_checks.py:187 law_rows)"
    assert gpu_jobs.reason(trace + cuda) == cuda.splitlines()[0] + place
    triton = "triton.compiler.errors.CompilationError: at 3:7:\ndef f():\nno such thing\n"
    assert gpu_jobs.reason(trace + triton) == (
        "triton.compiler.errors.CompilationError: at 3:7: ... no such thing" + place
    )
    assert gpu_jobs.reason(trace + "AssertionError: alone 3") == "AssertionError: alone 3"
    assert gpu_jobs.reason("words\nmore words") == "more words"
    assert gpu_jobs.reason("") == "no output"


def test_only_files_with_marked_tests_are_collected() -> None:
    """The others need packages that a machine with a GPU may not have."""
    (job,) = [job for job in gpu.correctness() if job.name == "pytest -m gpu"]
    files = ["python_tests/test_api_varlen.py", "python_tests/test_reference.py"]
    assert [word for word in job.command if "python_tests" in word] == files


def test_a_check_of_one_dtype_leaves_the_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = gpu_greedy._cases()
    found = []
    for dtype in DTYPES:
        monkeypatch.setattr(gpu_check, "DTYPE", dtype)
        found += gpu_check.chosen(cases)
        assert gpu_check.chosen(DTYPES) == [dtype]
    assert sorted(case.name for case in found) == sorted(case.name for case in cases)
    monkeypatch.setattr(gpu_checks, "CHECKS", {"seen": lambda: print(gpu_check.DTYPE)})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert gpu_checks.main("seen", "bfloat16") == gpu_checks.main("seen") == 0
    assert gpu_check.DTYPE is None


def test_where_nothing_was_timed_the_summary_says_so(tmp_path: Path) -> None:
    for stage in ("timing", "end_to_end"):
        failed = Outcome("first", "failed", tail="no device")
        gpu_jobs.write(tmp_path / f"{stage}.json", {"jobs": [vars(failed)]})
    assert gpu_report.summary(tmp_path) == (
        "timing: 1 failed\n  first: failed: no device\n\nno workload was timed\n\n"
        "end_to_end: 1 failed\n  first: failed: no device\nno answer was timed\n"
    )


def test_steps_of_a_selection(
    monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    """And, by blocks, how often programs met and what an update takes, in every form of tiles."""
    require_backend("triton")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_timing, "best", lambda call: call() or 0.5)
    steps = ["nothing", "relevance", "top-k", "greedy", "sort", "a call's host"]
    records = list(gpu_parts.parts(("narrow",)))
    assert [r["part"].split(": ")[1] for r in records] == steps
    assert all(record["us"] > 0 for record in records)
    monkeypatch.setattr(diversity, "few_tokens", lambda *_: False)
    monkeypatch.setattr(gpu_parts, "SEEDS", (3, 11))
    monkeypatch.setattr(gpu_timing, "best", lambda _: 0.5)
    records = list(gpu_parts.parts(("narrow",)))[len(steps) :]
    assert records[0] == {"meetings": "narrow", "count": 0}
    assert [r["part"] for r in records[1:]] == [
        "narrow: update by 128" + form for form in gpu_parts.UPDATES
    ]
    assert all(r["status"] == "verified" for r in records[1:])
    clock = iter([1.0, 3.0] * 3)
    monkeypatch.setattr(gpu_parts, "_best", lambda _: next(clock))
    visual = torch.randn(1, 64, 16)
    assert [r["us"] for r in gpu_parts._updates("", visual)] == [32.0] * 3
    monkeypatch.setattr(gpu_parts, "_best", lambda _: 1.0)
    monkeypatch.setattr(gpu_parts.torch, "equal", lambda *_: False)
    assert all("us" not in r and r["status"] == "wrong" for r in gpu_parts._updates("", visual))


def test_a_barrier_that_is_not_even_launched_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(_common, "launch", lambda *_, **__: None)
    with pytest.raises(AssertionError, match=r"135168 of \d+ words, 1 warps"):
        gpu_checks.CHECKS["the_barrier_orders_memory"]()


def test_parts_in_the_summary(tmp_path: Path) -> None:
    parts = [
        {"part": "x: update by 128", "kind": "ours", "status": "verified", "us": 31.5},
        {"part": "x: update by 128, 64 rows", "kind": "ours", "status": "wrong"},
        {"step": "barrier", "programs": 132, "ns": 1234.5},
    ]
    gpu_jobs.write(
        tmp_path / "timing.json", {"jobs": [vars(Outcome("parts", "failed", data=parts))]}
    )
    text = gpu_report.summary(tmp_path)
    assert f"{'x: update by 128':42}    31.5 us\n" in text
    assert "barrier               1234 ns, 132 programs\n" in text
    assert f"{'x: update by 128, 64 rows':42} no figure: it is wrong\n" in text


def test_what_the_driver_says_is_written_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Values, not the names of columns."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase $2 in *noheader*) ;; *) echo "a header";; esac\necho "$1, 7"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpu.driver() == {
        "driver": "--query-gpu=driver_version, 7",
        "clocks": "--query-gpu=clocks.max.sm,clocks.sm, 7",
        "mode": "--query-gpu=compute_mode,mig.mode.current, 7",
    }

    def hangs(*_: object, **given: float) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", given["timeout"])

    monkeypatch.setattr(subprocess, "run", hangs)
    assert gpu.driver() == dict.fromkeys(("driver", "clocks", "mode"))


def test_packages_that_the_caller_brought_are_found_in_jobs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "brought.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = gpu_jobs.run(Job("job", gpu_jobs.python("-c", "import brought, bench.gpu_jobs"), 20))
    assert outcome.status == "passed", outcome.tail
