# SPDX-License-Identifier: Apache-2.0
"""Compiles what the Triton launchers launch, for GPUs that need not be there, and reads the result.

Run as a module it must see no TRITON_INTERPRET:
`python -m python_tests.triton_aot TARGETS default|full DTYPE...` prints one JSON object a kernel.
The launchers run on meta tensors with the launch itself replaced by a recorder, so every kernel is
compiled with exactly the arguments and options the package uses.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from python_tests.triton_races import races

# Shared memory one program may use, in bytes. sm_80 has more than that, but its code also runs on
# sm_86 and sm_89, which have not.
TARGETS = {
    "sm_80": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
    "gfx942": 65536,
}
DTYPES = ("bfloat16", "float16", "float32")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "identity")
TOKENS = ("visual", "prompt", "rows", "hidden", "factor", "w2")  # what is multiplied
POOLINGS = ("mean", "max", "none_mean", "none_max")


@dataclasses.dataclass
class Launch:
    """One recorded launch."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]


def record(dtype: torch.dtype, full: bool, hip: bool) -> list[Launch]:
    """Every launch of the ops at the size of a real model, with nothing run."""
    from zspa_kernels.backends.triton import (
        _common,
        diversity,
        diversity_whole,
        dpp,
        facility_location,
        facility_location_matrix,
        min_sum,
        relevance_topk,
        select,
        sensitivity,
        soft_suppress,
        suppress,
    )

    launches: list[Launch] = []

    def recorder(
        kernel: Any, programs: int, device: Any, *args: Any, together: bool = False, **options: Any
    ) -> None:
        launches.append(Launch(kernel, args, options | _common.compiler_options(together)))

    greedy = (diversity, diversity_whole, dpp, facility_location, facility_location_matrix, min_sum)
    others = (relevance_topk, select, sensitivity, soft_suppress, suppress)
    for module in (*greedy, *others):
        module.launch = recorder  # type: ignore[attr-defined]
    torch.version.hip = "0" if hip else None
    call_selection(dtype, full)
    call_sensitivity(dtype, full)
    return launches


def call_selection(dtype: torch.dtype, full: bool, n: int = 2880, d: int = 4096) -> None:
    """The selection ops on meta tensors; `full` adds masks, weights, seeds, poolings, odd sizes."""
    from zspa_kernels.backends.triton import (
        diversity,
        dpp,
        facility_location,
        min_sum,
        relevance_topk,
        select,
        soft_suppress,
        suppress,
    )

    def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    visual, prompt = empty(2, n, d), empty(2, 40, d)
    relevance_topk.relevance_topk(visual, prompt, 58, None, None, "none_max")
    diversity.diversity(visual, 58, None, None, None)
    diversity.diversity(visual[:1, :576], 58, None, None, None)
    select.select(visual, prompt, 23, 35, None, None, "mean", True)
    dpp.dpp(visual, 58, empty(2, n, kind=torch.float32), None)
    min_sum.min_sum(visual, 58, None, None)
    suppress.suppress(visual, empty(2, n), 58, 0.9, True, None)
    near = (empty(2, n, 2), 1.5, 5.0, None)
    soft_suppress.soft_suppress(visual, empty(2, n), 58, 9.0, "scale", *near)
    words = empty(2, 40, n, kind=torch.float32)
    facility_location.facility_location(visual, 58, words, None, None, 0.2, 0.5)
    if not full:
        return
    mask, prompt_mask = empty(2, n, kind=torch.bool), empty(2, 40, kind=torch.bool)
    packed, table = empty(n, d), empty(5, 5, kind=torch.int64)
    spans = empty(5, 2, kind=torch.int64)
    for pooling in POOLINGS:
        select.select(visual, prompt, 23, 35, mask, prompt_mask, pooling, False)
        select.select_varlen(packed, table, empty(40, d), spans, 58, pooling, True)
    select.select(visual, None, 0, 58, mask, None, "mean", False)
    select.select_varlen(packed, table, None, None, 58, "mean", False)
    for weights in (None, empty(2, n, kind=torch.float32)):
        for seeds in (None, empty(2, 4, kind=torch.int64)):
            for size in (n, 576, 200):
                diversity.diversity(visual[:, :size], 58, seeds, weights, mask)
            min_sum.min_sum(visual, 58, seeds, mask)
        dpp.dpp(visual, 58, weights, mask)
        facility_location.facility_location(visual, 58, None, weights, mask, 0.0, 1.0)
    suppress.suppress(visual[:1], empty(1, n, kind=torch.float64), 58, 0.0, False, mask[:1])
    far = (None, torch.inf, torch.inf, mask)
    soft_suppress.soft_suppress(visual, empty(2, n), 58, 9.0, "subtract", *far)
    diversity.diversity_varlen(packed, table, 58, empty(n, kind=torch.float32))
    dpp.dpp_varlen(packed, table, 58, n, empty(n, kind=torch.float32))
    min_sum.min_sum_varlen(packed, table, 58, n)
    facility_location.facility_location_varlen(packed, table, 58, n, words[0], None, 0.2, 0.5)
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    select.select(visual, empty(2, 40, d, kind=other), 23, 35, None, None, "none_max", False)
    # Rows that are not aligned are read element by element.
    for images in (2, 30):
        odd, words = empty(images, 300, 100), empty(images, 7, 100)
        select.select(odd, words, 3, 5, mask, None, "none_max", True)


