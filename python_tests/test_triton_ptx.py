# SPDX-License-Identifier: Apache-2.0
"""The compiled Triton kernels, run instruction by instruction where there is no GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_checks  # noqa: F401  (enters all checks into CHECKS)
from bench.gpu_check import BY_DTYPE, CHECKS
from bench.gpu_phases import OPS
from python_tests.ptx.barriers import EVERY, SPARED
from python_tests.ptx.faults import HARMLESS
from python_tests.ptx.machine import Kernel

pytest.importorskip("triton", reason="Triton is not installed")

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is not installed: it compiles the machine"
)

ROOT = Path(__file__).parents[1]
# What needs CUDA itself, or hours.
ELSEWHERE = {
    *("the_barrier_orders_memory", "no_synchronisation", "graphs", "capture_of_a_cold_kernel"),
    *("streams", "second_device", "compiled", "no_square_matrix", "facility_location_turns"),
    "soft_suppress_laws",
    *("more_than_two_to_the_31_elements", "law_ambient_state", "errors", "law_repetition"),
    *(name for name in CHECKS if name.endswith("real_sizes")),
}
FIRST = ",".join(
    f"first_{op}"
    for op in (
        *("relevance_topk", "diversity", "select", "dpp", "min_sum", "facility_location"),
        "suppress",
    )
)

# What orders the lanes of a warp.
ORDERS = {"sent": "bar.sync 0;", "got": "barrier.sync 0;", "shared": "bar.warp.sync -1;"}


def machine(module: str, *arguments: str) -> list[Any]:
    """What a module of `python_tests.ptx` prints, run without Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def passes(target: str, checks: str, *dtype: str) -> None:
    reports = machine("python_tests.ptx", target, checks, *dtype)
    assert [report["check"] for report in reports] == checks.split(",")
    for report in reports:
        assert report["steps"]
        races = {race.split(": ", 1)[1] for race in report["races"]}
        assert races <= HARMLESS, report


@pytest.mark.slow
@pytest.mark.parametrize("target", ["90", "100"])
def test_each_op_runs_on_the_machine(target: str) -> None:
    passes(target, FIRST, "bfloat16")


def test_an_op_without_products_runs_on_the_machine() -> None:
    passes("90", "first_soft_suppress", "bfloat16")


@pytest.mark.ptx_full
@pytest.mark.parametrize("target", ["80", "90", "100", "120"])
@pytest.mark.parametrize(
    "check",
    [
        (name, dtype)
        for name in sorted(CHECKS.keys() - ELSEWHERE)
        for dtype in (("bfloat16", "float16", "float32") if name in BY_DTYPE else ("",))
    ],
    ids="-".join,
)
def test_every_check_passes_on_the_machine(target: str, check: tuple[str, str]) -> None:
    passes(target, *filter(None, check))


def missed(op: str, every: int) -> None:
    (found,) = machine("python_tests.ptx.barriers", "90", op, str(every))
    assert found["barriers"] >= 8
    assert found["unreached"] == {}
    most = {place: count for place, (count, _why) in SPARED[op].items()}
    assert all(count <= most.get(place, 0) for place, count in found["spared"].items()), found


def test_a_missing_barrier_shows() -> None:
    missed("soft_suppress", 3)


@pytest.mark.ptx_full
@pytest.mark.parametrize("op", SPARED)
def test_missing_barriers_of_each_op_show(op: str) -> None:
    missed(op, EVERY.get(op, 1))


@pytest.mark.ptx_full
@pytest.mark.parametrize("op", OPS)
def test_phases_leave_what_they_leave_in_the_interpreter(op: str) -> None:
    (found,) = machine("python_tests.ptx.phases", "90", op)
    assert found["launches"] >= 5
    assert found["difference"] is None


