# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter without what it does again at every operation, and to no effect.

Half of its time goes into objects that say what a value is, which are the same from one operation
to the next. Values are computed as ever.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest


def use(patch: pytest.MonkeyPatch) -> None:
    """Patch it, where Triton is installed."""
    try:
        from triton.language import core
        from triton.runtime import interpreter
    except ImportError:
        return
    _prepare_once(patch, interpreter.InterpretedFunction)
    # It compares each sum with what int64 gives, and drops the answer unless it debugs.
    builder = interpreter.interpreter_builder
    options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
    patch.setattr(builder, "options", options)
    _name_types_once(patch, core, interpreter)


def _prepare_once(patch: pytest.MonkeyPatch, kind: Any) -> None:
    """Device functions are prepared once, not at every call.

    It patches triton.language at each launch, and looks for more to patch at each call of a device
    function. That finds something for Triton's own functions, once.
    """
    prepare = kind.__call__
    prepared: set[str] = set()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        module = function.fn.__module__
        if module.startswith("triton.") and module not in prepared:
            prepared.add(module)
            return prepare(function, *args, **kwargs)
        return function.rewrite()(*args, **kwargs)

    patch.setattr(kind, "__call__", call)


def _name_types_once(patch: pytest.MonkeyPatch, core: Any, interpreter: Any) -> None:
    """What the name of a type or its sizes say is worked out once."""
    dtype_of, describe = interpreter._get_np_dtype, core.block_type.__init__
    dtypes: dict[str, Any] = {}
    blocks: dict[tuple[Any, ...], dict[str, Any]] = {}

    def get_np_dtype(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in dtypes:
            dtypes[name] = dtype_of(kind)
        return dtypes[name]

    def new_block(block: Any, element: Any, shape: Any) -> None:
        key = (element.name, *core._unwrap_shape(shape))
        if key not in blocks:
            describe(block, element, shape)
            blocks[key] = vars(block).copy()
        vars(block).update(blocks[key])

    @functools.cache
    def shape_of(*sizes: int) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(
            math.prod(sizes)
        )

    def new_tensor(tensor: Any, handle: Any, kind: Any) -> None:
        tensor.handle, tensor.type, tensor.dtype = handle, kind, kind.scalar
        tensor.shape, tensor.numel = shape_of(*kind.shape.values) if kind.is_block() else shape_of()

    patch.setattr(interpreter, "_get_np_dtype", get_np_dtype)
    patch.setattr(core.block_type, "__init__", new_block)
    patch.setattr(core.tensor, "__init__", new_tensor)
