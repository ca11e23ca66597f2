# SPDX-License-Identifier: Apache-2.0
"""The order of the GPU kit's jobs, and checks in parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_check, gpu_checks, gpu_greedy, gpu_jobs, gpu_report, registry
from bench.gpu_jobs import Outcome
from zspa_kernels.testing.cases import DTYPES


def test_the_most_telling_comes_first() -> None:
    """Within the stage of all: first calls, what has a goal, checks, and then the rest."""
    jobs = {job.name: job for job in gpu.everything()}
    parts = [*gpu.correctness(), *gpu.timing()]
    assert sorted(jobs) == sorted(job.name for job in parts)
    some = ("first_dpp", "barrier", "law_rows", "dpp_cases float16", "greedy")
    assert [jobs[name].turn for name in some] == [0, 1, 2, 2, 3]
    assert {jobs[name].turn for name in gpu_report.GOALS} == {1}
    shapes = {work.shape for work in registry.gpu_suite()}
    assert {name for name in jobs if name.startswith("ready")} == {f"ready {s}" for s in shapes}
    alone = {job.turn for job in jobs.values() if job.alone}
    assert all(job.alone == (job.turn in alone) for job in jobs.values())


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
