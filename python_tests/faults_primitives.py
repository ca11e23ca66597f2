# SPDX-License-Identifier: Apache-2.0
"""Faults planted in plain torch: a module of primitives or of the reference, a piece replaced."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from zspa_kernels._ops import dispatch
from zspa_kernels.methods import _registry


class Fault(NamedTuple):
    """One slip of the pen.

    Attributes:
        module: of `zspa_kernels`, with its package.
        right: what stands there, once.
        wrong: what stands there instead.
    """

    module: str
    right: str
    wrong: str


def broken(fault: Fault) -> types.ModuleType:
    """The module with the fault, on its plain torch path."""
    name = f"zspa_kernels.{fault.module}"
    path = Path(str(importlib.import_module(name).__file__))
    source = path.read_text()
    assert source.count(fault.right) == 1, f"{fault.right!r} must stand once in {path.name}"
    module = types.ModuleType(name)
    module.__dict__.update(__package__=name.rpartition(".")[0], __file__=str(path))
    exec(compile(source.replace(fault.right, fault.wrong), str(path), "exec"), module.__dict__)
    return without_native(module)


def without_native(module: types.ModuleType) -> types.ModuleType:
    """On a CPU some primitives are native kernels, which have tests of their own."""
    if hasattr(module, "native"):
        module.__dict__["native"] = lambda *tensors, **options: False
    return module


def plant(fault: Fault, patch: pytest.MonkeyPatch) -> None:
    """Whoever has something of the module by its name gets that of the broken one."""
    right: Any = sys.modules[f"zspa_kernels.{fault.module}"]
    # A method of the broken module takes the name of the right one, no longer than the fault lasts.
    patch.setattr(_registry, "_entries", dict(_registry._entries))
    wrong = broken(fault)
    own = {
        x: value
        for x, value in vars(right).items()
        if getattr(value, "__module__", "") == right.__name__
    }
    package, _, short = right.__name__.rpartition(".")
    patch.setitem(sys.modules, right.__name__, wrong)  # for patches by dotted name
    patch.setattr(sys.modules[package], short, wrong)
    for name, module in list(sys.modules.items()):
        if not name.startswith(("zspa_kernels", "python_tests")) or module in (right, wrong):
            continue
        for x, value in own.items():
            if vars(module).get(x) is value:
                patch.setattr(module, x, vars(wrong)[x])


Proof = Callable[[], None]


def of(test: Callable[..., None], *arguments: object) -> Proof:
    """A test as the proof of a fault."""
    return partial(test, *arguments)


def patched(test: Callable[..., None], *arguments: object) -> Proof:
    """A test that takes monkeypatch last."""

    def proof() -> None:
        with pytest.MonkeyPatch.context() as patch:
            test(*arguments, patch)

    return proof


def reject(fault: tuple[str, str, str], proof: Proof, patch: pytest.MonkeyPatch) -> None:
    """The proof passes, and with the fault it fails; native kernels have tests of their own."""
    for module in ("merging", "pivots", "scores", "sharing"):
        patch.setattr(
            f"zspa_kernels.primitives.{module}.native", lambda *x, **y: False, raising=False
        )
    patch.setattr(dispatch, "choose", lambda op, device: dispatch.load("reference", op))
    proof()
    plant(Fault(*fault), patch)
    with pytest.raises(AssertionError):
        proof()
