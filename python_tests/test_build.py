# SPDX-License-Identifier: Apache-2.0
"""The build: one version, a module free of torch, one OpenMP runtime, clear failures."""

from __future__ import annotations

import ast
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import zspa_kernels
from zspa_kernels import _native

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def native(require_backend: Callable[..., None]) -> Path:
    """The file of the compiled module."""
    require_backend("cpp")
    path = _native.module().__file__
    assert path is not None
    return Path(path)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter that finds this checkout."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def dynamic_section(path: Path) -> tuple[list[str], bytes]:
    """(DT_NEEDED names, the dynamic string table) of a 64-bit little-endian ELF file."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    # name, type, flags, address, offset, size, link, info, align, entry size
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    dynamic = next(section for section in sections if section[1] == 6)
    strings = sections[dynamic[6]]
    names = data[strings[4] : strings[4] + strings[5]]
    entries = struct.iter_unpack("<QQ", data[dynamic[4] : dynamic[4] + dynamic[5]])
    needed = [
        names[value : names.index(b"\0", value)].decode() for tag, value in entries if tag == 1
    ]
    return needed, names


def test_version_stands_once() -> None:
    from zspa_kernels._version import __version__

    assert zspa_kernels.__version__ == __version__
    for name in ("setup.py", "CMakeLists.txt", "pyproject.toml", "zspa_kernels/__init__.py"):
        text = (ROOT / name).read_text()
        assert not re.search(rf"(?<![\d.]){re.escape(__version__)}(?![\d.])", text), name


def test_build_info(native: Path) -> None:
    info = _native.module().build_info()
    assert info["version"] == zspa_kernels.__version__
    assert info["compiler"].startswith("GNU ")
    assert info["openmp"] >= 201511
    assert info["isas"][-1] == "portable"


def test_stub_describes_the_module(native: Path) -> None:
    stub = ast.parse((ROOT / "zspa_kernels" / "_C.pyi").read_text())
    declared = {node.name: node.args for node in stub.body if isinstance(node, ast.FunctionDef)}
    module = _native.module()
    assert set(declared) == {name for name in dir(module) if not name.startswith("_")}
    for name, arguments in declared.items():
        # pybind11 writes the signature into the first line of the docstring.
        line = getattr(module, name).__doc__.splitlines()[0]
        assert line.count("arg") == len(arguments.posonlyargs), line


def test_module_knows_nothing_of_torch(native: Path) -> None:
    needed, names = dynamic_section(native)
    assert "libgomp.so.1" in needed
    assert not [name for name in needed if "torch" in name or "c10" in name or "python" in name]
    assert not re.search(rb"torch|c10|_ZNK?2at", names)


def test_one_openmp_runtime(native: Path) -> None:
    done = python(
        "import zspa_kernels._native as native\n"
        "native.module()\n"
        "print(open('/proc/self/maps').read())"
    )
    assert done.returncode == 0, done.stderr
    runtimes = set(re.findall(r"/\S*/lib(?:gomp|omp|iomp)\S*", done.stdout))
    assert len(runtimes) == 1, runtimes


def test_files_of_one_instruction_set_export_one_symbol() -> None:
    """A second one could be the copy of an inline function that the linker gives to every CPU."""
    nm = shutil.which("nm")
    folder = ROOT / "build" / f"native-{sysconfig.get_config_var('SOABI')}"
    objects = sorted(folder.glob("CMakeFiles/_C.dir/csrc/cpu/*_avx*.o"))
    if nm is None or not objects:
        pytest.skip("needs nm and the object files of `make build` on x86-64")
    for path in objects:
        listing = subprocess.run(
            [nm, "--defined-only", "--extern-only", "-C", str(path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert len(listing) == 1, f"{path.name}: {listing}"
        assert listing[0].endswith("_kernels()"), f"{path.name}: {listing}"


def test_without_native_module() -> None:
    """Everything works on the reference, with one warning that names the build command."""
    done = python(
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import torch, zspa_kernels as zk\n"
        "    assert not caught, [str(w.message) for w in caught]\n"
        "    x = torch.eye(4)\n"
        "    for _ in range(2):\n"
        "        assert zk.select(x, k_core=0, k_diverse=2).tolist() == [0, 1]\n"
        "        assert zk.diversity(x, 2).tolist() == [0, 1]\n"
        "print(len(caught), caught[0].message)\n"
        "try: zk.select(x, k_core=0, k_diverse=2, backend='cpp')\n"
        "except ImportError as error: print(error)\n",
        ZSPA_NO_NATIVE="1",
    )
    assert done.returncode == 0, done.stderr
    warning, error = done.stdout.splitlines()
    assert warning.startswith("1 ")
    for text in (warning, error):
        assert "make build" in text
        assert "pip install ." in text


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """A checkout whose only C++ file does not compile."""
    tree = tmp_path / "tree"
    (tree / "zspa_kernels").mkdir(parents=True)
    (tree / "csrc" / "cpu").mkdir(parents=True)
    for name in (
        "setup.py",
        "CMakeLists.txt",
        "pyproject.toml",
        "LICENSE",
        "zspa_kernels/_version.py",
    ):
        shutil.copy(ROOT / name, tree / name)
    (tree / "README.md").touch()
    (tree / "csrc" / "bindings.cpp").write_text("this is not C++;\n")
    return tree


def setup_py(
    tree: Path, command: str = "build", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the tree; variables whose value is empty are removed."""
    kept = {key: value for key, value in {**os.environ, **environment}.items() if value}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", command],
        cwd=tree,
        env=kept,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_make_in_a_folder_whose_name_has_a_space(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    tree = tmp_path / "ein Örtchen"
    (tree / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    interpreter = tree / ".venv" / "bin" / "python"
    interpreter.write_text('#!/bin/sh\nprintf "%s\\n" "ran $*"\n')
    interpreter.chmod(0o755)
    (tree / ".venv" / ".installed").touch()
    outer = ("PYTHON", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of the `make` that runs the tests
    kept = {k: v for k, v in os.environ.items() if k not in outer}
    done = subprocess.run(
        [make, "types"], cwd=tree, env=kept, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ran setup.py -q build_ext --inplace", "ran -m mypy"]


def test_no_compiler_is_only_a_warning(source_tree: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = setup_py(source_tree, PATH=str(empty), CXX="")
    assert done.returncode == 0, done.stderr
    assert "the native module is left out: no C++ compiler found" in done.stderr
    assert not list(source_tree.rglob("*.so"))


def test_native_module_can_be_declined(source_tree: Path) -> None:
    done = setup_py(source_tree, ZSPA_NO_NATIVE="1")
    assert done.returncode == 0, done.stderr
    assert "the native module is left out: ZSPA_NO_NATIVE=1" in done.stderr


def test_the_description_shows_nothing_that_is_only_in_the_repository(source_tree: Path) -> None:
    shutil.copy(ROOT / "README.md", source_tree)
    done = setup_py(source_tree, "egg_info", ZSPA_NO_NATIVE="1")
    assert done.returncode == 0, done.stderr
    text = (source_tree / "zspa_kernels.egg-info" / "PKG-INFO").read_text()
    assert "Description-Content-Type: text/markdown" in text
    assert "zk.select(visual, prompt, keep=0.1" in text
    targets = re.findall(r"\]\((.*?)\)", text)
    assert len(targets) == (ROOT / "README.md").read_text().count("](https://")
    assert all(target.startswith("https://") for target in targets)
    assert not re.search(r"^!", text, re.MULTILINE), "what is left of a picture"


def test_old_setuptools_is_named(source_tree: Path) -> None:
    """Its own words are about a licence that pyproject.toml does have."""
    old = "import runpy, setuptools; setuptools.__version__ = '76.1.0'; runpy.run_path('setup.py')"
    done = subprocess.run(
        [sys.executable, "-c", old], cwd=source_tree, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "setuptools must be 77.0.3 or newer" in done.stderr
    assert "got 76.1.0: " in done.stderr
    assert "-m pip install 'setuptools>=77.0.3'" in done.stderr


def test_failing_compiler_fails_the_installation(source_tree: Path) -> None:
    pytest.importorskip("pybind11")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    done = setup_py(source_tree, CXX="g++", ZSPA_NO_NATIVE="")
    assert done.returncode != 0
    assert "building the native module failed" in done.stderr
    assert "bindings.cpp:1:1: error" in done.stderr


def test_licence_line_and_length() -> None:
    files = [
        path
        for folder in ("zspa_kernels", "python_tests", "bench", "csrc")
        for path in (ROOT / folder).rglob("*")
    ]
    sources = [
        ROOT / "setup.py",
        *(path for path in files if path.suffix in {".py", ".pyi", ".cpp", ".h", ".cu"}),
    ]
    for path in sources:
        lines = path.read_text().splitlines()
        assert lines[:1], path
        assert lines[0].lstrip("#/ ") == "SPDX-License-Identifier: Apache-2.0", path
        limit = 500 if path.parent.name == "python_tests" else 400
        assert len(lines) < limit, f"{path}: {len(lines)} lines"
