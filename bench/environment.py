# SPDX-License-Identifier: Apache-2.0
"""Where and with what a run was made."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cpuinfo
import torch

import zspa_kernels
from zspa_kernels import _native

ROOT = Path(__file__).resolve().parent.parent
#: Published results, which pages show, and everything else, which is not under version control.
RESULTS, SCRATCH = ROOT / "bench" / "results", ROOT / "build" / "bench"

#: Variables that change speed or choice of code; no others are written down.
_VARIABLES = (
    "ATEN_", "DNNL_", "GOMP_", "KMP_", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "TORCH",
    "TRITON_", "ZSPA_",
)  # fmt: skip
#: What these runs write themselves does not make a commit dirty.
_OWN = (":(exclude)bench/results", ":(exclude)README.md", ":(exclude)docs/*.md")


def cpu_name(cpu: Mapping[str, Any]) -> str:
    """What a processor is called, with the numbers that tell generations of one name apart."""
    name: str = cpu.get("brand_raw", platform.processor())
    if "family" not in cpu or "model" not in cpu:
        return name
    return f"{name} (family {cpu['family']}, model {cpu['model']})"


def environment(threads: int) -> dict[str, Any]:
    """Commit, machine, versions and settings, ready for JSON."""
    cpu = cpuinfo.get_cpu_info()
    native = _native.module()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "git": git(),
        "cpu": {
            "model": cpu_name(cpu),
            "logical": os.cpu_count(),
            "l2_bytes": cpu.get("l2_cache_size"),
            "l3_bytes": cpu.get("l3_cache_size"),
            "flags": " ".join(cpu.get("flags", [])),
        },
        "threads": threads,
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "zspa_kernels": zspa_kernels.__version__,
        "build": native.build_info(),
        "isa": native.isa(),
        "cxx": _version_line(os.environ.get("CXX", "g++")),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_VARIABLES) and not name.endswith("_CACHE_DIR")
        },
    }


def git() -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside of a checkout."""
    try:
        sha = _output("git", "rev-parse", "HEAD")
        changes = _output("git", "status", "--porcelain", "-uno", "--", ".", *_OWN)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"sha": sha.strip(), "dirty": bool(changes.strip())}


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _version_line(compiler: str) -> str | None:
    """What torch.compile builds with."""
    if shutil.which(compiler) is None:
        return None
    return _output(compiler, "--version").splitlines()[0]
