# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels compiled ahead of time for GPUs that need not be there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from python_tests import triton_aot, triton_races

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
# The same, in bytes of kernels for one target, of any dtype.
STACK_OF = {
    "sm_80": {"_diversity_greedy_kernel": 8},
    "sm_120": {
        "_relevance_topk_norm_kernel": 16,
        "_diversity_norm_kernel": 16,
        "_diversity_greedy_kernel": 24,
        "_relevance_topk_max_kernel": 16,
        "_min_sum_greedy_kernel": 16,
    },
}
# Pairs that no barrier orders (`triton_races`), and need not.
HARMLESS = {
    # One element is one thread's; what other warps read of it goes nowhere.
    "gram: scale reads, scale writes",
    "gram: scale writes, scale reads",
    "gram: complement reads, complement writes",
    "gram: complement writes, complement reads",
    "sums: absorb reads, absorb writes",
    "sums: absorb writes, absorb reads",
    "matrix: _facility_location_soft_kernel reads, _facility_location_soft_kernel writes",
    "matrix: _facility_location_soft_kernel writes, _facility_location_soft_kernel reads",
    # The next block of rows, or of covered tokens.
    "costs: substitute writes, substitute reads",
    "nearest: update writes, update reads",
    "covered: take writes, take reads",
    "answered: take writes, take reads",
    # Other words: what was picked and what is done, this pick's slot and the next one's, rows of
    # the panel before the one that is written, and what is left at odd and at even picks.
    "control: chain writes, chain writes",
    "control: foresee writes, foresee writes",
    "control: rank writes, rank writes",
    "control: take writes, take writes",
    "indices: settle writes, settle writes",
    "panel: subtract reads, chain writes",
    "lefts: chain reads, chain writes",
    # At different stages.
    "gram: products writes, products reads",
    "cholesky: products writes, gather reads",
}
# What Triton 3.9 adds: diversity on sm_90, and no barrier between a block of
# rows that is written and the next one, which is read.
if tuple(map(int, version("triton").split(".")[:2])) >= (3, 9):
    STACK["_diversity_greedy_kernel"] = 8
    HARMLESS.add("residual: substitute writes, substitute reads")


def _compile(cache: Path, targets: str, mode: str, *dtypes: str) -> list[dict[str, Any]]:
    """Compile in a process of its own: in this one Triton interprets."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    environment["TRITON_DEFAULT_FP_FUSION"] = "0"  # as in Triton 3.10 without it
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "python_tests.triton_aot", targets, mode, *dtypes],
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
    if not report["fused"]:
        faults.append("depends on Triton's default for fused multiply-adds")
    if report["tf32"]:
        faults.append("multiplies float32 values in TF32")
    if report["shared"] > triton_aot.TARGETS[report["target"]]:
        faults.append("needs more shared memory than there is")
    if report["spill"] > _stack(report["kernel"], report["target"], float32) and report["aligned"]:
        faults.append("spills registers")
    if report["kernel"] in PRODUCTS and not float32 and not report["matrix"]:
        faults.append("does not use the matrix units")
    if report["kernel"].endswith("_greedy_kernel"):
        faults += _waits(report)
    faults += [f"does not order {r}" for r in report.get("races", ()) if r not in HARMLESS]
    return [f"{report} {fault}" for fault in faults]


def _stack(kernel: str, target: str, float32: bool) -> int:
    """Bytes that a kernel may have on the stack."""
    return max(STACK_OF.get(target, {}).get(kernel, 0), STACK.get(kernel, 0) if float32 else 0)


def _waits(report: dict[str, Any]) -> list[str]:
    """What is wrong with a kernel whose programs wait for each other."""
    faults = []
    if not report["together"]:
        faults.append("is not launched with all programs resident")
    names = ("arrivals", "announced", "polls", "given_up", "seen")  # the last one of PTX only
    counts = {report[name] for name in names if name in report}
    if len(counts) != 1 or counts == {0}:
        faults.append("does not announce, poll, wait and give up at each barrier")
    if report.get("uncoherent"):
        faults.append("may read old values")
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("target", triton_aot.TARGETS)
def test_default_kernels_fit(target: str, tmp_path: Path) -> None:
    reports = _compile(tmp_path, target, "default", "bfloat16")
    assert [fault for report in reports for fault in _fits(report)] == []
    sources = (ROOT / "zspa_kernels" / "backends" / "triton").glob("*.py")
    kernels = {
        name for path in sources for name in re.findall(r"def (_\w+_kernel)\(", path.read_text())
    }
    assert set(PRODUCTS) <= kernels
    assert {report["kernel"] for report in reports} == kernels


@pytest.mark.aot_full
@pytest.mark.parametrize("dtype", triton_aot.DTYPES)
@pytest.mark.parametrize("target", triton_aot.TARGETS)
def test_every_kernel_fits(target: str, dtype: str, tmp_path: Path) -> None:
    reports = _compile(tmp_path, target, "full", dtype)
    assert [fault for report in reports for fault in _fits(report)] == []


@pytest.mark.parametrize("barrier", [True, False])
def test_accesses_that_no_barrier_orders_are_found(barrier: bool, tmp_path: Path) -> None:
    """A tensor is read, and written on the way back to the read; another is only read."""
    code = tmp_path / "kernel.py"
    code.write_text("def reads():\n    pass\n\n\ndef writes():\n    pass\n")
    ptx = f"""
.visible .entry kernel(
)
{{
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
$L__BB0_1:
	.loc	1 2 0
	mad.wide.s32 	%rd3, %r1, 4, %rd1;
	@%p1 ld.global.b32 {{ %r2 }}, [ %rd3 + 0 ];
	ld.global.b32 {{ %r2 }}, [ %rd2 + 0 ];
	bar.sync 	0;
	.loc	1 6 0
	add.s64 	%rd4, %rd1, 8;
	st.global.b32 [ %rd4 + 0 ], {{ %r2 }};
	{"bar.sync 0;" if barrier else ""}
	@%p2 bra 	$L__BB0_1;
	ret;
}}
	.file	1 "{code}"
"""
    found = triton_races.races(ptx, ["matrix", "other"])
    assert found == ([] if barrier else ["matrix: writes writes, reads reads"])
