# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled ahead of time for GPUs that need not be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from python_tests import triton_aot

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[1]
# Kernels that multiply tiles, and so use the matrix units for half-precision tokens.
PRODUCTS = ("_relevance_topk_max_kernel", "_diversity_start_kernel", "_diversity_pick_kernel")
# NVIDIA's compiler keeps a few loop-invariant scalars of the float32 tile products (which do
# without matrix units) on the stack to fit one more program on a multiprocessor.
FLOAT32_STACK = 32


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
    if report["tf32"]:
        faults.append("multiplies float32 values in TF32")
    if report["shared"] > triton_aot.TARGETS[report["target"]]:
        faults.append("needs more shared memory than there is")
    if report["spill"] > (FLOAT32_STACK if report["float32"] else 0) and report["aligned"]:
        faults.append("spills registers")
    if report["kernel"] in PRODUCTS and not report["float32"] and not report["matrix"]:
        faults.append("does not use the matrix units")
    return [f"{report} {fault}" for fault in faults]


def test_default_kernels_fit_every_target(tmp_path: Path) -> None:
    reports = _compile(tmp_path, ",".join(triton_aot.TARGETS), "default", "bfloat16")
    assert [fault for report in reports for fault in _fits(report)] == []
    for target in triton_aot.TARGETS:
        assert len({r["kernel"] for r in reports if r["target"] == target}) >= 12


@pytest.mark.aot_full
@pytest.mark.parametrize("dtype", triton_aot.DTYPES)
@pytest.mark.parametrize("target", triton_aot.TARGETS)
def test_every_kernel_fits(target: str, dtype: str, tmp_path: Path) -> None:
    reports = _compile(tmp_path, target, "full", dtype)
    assert [fault for report in reports for fault in _fits(report)] == []


def test_every_kernel_is_compiled_by_default() -> None:
    """A kernel that no recorded call launches would never be compiled here."""
    sources = (ROOT / "zspa_kernels" / "backends" / "triton").glob("*.py")
    text = "\n".join(path.read_text() for path in sources)
    names = {line.split("(")[0][4:] for line in text.splitlines() if line.startswith("def _")}
    kernels = {name for name in names if name.endswith("_kernel")}
    assert set(PRODUCTS) <= kernels
    assert len(kernels) >= 12
