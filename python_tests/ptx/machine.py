# SPDX-License-Identifier: Apache-2.0
"""Launches Triton kernels on the machine of this folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from python_tests import triton_aot

from .decode import decode

FOLDER = Path(__file__).parent
BUILD = FOLDER.parents[1] / "build"
SPACES = ("global", "shared", "tensor")  # Space of machine.h


class MachineError(AssertionError):
    """A kernel did what a GPU may not do."""


class Launch(ctypes.Structure):
    """`Launch` of machine.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("code", "arguments", "initial", "tensors", "races")),
        ("text", ctypes.c_char_p),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("instructions", "slots", "num_tensors", "most_races", "text_size"),
                *("tid", "ctaid", "programs", "warps", "shared", "together", "seed", "limit"),
                *("num_races", "steps", "where"),
            )
        ),
    ]


@functools.cache
def library() -> Any:
    """The machine, compiled when its sources have changed."""
    sources = sorted(path for path in FOLDER.iterdir() if path.suffix in (".h", ".cpp"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    path = BUILD / f"ptx_machine_{digest}.so"
    if not path.exists():
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            made = Path(folder) / path.name
            flags = ["-std=c++17", "-O2", "-march=native", "-shared", "-fPIC"]
            units = [str(source) for source in sources if source.suffix == ".cpp"]
            subprocess.run(["g++", *flags, *units, "-o", str(made)], check=True)
            made.rename(path)
    return ctypes.CDLL(str(path))


@functools.cache
def op_of(name: str) -> int:
    """The number of an instruction.

    Raises:
        ValueError: the machine does not know it.
    """
    number = int(library().op_of(name.encode()))
    if number < 0:
        raise ValueError(f"the machine has no instruction {name}")
    return number


class Run(NamedTuple):
    """What a launch did: instructions, pairs of accesses that nothing orders, why it stopped."""

    steps: int
    races: set[str]
    fault: str


class Kernel:
    """A compiled kernel, ready to run.

    Args:
        ptx: of the kernel.
        shared: bytes of shared memory of a program.
    """

    def __init__(self, ptx: str, shared: int) -> None:
        self.code = decode(ptx)
        self.shared = shared
        rows: list[tuple[int, ...]] = []
        arguments: list[int] = []
        for i in self.code.instructions:
            first = len(arguments)
            arguments += i.arguments
            where = i.predicate, int(i.negated), i.immediate
            rows.append((op_of(i.name), *where, first, len(arguments)))
        self.rows = np.array(rows, np.int64)
        self.arguments = np.array(arguments, np.int64)

    def run(self, programs: int, values: list[Any], together: bool, seed: int, limit: int) -> Run:
        """Run a launch.

        Args:
            programs: how many.
            values: of the parameters: tensors, numbers.
            together: all programs at once.
            seed: of the order of warps.
            limit: instructions.
        """
        code = self.code
        initial = np.array(code.initial, np.uint64)
        initial[code.special["%nctaid.x"]] = programs
        for number, slot in code.parameters.items():  # those behind `values` are Triton's
            initial[slot] = _bits(values[number]) if number < len(values) else 0
        storages = [v.untyped_storage() for v in values if isinstance(v, Tensor)]
        memory = {s.data_ptr(): s.nbytes() for s in storages}
        tensors = np.array(list(memory.items()), np.uint64)
        races = np.zeros((1000, 3), np.int64)
        text = ctypes.create_string_buffer(200)
        launch = Launch(
            **{
                name: array.ctypes.data
                for name, array in (
                    *(("code", self.rows), ("arguments", self.arguments), ("initial", initial)),
                    *(("tensors", tensors), ("races", races)),
                )
            },
            text=ctypes.cast(text, ctypes.c_char_p),
            instructions=len(self.rows),
            slots=len(initial),
            num_tensors=len(tensors),
            most_races=len(races),
            text_size=len(text),
            tid=code.special["%tid.x"],
            ctaid=code.special["%ctaid.x"],
            programs=programs,
            warps=code.threads // 32,
            shared=self.shared,
            together=together,
            seed=seed,
            limit=limit,
        )
        fault = ""
        if library().run_launch(ctypes.byref(launch)):
            i = code.instructions[launch.where]
            fault = f"{text.value.decode()}: {i.name} of {Path(i.file).name}:{i.line}"
        pairs = {
            f"{SPACES[space]}: {self._place(one)}, {self._place(other)}"
            for one, other, space in races[: launch.num_races].tolist()
        }
        return Run(launch.steps, pairs, fault)

    def _place(self, number: int) -> str:
        return "another program" if number < 0 else self.code.instructions[number].place


def _bits(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<f", value), "little")
    return int(value) & (2**64 - 1)


class Launcher:
    """`_common.launch` on the machine.

    Args:
        target: the compute capability that is compiled for: 80, 89, 90, 100 or 120.
        seed: of the order of warps.
        change: of the PTX of a kernel, by its name; tests plant faults.
        limit: instructions of a launch.
    """

    def __init__(
        self,
        target: int,
        seed: int = 0,
        change: Callable[[str, str], str] = lambda kernel, ptx: ptx,
        limit: int = 2_000_000_000,
    ) -> None:
        import triton

        # Triton's own cache may have the PTX of another checkout, which names files of that one.
        triton.knobs.cache.dir = str(BUILD / "ptx_cache")
        self.target, self.seed, self.change, self.limit = target, seed, change, limit
        self.races: set[str] = set()
        self.steps: dict[str, int] = {}

    def __call__(
        self,
        kernel: Any,
        programs: int,
        device: torch.device,
        *args: Any,
        together: bool = False,
        **options: Any,
    ) -> None:
        import triton
        from triton.backends.compiler import GPUTarget

        from zspa_kernels.backends.triton import _common

        if programs == 0:
            return
        launch = triton_aot.Launch(kernel, args, options | _common.compiler_options(together))
        src = triton_aot.source(launch)
        target = GPUTarget("cuda", self.target, 32)
        compiled = triton.compile(src, target=target, options=launch.options)
        given = dict(zip(kernel.arg_names, args, strict=False)) | options
        values = [given[name] for name, kind in src.signature.items() if kind != "constexpr"]
        name = kernel.__name__
        ready = _kernel(self.change(name, compiled.asm["ptx"]), compiled.metadata.shared)
        run = ready.run(programs, values, together, self.seed, self.limit)
        self.steps[name] = self.steps.get(name, 0) + run.steps
        self.races |= {f"{name}: {race}" for race in run.races}
        if run.fault:
            raise MachineError(run.fault)


@functools.cache
def _kernel(ptx: str, shared: int) -> Kernel:
    return Kernel(ptx, shared)
