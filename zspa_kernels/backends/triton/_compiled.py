# SPDX-License-Identifier: Apache-2.0
"""Launching what Triton has compiled already, without asking it again which form is needed.

Triton finds the compiled form of a kernel anew at each launch, and a selection is seven of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

INT32 = 2**31
# By kernel, device, kinds of the arguments and constants: the kernel itself, which is kept alive so
# that no other gets its id, what was compiled of it, and its constants in the order of parameters.
_forms: dict[Any, tuple[Any, Any, tuple[Any, ...]]] = {}


def kinds(args: Sequence[Any]) -> tuple[Any, ...]:
    """All that Triton looks at to tell which form of a kernel arguments need, and no less.

    Of a tensor the dtype and whether its address is a multiple of 16; of an int whether it is 1, or
    a multiple of 16, and whether 32 bits hold it; of anything else its type.
    """
    found: list[Any] = []
    for x in args:
        if isinstance(x, Tensor):
            found.append((x.dtype, x.data_ptr() % 16 == 0))
        elif type(x) is int:
            found.append(1 if x == 1 else 2 * (-INT32 <= x < INT32) + 4 * (x % 16 == 0))
        else:
            found.append(type(x))
    return tuple(found)


def launch(
    kernel: Any, programs: int, index: int, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, bool]:
    """Launch a compiled form of `kernel` on the current device, which has this index.

    Returns (a name for the form, whether it was known and has been launched).
    """
    key = (id(kernel), index, kinds(args), *options.items())
    form = _forms.get(key)
    if form is None:
        return key, False
    _, compiled, constants = form
    compiled[programs, 1, 1](*args, *constants)
    return key, True


def keep(key: Any, kernel: Any, compiled: Any, args: tuple[Any, ...], options: Any) -> None:
    """The next launch with this key takes what the last one compiled."""
    if compiled is None or torch.version.hip is not None:  # AMD: sizes of tensors count as well
        return
    names = kernel.arg_names[len(args) :]
    if options.keys() >= set(names):  # a default is for Triton to fill in
        _forms[key] = (kernel, compiled, tuple(options[name] for name in names))
