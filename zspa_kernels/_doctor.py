# SPDX-License-Identifier: Apache-2.0
"""`zspa doctor`: what is installed, what can run here, and why the rest cannot."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import torch

from zspa_kernels import _native
from zspa_kernels._ops import dispatch
from zspa_kernels._version import __version__

PACKAGES = (
    "triton",
    "transformers",
    "vllm",
    "numpy",
    "scikit-image",
    "matplotlib",
    "typer",
    "rich",
)
VARIABLES = (
    "ZSPA_NO_NATIVE",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
)
# As /proc/cpuinfo spells them on x86 and on Arm.
INSTRUCTION_SETS = (
    *("sse4_2", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl"),
    *("avx512_bf16", "avx512_fp16", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)


def report(as_json: bool = False) -> str:
    """The whole report, as text to paste into a bug report or as JSON."""
    facts = collect()
    return json.dumps(facts, indent=2, default=str) if as_json else _text(facts)


def collect() -> dict[str, Any]:
    """Everything `zspa doctor` prints.

    Returns:
        A dict that JSON can hold. `backends[device][backend][op]` is None where the backend runs
        the op and the reason where it does not; `auto[device][op]` is the backend taken by
        default.
    """
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        "zspa_kernels": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "os": platform.platform(),
        "cpu": _cpu(),
        "torch": _torch(),
        "packages": {name: _installed(name) for name in PACKAGES},
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "native": _native_module(),
        "backends": {
            device: {
                backend: {
                    op: dispatch.why_not(backend, op, torch.device(device)) for op in dispatch.OPS
                }
                for backend in dispatch.BACKENDS
            }
            for device in devices
        },
        "auto": {
            device: {op: chosen(op, torch.device(device)) for op in dispatch.OPS}
            for device in devices
        },
    }


def chosen(op: str, device: torch.device) -> str | None:
    """The backend that `backend="auto"` takes for an op, or None where there is none."""
    with warnings.catch_warnings():
        # That the reference is slow is said when it is used, and here by the reason of the others.
        warnings.simplefilter("ignore")
        try:
            function = dispatch.choose(op, device)
        except NotImplementedError:
            return None
    # zspa_kernels.backends.<name>.<op>
    return function.__module__.split(".")[2]


def _cpu() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": fields.get("model name") or platform.processor() or "unknown",
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
    }


def _torch() -> dict[str, Any]:
    gpus = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
        gpus.append({"name": name, "capability": f"{major}.{minor}"})
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpus": gpus,
    }


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _native_module() -> dict[str, Any]:
    reason = _native.reason()
    if reason is not None:
        return {"available": False, "reason": reason}
    module = _native.module()
    return {
        "available": True,
        "isa": module.isa(),
        "isas": list(module.isas()),
        "build_info": module.build_info(),
    }


def _text(facts: dict[str, Any]) -> str:
    cpu, torch_ = facts["cpu"], facts["torch"]
    gpus = ", ".join(f"{gpu['name']} (sm {gpu['capability']})" for gpu in torch_["gpus"])
    native = facts["native"]
    if native["available"]:
        build = ", ".join(
            f"{key} {value}"
            for key, value in native["build_info"].items()
            if isinstance(value, str | int)
        )
        native_line = f"uses {native['isa']} of {', '.join(native['isas'])}; {build}"
    else:
        native_line = native["reason"]
    packages = (f"{name} {version or '(none)'}" for name, version in facts["packages"].items())
    environment = (f"{name}={value}" for name, value in facts["environment"].items())
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores"
    rows = {
        "zspa_kernels": facts["zspa_kernels"],
        "python": facts["python"],
        "os": facts["os"],
        "cpu": f"{cpu['model']} ({cpu['architecture']}), {cores}",
        "": " ".join(cpu["instruction_sets"]) or "instruction sets unknown",
        "torch": f"{torch_['version']}, threads {torch_['threads']}, GPUs: {gpus or 'none'}",
        "packages": ", ".join(packages),
        "environment": " ".join(environment) or "(nothing set that matters here)",
        "native": native_line,
    }
    lines = [f"{name:<13} {value}" for name, value in rows.items()]
    for device, backends in facts["backends"].items():
        lines += ["", f"backends for {device} tensors"]
        for backend, reasons in backends.items():
            verdicts = {op: f"refused: {why}" if why else "runs" for op, why in reasons.items()}
            lines += _lines(backend, verdicts)
        auto = facts["auto"][device]
        lines += _lines("(auto)", {op: f"takes {name or 'none'}" for op, name in auto.items()})
    return "\n".join(lines)


def _lines(name: str, verdicts: dict[str, str]) -> list[str]:
    """One line for all ops that fare alike."""
    alike: dict[str, list[str]] = {}
    for op, verdict in verdicts.items():
        alike.setdefault(verdict, []).append(op)
    if len(alike) == 1:
        return [f"  {name:<10} {next(iter(alike))}"]
    return [f"  {name:<10} {', '.join(ops)}: {verdict}" for verdict, ops in alike.items()]
