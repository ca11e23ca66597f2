# SPDX-License-Identifier: Apache-2.0
"""What importing the package brings in, and which module may import which."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "zspa_kernels"
OPTIONAL = ("triton", "transformers", "matplotlib", "skimage", "typer", "rich", "PIL", "hypothesis")


def fresh(code: str, **environment: str) -> str:
    """Run `code` in a new interpreter, warnings being errors; what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=PACKAGE.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_imports_torch_and_nothing_heavier() -> None:
    loaded = "import sys, torch; before = set(sys.modules); import zspa_kernels; "
    names = fresh(loaded + "print(*{m.split('.')[0] for m in set(sys.modules) - before})").split()
    assert set(names) <= {"zspa_kernels", *sys.stdlib_module_names}


def test_it_works_where_nothing_optional_is_installed() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r})); "
    code = (
        "import torch, zspa_kernels as zk; x = torch.eye(4); i = zk.select(x, x[:1], keep=2); "
        "print(i.tolist(), zk.gather(x, i).shape[0], zk.DivPrune(2).select(x).indices.tolist())"
    )
    assert fresh(blocked + code) == "[0, 1] 2 [0, 1]"


def test_triton_is_refused_with_a_reason_where_it_is_not_installed() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, zspa_kernels as zk\n"
        "try: zk.select(torch.eye(4), keep=2, backend='triton')\n"
        "except ImportError as error: print(error)"
    )
    assert fresh(code) == (
        "select: backend 'triton' cannot run: triton is not installed: pip install triton"
    )


def test_without_the_native_module_the_reference_gives_the_same_answer() -> None:
    code = (
        "import warnings, torch, zspa_kernels as zk\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    x = torch.eye(4); answers = [zk.diversity(x, 2).tolist() for _ in range(3)]\n"
        "print(answers, len(seen), 'make build' in str(seen[0].message))"
    )
    assert fresh(code, ZSPA_NO_NATIVE="1") == "[[0, 1], [0, 1], [0, 1]] 1 True"


def test_a_reload_registers_the_ops_again() -> None:
    code = (
        "import importlib, torch, zspa_kernels as zk, zspa_kernels._ops.register as register\n"
        "x = torch.eye(4); before = zk.select(x, keep=2)\n"
        "for _ in range(3): importlib.reload(register)\n"
        "print(torch.equal(zk.select(x, keep=2), before), torch.ops.zspa.diversity(x, 1).tolist())"
    )
    assert fresh(code) == "True [0]"


# ---- directions: what each module may import from the package ------------------------------------

PUBLIC = ("zspa_kernels", "api", "types", "methods", "projectors", "sensitivity_plan")
ALLOWED: dict[str, tuple[str, ...]] = {
    "_version": (),
    "_activations": (),
    "_contract": ("_activations",),
    "_native": ("_version",),
    "_segments": ("_native",),
    "_counts": ("_contract",),
    "_gather": ("_contract",),
    "types": ("_gather",),
    "_ops": ("_contract", "_native", "_segments"),
    "_varlen": ("_contract", "_counts", "_ops"),
    "_greedy": ("_contract", "_ops", "_varlen"),
    "_suppress": ("_contract", "_ops"),
    "sensitivity_plan": ("_contract", "_ops", "backends._blas"),
    "projectors": ("_activations", "_contract"),
    "_sensitivity": ("_contract", "_ops", "backends._blas", "projectors", "sensitivity_plan"),
    "api": (
        *("_contract", "_counts", "_gather", "_ops"),
        *("_greedy", "_sensitivity", "_suppress", "_varlen"),
    ),
    "_warmup": ("_contract", "api"),
    "primitives": (
        *("_contract", "_native", "_ops", "api", "types"),
        *("backends._blas", "backends.cpp", "backends.reference"),
    ),
    "hf": ("types",),
    "methods": (
        *("_contract", "_counts", "_sensitivity", "api", "hf"),
        *("primitives", "projectors", "sensitivity_plan", "types"),
    ),
    "zspa_kernels": (
        *("_version", "_warmup", "api", "hf", "methods"),
        *("primitives", "sensitivity_plan", "types"),
    ),
    "backends": (),
    "backends._blas": ("_native",),
    "backends.reference": ("_activations", "_segments", "backends._blas"),
    "backends.cpp": ("_activations", "_native", "_segments", "backends._blas"),
    "backends.triton": ("_segments", "backends._blas"),
    "testing": (),
    "visualize": (*PUBLIC, "_contract"),
    "_pixels": ("hf",),
    "pictures": ("_pixels", "hf", "types", "visualize"),
    "_doctor": ("_native", "_ops", "_version"),
    "demo": (*PUBLIC, "_doctor", "_ops", "testing", "visualize"),
    "lmms": ("hf", "methods"),
    "vllm": ("_contract", "api", "hf", "methods"),
    "_api_page": ("zspa_kernels", "_ops", "pictures", "projectors", "visualize", "vllm"),
    "ask": ("_contract", "demo", "hf", "lmms", "methods", "pictures"),
    "cli": ("zspa_kernels", "_doctor", "ask", "demo", "methods"),
}
# What each may import from elsewhere, beside the standard library and torch.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "_ops": ("triton",),
    "backends.triton": ("numpy", "triton"),
    "visualize": ("numpy", "PIL", "matplotlib"),
    "pictures": ("matplotlib", "numpy"),
    "demo": ("numpy", "PIL", "skimage"),
    "lmms": ("lmms_eval",),
    "vllm": ("vllm",),
    "ask": ("PIL", "transformers"),
    "cli": ("rich", "typer"),
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module: str) -> str:
    """The line of the table a module belongs to: a file, a package, or one backend."""
    inside = module.split(".")[1:]
    if not inside:
        return "zspa_kernels"
    if inside[0] in ("__main__", "cli_app", "cli_methods", "cli_prune"):
        return "cli"  # files of one command line
    return ".".join(inside[:2] if inside[0] == "backends" else inside[:1])


def imports(path: Path) -> set[str]:
    """Absolute names of the modules a file imports anywhere, in functions too."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            # `from package import name`: the name may be a module of the package.
            names = {f"{base}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if name in known()}
            found.update(submodules or {base})
    return found


def known() -> set[str]:
    return {dotted(path) for path in modules()}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    here = unit(dotted(path))
    assert here in ALLOWED, f"{path.name} has no line in the table"
    for name in imports(path):
        top = name.split(".")[0]
        if top == "zspa_kernels":
            target = unit(name)
            assert target == here or target in ALLOWED[here], f"{here} must not import {target}"
        elif top != "torch" and top not in sys.stdlib_module_names:
            assert top in THIRD_PARTY.get(here, ()), f"{here} must not import {top}"


def test_the_table_has_no_cycle_and_no_dead_lines() -> None:
    assert set(ALLOWED) <= {unit(name) for name in known()}
    done: set[str] = set()
    while waiting := set(ALLOWED) - done:
        ready = {name for name in waiting if set(ALLOWED[name]) <= done}
        assert ready, f"a cycle among {sorted(waiting)}"
        done |= ready


def test_configurations_of_kernels_need_no_triton() -> None:
    for path in (PACKAGE / "backends" / "triton").glob("*_config.py"):
        others = {name for name in imports(path) if not name.endswith("_config")}
        assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names
