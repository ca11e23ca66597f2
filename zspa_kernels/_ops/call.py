# SPDX-License-Identifier: Apache-2.0
"""From a public function to the op, or to the backend the caller named."""

from __future__ import annotations

from typing import Any

import torch

from .._contract import values as _values
from . import dispatch, register
from .implementation import recorded

_is_mapped = torch._C._functorch.is_batchedtensor
_PYTHON = torch._C.DispatchKey.Python  # of tensors whose class answers for them
#: Names of an op's arguments, empty for those that are no tensors.
_TENSORS = {
    op: tuple(
        argument.name if "Tensor" in str(argument.type) else ""
        for argument in getattr(torch.ops.zspa, op).default._schema.arguments
    )
    for op in dispatch.OPS
}


def call(op: str, backend: str, arguments: tuple[Any, ...]) -> Any:
    """Run `op` through PyTorch's dispatcher, or directly on a named backend.

    Tensors are checked here as well: objects of another kind, but for None, the dispatcher rejects
    in its own words.
    """
    check_backend(op, backend)
    for name, x in zip(_TENSORS[op], arguments, strict=False):  # the last may have defaults
        if name and x is not None:
            _values.tensor(op, name, x)
    if backend == "auto":
        return getattr(torch.ops.zspa, op)(*arguments)
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            f"{op}: backend must be 'auto' under torch.compile and torch.export, got {backend!r}"
        )
    if any(isinstance(x, torch.Tensor) and _is_mapped(x) for x in arguments):
        raise NotImplementedError(f"{op}: backend must be 'auto' under torch.vmap, got {backend!r}")
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    odd = sorted({type(x).__name__ for x in tensors if torch._C._dispatch_keys(x).has(_PYTHON)})
    if odd or recorded():
        where = f"for {', '.join(odd)}" if odd else "where torch records or fakes its calls"
        raise NotImplementedError(f"{op}: backend must be 'auto' {where}, got {backend!r}")
    # What the dispatcher does first: what stands for its negative, or for zeros, becomes that.
    arguments = tuple(_resolved(x) if isinstance(x, torch.Tensor) else x for x in arguments)
    return getattr(register, op)(*arguments, backend=backend)


def _resolved(x: torch.Tensor) -> torch.Tensor:
    return x.clone() if x._is_zerotensor() else x.resolve_neg()


def check_backend(op: str, backend: str) -> None:
    """`backend` must be a name that there is; whether that backend can run is `dispatch`'s."""
    _values.option(op, "backend", backend, ("auto", *dispatch.BACKENDS))