def call_sensitivity(dtype: torch.dtype, full: bool, d: int = 4096) -> None:
    """The sensitivity ops on meta tensors; `full` adds every activation."""
    from zspa_kernels.backends.triton import sensitivity

    def empty(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=kind, device="meta")

    preactivation, w2 = empty(1, 576, d), empty(d, d)
    diagonal, shifts = empty(d, kind=torch.float32), empty(64, d, kind=torch.float32)
    sensitivity.sensitivity_rms_hidden(preactivation, empty(256, d), "gelu", diagonal)
    sensitivity.sensitivity_hidden(preactivation, w2, "gelu", shifts, 0.01)
    w1, b1, directions, features = empty(d, 1024), empty(d), empty(4, 1024), empty(2, 500, 1024)
    for activation in ACTIVATIONS if full else ("gelu",):
        sensitivity.sensitivity_rms(features, w1, b1, w2, activation, None)
        sensitivity.sensitivity(features, w1, b1, w2, activation, directions, 0.0)


def source(launch: Launch) -> Any:
    """The launch as Triton's compiler wants it: types, constants, alignments."""
    from triton.compiler import ASTSource

    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "bool": "i1"}
    names |= {"float64": "fp64", "int32": "i32", "int64": "i64"}
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    options = dict(launch.options)
    for at, param in enumerate(launch.kernel.params):
        value = launch.args[at] if at < len(launch.args) else options.pop(param.name)
        special = not param.do_not_specialize
        if isinstance(value, Tensor):
            signature[param.name] = "*" + names[str(value.dtype).removeprefix("torch.")]
            if value.data_ptr() % 16 == 0:  # as of meta tensors
                attributes[(at,)] = [["tt.divisibility", 16]]
        elif param.is_constexpr or value is None or (special and value == 1):
            signature[param.name] = "constexpr"
            constants[(at,)] = value
        elif isinstance(value, float):
            signature[param.name] = "fp32"
        else:
            signature[param.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if special and value % 16 == 0:
                attributes[(at,)] = [["tt.divisibility", 16]]
    launch.options = options
    return ASTSource(launch.kernel, signature, constants, attributes)


def compile_for(launch: Launch, target: str) -> dict[str, Any]:
    """Compile one launch and report what it uses."""
    import triton
    from triton.backends.compiler import GPUTarget

    src = source(launch)
    hip = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if hip else GPUTarget("cuda", int(target[3:]), 32)
    compiled = triton.compile(src, target=gpu, options=launch.options)
    values = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
    report = {
        "kernel": launch.kernel.__name__,
        "target": target,
        "tokens": [str(values[name].dtype)[6:] for name in TOKENS if name in values],
        "aligned": all(v % 16 == 0 for name, v in values.items() if name.startswith("stride_")),
        "shared": compiled.metadata.shared,
        "hash": compiled.hash,
        "together": compiled.metadata.launch_cooperative_grid,
        "fused": compiled.metadata.enable_fp_fusion,
    }
    assembly = compiled.asm["amdgcn" if hip else "ptx"]
    report["tf32"] = len(re.findall(r"tf32|xf32", assembly))
    if hip:
        report |= _read_amd(assembly) | _read_amd_barriers(assembly)
    else:
        report |= _read_cubin(compiled.asm["cubin"]) | _read_barriers(assembly)
        tensors = [name for name, kind in src.signature.items() if kind != "constexpr"]
        report["races"] = races(assembly, tensors)
        report["matrix"] = sorted(
            set(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", assembly))
        )
    return report


def _read_barriers(ptx: str) -> dict[str, Any]:
    """How programs of a group wait for each other, and how they read what others wrote."""
    # All threads have arrived when one announces it.
    announced = r"bar\.sync[^\n]*\n(?:(?!bar\.sync|ld\.global|st\.global)[^\n]*\n){0,12}[^\n]*"
    release = r"(?:atom|red)\.global\.gpu\.release"
    # All threads wait for the one that has seen the others' arrivals.
    seen = r"ld\.global\.gpu\.acquire[^\n]*\n(?:(?!.*(?:ld|st)\.global)[^\n]*\n)*?[^\n]*bar\.sync"
    return {
        "arrivals": len(re.findall(release, ptx)),
        "announced": len(re.findall(announced + release, ptx)),
        "polls": len(re.findall(r"ld\.global\.gpu\.acquire", ptx)),
        "seen": len(re.findall(seen, ptx)),
        "given_up": len(re.findall(r"\btrap;", ptx)),
        # Through a cache that no barrier clears.
        "uncoherent": len(re.findall(r"ld\.global\.nc", ptx)),
    }


def _read_cubin(cubin: bytes) -> dict[str, Any]:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text}")
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spill": stack + local}


def _read_amd(assembly: str) -> dict[str, Any]:
    def number(field: str) -> int:
        found = re.search(rf"\.{field}:\s+(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the assembly does not state {field}")
        return int(found[1])

    # Scalar registers are spilled to lanes of vector registers; only these go to memory.
    return {
        "registers": number("vgpr_count"),
        "spill": number("vgpr_spill_count") + number("private_segment_fixed_size"),
        "matrix": sorted(set(re.findall(r"v_mfma_\w+", assembly))),
    }


def _read_amd_barriers(assembly: str) -> dict[str, Any]:
    """The same as `_read_barriers`. There a program's barrier waits for no store by itself."""
    lines = (line.strip() for line in assembly.splitlines())
    code = "".join(f"{line}\n" for line in lines if re.match(r"[a-z]\w+( |$)", line))
    between = r"(?:(?!s_barrier|(?:global|flat|buffer)_(?:load|store|atomic))[^\n]*\n)*"
    stored = rf"s_waitcnt vmcnt\(0\)\nv_mov_b32[^\n]*\n{between}(?:s_barrier\n)+"
    release = r"buffer_wbl2 sc1\n(?:[sv]_\w+[^\n]*\n)*?global_atomic_add"
    acquire = r"global_(?:load_dword|atomic_or) [^\n]*\ns_waitcnt[^\n]*\nbuffer_inv sc1"
    return {
        "arrivals": len(re.findall(release, code)),
        "announced": len(re.findall(f"{stored}{between}global_atomic_add", code)),
        "polls": len(re.findall(acquire, code)),
        "given_up": len(re.findall(r"^s_trap", code, re.MULTILINE)),
    }


def main(targets: str, mode: str, *dtypes: str) -> None:
    """Print one JSON object for each distinct kernel of the launches."""
    for target in targets.split(","):
        seen: set[str] = set()
        for dtype in dtypes:
            for launch in record(getattr(torch, dtype), mode == "full", target.startswith("gfx")):
                report = compile_for(launch, target)
                if report["hash"] not in seen:
                    print(json.dumps(report), flush=True)
                seen.add(report["hash"])


if __name__ == "__main__":
    main(*sys.argv[1:])
