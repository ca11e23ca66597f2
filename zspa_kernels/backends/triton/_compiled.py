# SPDX-License-Identifier: Apache-2.0
"""Launching what Triton has compiled already, without asking it again which form is needed.

Triton finds the compiled form of a kernel anew at each launch, and a selection is seven of them. On
a GPU an eager call of a small image waits for the host, so what a launch costs there counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

INT32 = 2**31
# What a compiled form is called with has been the same from Triton 3.6 to 3.9; beyond, Triton does
# it itself.
_KNOWN = (3, 6) <= tuple(int(part) for part in triton.__version__.split(".")[:2]) <= (3, 9)
_hooks = triton.knobs.runtime

# (programs, arguments, the same with addresses in place of tensors) -> None
_Launch = Callable[[int, Sequence[Any], Sequence[Any]], None]
# By kernel, device, kinds of the arguments and constants: the kernel itself, which is kept alive so
# that no other gets its id, and what launches the form that was compiled of it.
_forms: dict[Any, tuple[Any, _Launch]] = {}


def kinds(args: Sequence[Any]) -> tuple[tuple[Any, ...], list[Any]]:
    """All that Triton looks at to tell which form of a kernel arguments need, and no less.

    Of a tensor the dtype and whether its address is a multiple of 16; of an int whether it is 1, or
    a multiple of 16, and whether 32 bits hold it; of anything else its type. Also returns the
    arguments with addresses in place of tensors: of a tensor Triton would ask the driver again.
    """
    found: list[Any] = []
    values: list[Any] = []
    for x in args:
        if type(x) is int:
            found.append(1 if x == 1 else 2 * (-INT32 <= x < INT32) + 4 * (x % 16 == 0))
        elif x is None:
            found.append(x)
        elif isinstance(x, Tensor):
            found.append(x.dtype)
            x = x.data_ptr()
            found.append(x % 16 == 0)
        else:
            found.append(type(x))
        values.append(x)
    return tuple(found), values


def launch(
    kernel: Any,
    programs: int,
    index: int,
    args: tuple[Any, ...],
    together: bool,
    options: dict[str, Any],
) -> tuple[Any, bool]:
    """Launch a compiled form of `kernel` on the current device, which has this index.

    Returns (a name for the form, whether it was known and has been launched).
    """
    found, values = kinds(args)
    key = (id(kernel), index, found, together, tuple(options), tuple(options.values()))
    form = _forms.get(key)
    if form is None:
        return key, False
    form[1](programs, args, values)
    return key, True


def keep(
    key: Any, kernel: Any, compiled: Any, index: int, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """The next launch with this key takes what the last one compiled."""
    if compiled is None or torch.version.hip is not None:  # AMD: sizes of tensors count as well
        return
    names = kernel.arg_names[len(args) :]
    if options.keys() >= set(names):  # a default is for Triton to fill in
        constants = tuple(options[name] for name in names)
        _forms[key] = (kernel, _launcher(compiled, index, constants))


def _launcher(compiled: Any, index: int, constants: tuple[Any, ...]) -> _Launch:
    """What launches `compiled`, with `constants` in the order of parameters, on its device."""

    def by_triton(programs: int, args: Sequence[Any], values: Sequence[Any]) -> None:
        compiled[programs, 1, 1](*args, *constants)

    if not _KNOWN:
        return by_triton
    run, handles = compiled.run, (compiled.function, compiled.packed_metadata)
    current_stream = triton.runtime.driver.active.get_current_stream

    def directly(programs: int, args: Sequence[Any], values: Sequence[Any]) -> None:
        if _watched():
            by_triton(programs, args, values)
        else:  # a grid, a stream, the kernel, and neither metadata for hooks nor hooks
            stream = current_stream(index)
            run(programs, 1, 1, stream, *handles, None, None, None, *values, *constants)

    return directly


def _watched() -> bool:
    """Whether a profiler is told of launches: `CompiledKernel` knows what it is to be told."""
    return bool(
        getattr(_hooks.launch_enter_hook, "calls", True)
        or getattr(_hooks.launch_exit_hook, "calls", True)
    )
