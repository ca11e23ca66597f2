# SPDX-License-Identifier: Apache-2.0
"""Rules about one argument, whatever the op."""

from __future__ import annotations

import functools
import math
import numbers
import operator
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # what tokens and weights may be

_F = TypeVar("_F", bound=Callable[..., Any])


def naming(op: str) -> Callable[[_F], _F]:
    """Decorates `op`: errors of the functions it calls name what the user called, and not them."""

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (TypeError, ValueError, NotImplementedError, ImportError) as error:
                inner, colon, rest = str(error).partition(": ")
                if colon and inner.isidentifier():
                    error.args = (f"{op}: {rest}",)
                    if isinstance(error, ImportError):
                        error.msg = error.args[0]  # its text, whatever its arguments
                raise

        return call  # type: ignore[return-value]

    return decorate


def tensor(op: str, name: str, x: object) -> None:
    """`x` must be a tensor with an ordinary (dense, strided) memory layout."""
    ragged = "; images of different sizes go to `select_varlen` and its like, as a list of tensors"
    if not isinstance(x, Tensor):
        images = isinstance(x, list | tuple) and len(x) > 0 and isinstance(x[0], Tensor)
        hint = ragged if images and name == "visual" else ""
        raise TypeError(f"{op}: {name} must be a tensor, got {say(x)}{hint}")
    if x.is_nested or x.layout is not torch.strided:
        layout = "a nested tensor" if x.is_nested else f"layout {x.layout}"
        hint = ragged if x.is_nested and name == "visual" else ""
        raise ValueError(f"{op}: {name} must be a dense strided tensor, got {layout}{hint}")


def integer(op: str, name: str, value: Any) -> Any:
    """Return `value` as an int; symbolic sizes pass as they are. A bool is not a number."""
    if type(value) is int and (torch.compiler.is_compiling() or -(2**63) <= value < 2**63):
        return value
    if isinstance(value, torch.SymInt):
        return value
    try:
        whole = None if isinstance(value, bool | Tensor) else operator.index(value)
    except TypeError:  # no number, or an array of several
        whole = None
    if whole is None:
        got = say(value)
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if tracing and isinstance(value, Tensor):
            got = (
                "the tensor that torch.jit.trace makes of a size: "
                "use torch.export, or give k_core and k_diverse instead of keep"
            )
        raise TypeError(f"{op}: {name} must be an int, got {got}")
    if not -(2**63) <= whole < 2**63:  # which the dispatcher rejects in its own words
        raise ValueError(f"{op}: {name} must fit in 64 bits, got {say(whole)}")
    return whole


def real(op: str, name: str, value: Any) -> float:
    """Return `value` as a float, NaN for an int beyond all floats: no range has either."""
    if isinstance(value, bool | Tensor) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} must be a float, got {say(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.nan


def brief(value: Any) -> str:
    """A number for a message: an int beyond all floats has hundreds of digits."""
    return reprlib.repr(value) if isinstance(value, int) else str(value)


def share_or_count(op: str, name: str, value: Any) -> Any:
    """Return `value` as a float in (0, 1] or an int of at least 1."""
    if type(value) is not float:
        whole = type(value) is int or isinstance(value, torch.SymInt)
        if not whole and (isinstance(value, bool | Tensor) or not isinstance(value, numbers.Real)):
            rule = "a float (a share) or an int (a count)"
            raise TypeError(f"{op}: {name} must be {rule}, got {say(value)}")
        if whole or isinstance(value, numbers.Integral):
            if (value < 1) is True:
                raise ValueError(f"{op}: {name} must be a count of at least 1, got {value}")
            return value if whole else operator.index(value)
    share = real(op, name, value)
    if not 0.0 < share <= 1.0:  # NaN fails too
        rule = "a share in (0, 1], or an int: a count"
        raise ValueError(f"{op}: {name} must be {rule}, got {value}")
    return share


def ratio(op: str, name: str, value: Any) -> float:
    """Return `value` as a finite float of at least 0."""
    share = real(op, name, value)
    if not 0.0 <= share < math.inf:
        raise ValueError(f"{op}: {name} must be finite and at least 0, got {brief(value)}")
    return share


def at_least(op: str, name: str, value: int, minimum: int) -> None:
    """`value` must not be below `minimum`."""
    if (value < minimum) is True:
        raise ValueError(f"{op}: {name} must be at least {minimum}, got {value}")


def integer_at_least(op: str, name: str, value: Any, minimum: int) -> Any:
    """Return `value` as an int of at least `minimum`; see `integer`."""
    value = integer(op, name, value)
    at_least(op, name, value, minimum)
    return value


def flag(op: str, name: str, value: object) -> None:
    """`value` must be True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a bool, got {say(value)}")


def integers(op: str, name: str, values: Any) -> list[int]:
    """Return a sequence of ints of at least 0 as a list; sizes live on the host, not in tensors."""
    if isinstance(values, Tensor | str) or not isinstance(values, Iterable):
        raise TypeError(f"{op}: {name} must be a sequence of ints, got {say(values)}")
    return [integer_at_least(op, f"{name}[{i}]", value, 0) for i, value in enumerate(values)]


def option(op: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """`value` must be one of the strings `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{op}: {name} must be one of {', '.join(allowed)}, got {say(value)}")


def place(op: str, name: str, value: Any) -> torch.device:
    """Return `value` as a device on which tensors can be made and hold values, here and now."""
    if not isinstance(value, str | torch.device):
        raise TypeError(f"{op}: {name} must be a torch.device or its name, got {say(value)}")
    try:
        found = torch.device(value)
    except RuntimeError:
        rule = "a device's name, such as cpu or cuda:0"
        raise ValueError(f"{op}: {name} must be {rule}, got {value!r:.60}") from None
    if found.type == "meta":
        raise ValueError(f"{op}: {name} must be one that holds values, got {found}")
    if found.type != "cpu":
        try:
            torch.empty(0, device=found)
        # No such device, or a torch that was built without it: each kind has its own way to say so.
        except (RuntimeError, AssertionError, ImportError) as error:
            why = str(error).partition("\n")[0].partition(". ")[0]
            rule = "a device that this machine and this torch have"
            raise ValueError(f"{op}: {name} must be {rule}, got {found} ({why:.120})") from error
    return found


def axes(x: Tensor) -> str:
    return str(list(x.shape))


class _Brief(reprlib.Repr):
    """Shows little of a collection, and the shape of an array: its values may be on a GPU."""

    def repr1(self, x: Any, level: int) -> str:
        shape = getattr(x, "shape", None)
        if isinstance(shape, tuple):
            return str(list(shape)) if level == self.maxlevel else f"{type(x).__name__} {[*shape]}"
        return super().repr1(x, level)


_brief = _Brief()
_brief.maxlevel, _brief.maxlist, _brief.maxtuple, _brief.maxdict, _brief.maxset = 3, 3, 3, 2, 3


def say(value: object) -> str:
    """A value for a message: never long, and never the values of a tensor or an array."""
    return "None" if value is None else f"{type(value).__name__} {_brief.repr(value)}"
