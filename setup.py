# SPDX-License-Identifier: Apache-2.0
"""Builds the native module with CMake; everything else is in pyproject.toml.

Environment:
    ZSPA_NO_NATIVE=1   install without the native module (the same variable hides it at run time)
    CXX                the compiler, a g++; default: g++, then c++
    CMAKE_ARGS         further arguments for CMake
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """The version, read as text: the package itself needs torch to be imported."""
    text = (ROOT / "zspa_kernels" / "_version.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("zspa_kernels/_version.py holds no version")
    return found.group(1)


def description() -> str:
    """README.md as an index of packages shows it: without pictures and links of the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def compiler() -> str | None:
    """The path of the C++ compiler, or None."""
    names = [shlex.split(os.environ["CXX"])[0]] if os.environ.get("CXX") else ["g++", "c++"]
    return next((path for path in map(shutil.which, names) if path), None)


def why_not_native() -> str | None:
    """The reason to install without the native module, or None."""
    if os.environ.get("ZSPA_NO_NATIVE") == "1":
        return "ZSPA_NO_NATIVE=1"
    if compiler() is None:
        return "no C++ compiler found (install g++, or set CXX)"
    return None


def tool(name: str, directory: str) -> str:
    """A build tool from its wheel, else from PATH."""
    try:
        path = Path(getattr(importlib.import_module(name), directory)) / name
        if path.exists():
            return str(path)
    except (ImportError, AttributeError):
        pass
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"zspa_kernels: {name} is missing: pip install {name}")
    return found


class CMakeBuild(build_ext):
    """Runs CMake and Ninja, and puts the module where setuptools expects it."""

    def run(self) -> None:
        """Notes whether this build is in place: the base class hides it from `build_extension`."""
        self.in_tree = bool(self.inplace) or self.editable_mode
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Configures, builds and installs into the folder of `ext`."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        if self.in_tree:  # kept, so that the next build is incremental
            folder = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
            self.build(folder, target)
        else:
            with tempfile.TemporaryDirectory(prefix="zspa_build_") as scratch:
                self.build(Path(scratch), target)

    def build(self, folder: Path, target: Path) -> None:
        """Runs CMake in `folder`; its output reaches the user whenever it fails."""
        import pybind11

        cmake, ninja = tool("cmake", "CMAKE_BIN_DIR"), tool("ninja", "BIN_DIR")
        # The tools are named afresh every time: an isolated build's tools vanish after it, and a
        # kept build folder would remember them.
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        environment = {**os.environ, "CXX": os.environ.get("CXX") or str(compiler())}
        for command in (
            configure,
            [cmake, "--build", str(folder)],
            [cmake, "--install", str(folder), "--prefix", str(target)],
        ):
            done = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if done.returncode:
                raise SystemExit(
                    f"zspa_kernels: building the native module failed: {shlex.join(command)}\n"
                    f"{done.stdout}\nTo install without it, set ZSPA_NO_NATIVE=1."
                )
            if self.verbose or "warning:" in done.stdout:
                print(done.stdout, end="")


if int(setuptools.__version__.split(".")[0]) < 77:  # which read no licence of PEP 639
    raise SystemExit(
        "zspa_kernels: setuptools must be 77.0.3 or newer to read pyproject.toml, got "
        f"{setuptools.__version__}: {sys.executable} -m pip install 'setuptools>=77.0.3'"
    )
reason = why_not_native()
if reason is not None:
    print(
        f"warning: zspa_kernels: the native module is left out: {reason}. CPU tensors will use the "
        "slow reference.",
        file=sys.stderr,
    )
setup(
    version=version(),
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=[] if reason else [Extension("zspa_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
