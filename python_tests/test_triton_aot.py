# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled ahead of time for GPUs that need not be there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from python_tests import triton_aot

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[1]
# Kernels that multiply tiles, and so use the matrix units for half-precision tokens.
PRODUCTS = (
    "_relevance_topk_max_kernel",
    "_diversity_greedy_kernel",
    "_diversity_matrix_kernel",
    "_dpp_greedy_kernel",
    "_facility_location_matrix_kernel",
    "_min_sum_greedy_kernel",
    "_suppress_greedy_kernel",
    "_sensitivity_form_kernel",
    "_sensitivity_response_kernel",
)
# Bytes of float32 kernels. Several programs of the sensitivity kernels share a multiprocessor:
# NVIDIA's compiler keeps a few loop-invariant scalars on the stack to fit one more; told not to, it
# takes three times as many registers. Of the others some forms with other arguments than the
# default keep some on sm_100.
STACK = {
    "_sensitivity_form_kernel": 32,
    "_sensitivity_response_kernel": 32,
    "_dpp_greedy_kernel": 16,
    "_min_sum_greedy_kernel": 16,
}


def _compile(cache: Path, targets: str, mode: str, *dtypes: str) -> list[dict[str, Any]]:
    """Compile in a process of its own: in this one Triton interprets."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, triton_aot.__file__, targets, mode, *dtypes],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{done.stderr[-3000:]}\nafter {lines[-1:]}"
    return [json.loads(line) for line in lines]


def _fits(report: dict[str, Any]) -> list[str]:
    """What is wrong with a compiled kernel."""
    faults = []
    float32 = "float32" in report["tokens"]
    if report["tf32"]:
        faults.append("multiplies float32 values in TF32")
    if report["shared"] > triton_aot.TARGETS[report["target"]]:
        faults.append("needs more shared memory than there is")
    if report["spill"] > (STACK.get(report["kernel"], 0) if float32 else 0) and report["aligned"]:
        faults.append("spills registers")
    if report["kernel"] in PRODUCTS and not float32 and not report["matrix"]:
        faults.append("does not use the matrix units")
    if report["kernel"].endswith("_greedy_kernel"):
        faults += _waits(report)
    return [f"{report} {fault}" for fault in faults]


def _waits(report: dict[str, Any]) -> list[str]:
    """What is wrong with a kernel whose programs wait for each other."""
    faults = []
    if not report["together"]:
        faults.append("is not launched with all programs resident")
    if report["target"].startswith("sm_"):
        counts = {report[name] for name in ("arrivals", "announced", "polls", "given_up")}
        if len(counts) != 1 or counts == {0}:
            faults.append("does not announce, poll and give up at each barrier")
        if report["uncoherent"]:
            faults.append("may read old values")
        if report["unagreed"]:
            faults.append("stores before all warps have read")
    return faults


def test_default_kernels_fit_every_target(tmp_path: Path) -> None:
    reports = _compile(tmp_path, ",".join(triton_aot.TARGETS), "default", "bfloat16")
    assert [fault for report in reports for fault in _fits(report)] == []
    sources = (ROOT / "zspa_kernels" / "backends" / "triton").glob("*.py")
    kernels = {
        name for path in sources for name in re.findall(r"def (_\w+_kernel)\(", path.read_text())
    }
    assert set(PRODUCTS) <= kernels
    for target in triton_aot.TARGETS:
        assert {r["kernel"] for r in reports if r["target"] == target} == kernels


@pytest.mark.aot_full
@pytest.mark.parametrize("dtype", triton_aot.DTYPES)
@pytest.mark.parametrize("target", triton_aot.TARGETS)
def test_every_kernel_fits(target: str, dtype: str, tmp_path: Path) -> None:
    reports = _compile(tmp_path, target, "full", dtype)
    assert [fault for report in reports for fault in _fits(report)] == []