def test_planted_faults_show() -> None:
    (found,) = machine("python_tests.ptx.faults", "90")
    outside, ordered = "a global access is outside every tensor", "a race in global memory"
    unaligned = "a global access is not aligned"
    assert found.pop("none") == []
    for fault, shown in {
        "an arrival before others have written": ordered,
        "an arrival that orders nothing": ordered,
        "a poll that orders nothing": ordered,
        "an arrival that does not count": "the launch does not end",
        "no barrier in a program": "a race in shared memory",
        "a store beyond the tensor": outside,
        "a store that is not aligned": unaligned,
        "a copy that is not waited for": "wrong picks",
        "a barrier of half a warp": "only a part of a warp reaches a barrier",
    }.items():
        assert shown in found.pop(fault), fault
    assert not found


def test_planted_faults_of_tensor_memory_show() -> None:
    (found,) = machine("python_tests.ptx.faults", "100")
    assert found.pop("none") == []
    for fault, shown in {
        "a product that is not waited for": "nobody waits for a product",
        "no barrier in a program": "a race in shared memory",
        "a product before its copies have come": "wrong picks",
        "a product that several lanes ask for": "several lanes do what one should do",
        "what another warp added up": "a warp touches tensor memory of another one",
        "columns that are not allocated": "an access is outside the tensor memory",
        "memory that is not given back": "tensor memory is not given back",
    }.items():
        assert any(text.startswith(shown) for text in found.pop(fault)), fault
    assert not found


def test_products_are_added_as_matrix_units_add_them() -> None:
    found = machine("python_tests.ptx.products", "80", "90")
    assert [wrong["units"] for wrong in found] == [0, 0]
    assert all(wrong["exact"] > 1000 for wrong in found)


def test_a_copy_that_says_no_count_is_whole() -> None:
    """Masked copies, which are all that the kernels have, say how many bytes are read."""
    ptx = """
.visible .entry kernel(
)
.reqntid 32
{
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	mov.u32 	%r1, %tid.x;
	shl.b32 	%r2, %r1, 4;
	cvt.s64.s32 	%rd3, %r2;
	add.s64 	%rd4, %rd1, %rd3;
	add.s64 	%rd5, %rd2, %rd3;
	mov.b32 	%r3, global_smem;
	add.s32 	%r4, %r3, %r2;
	cp.async.cg.shared.global [ %r4 + 0 ], [ %rd4 + 0 ], 0x10;
	cp.async.commit_group;
	cp.async.wait_group 	0;
	ld.shared.v4.b32 	{%r5, %r6, %r7, %r8}, [%r4];
	st.global.v4.b32 [ %rd5 + 0 ], { %r5, %r6, %r7, %r8 };
	ret;
}
	.file	1 "kernel.py"
"""
    given = torch.arange(128, dtype=torch.int32)
    got = torch.zeros_like(given)
    run = Kernel(ptx, 512).run(1, [given, got], together=False, seed=0, limit=1000)
    assert (run.fault, run.races) == ("", set())
    assert torch.equal(got, given)


def test_the_largest_size_of_a_warp() -> None:
    ptx = """
.visible .entry kernel(
)
.reqntid 32
{
	ld.param.b64 	%rd1, [kernel_param_0];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd2, %r1, 4;
	add.s64 	%rd3, %rd1, %rd2;
	ld.global.b32 { %r2 }, [ %rd3 + 0 ];
	redux.sync.max.abs.f32 	%r3, %r2, -1;
	st.global.b32 [ %rd3 + 0 ], { %r3 };
	ret;
}
	.file	1 "kernel.py"
"""
    values = torch.linspace(-3.0, 2.0, 32)
    run = Kernel(ptx, 0).run(1, [values], together=False, seed=0, limit=1000)
    assert (run.fault, run.races) == ("", set())
    assert (values == 3.0).all()


