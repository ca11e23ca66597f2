# SPDX-License-Identifier: Apache-2.0
"""The native kernels under the compiler's sanitizers: `make sanitize`.

A second module, in build/sanitize, takes the place of the package's own:

- `memory` (AddressSanitizer, UndefinedBehaviorSanitizer): reads and writes outside of what was
  allocated, use after free, overflow of integers, shifts and conversions that C++ does not define,
  and indices beyond a std::vector. torch's tensors are seen as well, for its allocator asks that of
  the process.
- `threads` (ThreadSanitizer): two threads at one place, one of them writing.

Both share work between threads however little it is; either ends the process with a report. As a
plugin of pytest (`-p python_tests.sanitize`) it puts the first module in place.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "sanitize"
NATIVE = ["native", "laws_native", "merging_native", "topk_native", "sensitivity_native"]
TESTS = [*NATIVE, "pivots", "varlen"]

#: What is watched for -> the library that watches.
LIBRARIES = {"memory": "libasan.so", "threads": "libtsan.so"}
#: What torch synchronises by OpenMP, and a mutex of it, are beyond ThreadSanitizer.
ALLOWED = "race:libtorch\nrace:at::internal\nmutex:libtorch\nrace:PyBytes_From\n"


def pytest_configure() -> None:
    """Runs before any test is imported."""
    use("memory")


def use(watched: str) -> None:
    """`zspa_kernels._C` is the module that watches for `watched` from now on."""
    import torch  # noqa: F401  # first, as in zspa_kernels/_native.py

    path = FOLDER / watched / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    spec = importlib.util.spec_from_file_location("zspa_kernels._C", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no sanitized module: {path}")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def build(watched: str) -> None:
    """The sanitized module, incrementally."""
    import cmake
    import ninja
    import pybind11

    tool, folder = str(Path(cmake.CMAKE_BIN_DIR) / "cmake"), str(FOLDER / watched)
    configure = [
        *(tool, "-S", str(ROOT), "-B", folder, "-G", "Ninja", f"-DZSPA_SANITIZE={watched}"),
        f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    environment = {**os.environ, "CXX": os.environ.get("CXX", "g++")}
    for command in (configure, [tool, "--build", folder]):
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def run(watched: str, *arguments: str) -> None:
    """`python -m ...` under the sanitizers."""
    allowed = FOLDER / "allowed.txt"
    allowed.write_text(ALLOWED)
    # Its allocator has to be there before everybody's first allocation, and it wraps what throws,
    # which Python itself does not load.
    libraries = [_library(name) for name in (LIBRARIES[watched], "libstdc++.so.6")]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        # Python and torch keep memory until they end.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": f"halt_on_error=1:history_size=4:suppressions={allowed}",
    }
    # ThreadSanitizer of gcc 12 cannot live with addresses as random as newer kernels make them.
    fixed = ["setarch", platform.machine(), "--addr-no-randomize"] if watched == "threads" else []
    command = [*fixed, sys.executable, "-m", *arguments]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        raise SystemExit(f"under the sanitizers ({watched}): {' '.join(arguments)} failed")


def _library(name: str) -> str:
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(
    seconds: Annotated[int, typer.Option(help="How long random calls go on, of each.")] = 90,
    seed: Annotated[int, typer.Option(help="The first of their seeds.")] = 0,
) -> None:
    """Build both modules, make random calls, run the native tests."""
    times = ["--seconds", str(seconds), "--seed", str(seed)]
    for watched in LIBRARIES:
        build(watched)
        run(watched, "python_tests.fuzz_native", "--sanitized", watched, *times)
    # What measures memory or forks would measure and fork the sanitizer.
    left_out = "not scratch and not fork and not memory and not triton"
    files = [f"python_tests/test_{name}.py" for name in TESTS]
    # Captured by Python only: the reports go past it.
    options = ["-q", "--capture=sys", "-p", "python_tests.sanitize", "-k", left_out]
    run("memory", "pytest", *options, *files)


if __name__ == "__main__":
    typer.run(main)