@pytest.mark.parametrize("threads", [128, 256])
def test_warps_that_share_lanes_of_tensor_memory_race(threads: int, tmp_path: Path) -> None:
    """Warps 0 and 4 have the same lanes of tensor memory; nothing orders their stores."""
    code = tmp_path / "kernel.py"
    code.write_text("def writes():\n    pass\n")
    held = ", ".join(["%r1"] * 8)
    got = ", ".join(f"%r{n}" for n in range(10, 18))
    ptx = f"""
.visible .entry kernel(
)
.reqntid {threads}
{{
	ld.param.b64 	%rd1, [kernel_param_0];
	.loc	1 2 0
	mov.u32 	%r1, %tid.x;
	setp.lt.u32 	%p1, %r1, 32;
	mov.b32 	%r2, global_smem;
	@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r2], 32;
	bar.sync 	0;
	ld.shared.b32 	%r3, [global_smem];
	shl.b32 	%r4, %r1, 16;
	and.b32 	%r5, %r4, 6291456;
	add.s32 	%r6, %r3, %r5;
	tcgen05.st.sync.aligned.32x32b.x8.b32 [%r6 + 0], {{ {held} }};
	tcgen05.wait::st.sync.aligned;
	tcgen05.ld.sync.aligned.32x32b.x8.b32 {{ {got} }}, [%r6 + 0];
	tcgen05.wait::ld.sync.aligned;
	mul.wide.u32 	%rd2, %r1, 4;
	add.s64 	%rd3, %rd1, %rd2;
	st.global.b32 [ %rd3 + 0 ], {{ %r17 }};
	bar.sync 	0;
	@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r3, 32;
	ret;
}}
	.file	1 "{code}"
"""
    out = torch.zeros(threads, dtype=torch.int32)
    run = Kernel(ptx, 64).run(1, [out], together=False, seed=0, limit=10_000)
    assert run.fault == ""
    if threads == 128:
        assert run.races == set()
        assert torch.equal(out, torch.arange(128, dtype=torch.int32))
    else:
        assert "tensor: writes writes, writes writes" in run.races


@pytest.mark.parametrize("spared", ["", "sent", "got", "shared"])
def test_lanes_of_a_warp_are_not_ordered(spared: str, tmp_path: Path) -> None:
    """One lane arrives for all, one polls for all, and one reads what its neighbour has stored."""
    code = tmp_path / "kernel.py"
    code.write_text("def hands_on():\n    pass\n")
    sent, got, shared = ("" if spared == name else order for name, order in ORDERS.items())
    ptx = f"""
.visible .entry kernel(
)
.reqntid 32
{{
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	.loc	1 2 0
	mov.u32 	%r1, %tid.x;
	mov.u32 	%r2, %ctaid.x;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd1, %rd3;
	shl.b32 	%r3, %r1, 2;
	mov.b32 	%r4, global_smem;
	add.s32 	%r5, %r4, %r3;
	xor.b32 	%r6, %r3, 4;
	add.s32 	%r7, %r4, %r6;
	setp.eq.u32 	%p1, %r1, 0;
	setp.ne.u32 	%p2, %r2, 0;
	@%p2 bra 	$L__reader;
	st.global.b32 [ %rd4 + 0 ], {{ %r1 }};
	{sent}
	@%p1 red.global.gpu.release.add.u32 [%rd2 + 0], 1;
	bra.uni 	$L__end;
$L__reader:
	@%p1 ld.global.gpu.acquire.b32 %r9, [%rd2 + 0];
	setp.eq.u32 	%p3, %r9, 0;
	and.pred 	%p4, %p1, %p3;
	@%p4 bra 	$L__reader;
	{got}
	ld.global.b32 {{ %r10 }}, [ %rd4 + 0 ];
	st.shared::cta.b32 	[%r5], %r10;
	{shared}
	ld.shared.b32 	%r11, [%r7];
	st.global.b32 [ %rd4 + 128 ], {{ %r11 }};
$L__end:
	ret;
}}
	.file	1 "{code}"
"""
    words, arrivals = torch.full((64,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    run = Kernel(ptx, 128).run(2, [words, arrivals], together=True, seed=0, limit=10_000)
    assert run.fault == ""
    space = "shared" if spared == "shared" else "global"
    assert run.races == ({f"{space}: hands_on writes, hands_on reads"} if spared else set())
    assert words[32:].tolist() == [lane ^ 1 for lane in range(32)]
