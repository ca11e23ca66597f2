# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter, where its version does not fit that of numpy."""

from __future__ import annotations

from typing import Any


def take_any_numpy() -> None:
    """Let the interpreter of Triton 3.6 run with numpy 2.4 and newer.

    It asks for the int of an array of one element, as later versions do not, and numpy no longer
    has one. Does nothing without Triton.
    """
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    patch = getattr(interpreter, "_patch_lang_tensor", None)
    if patch is None:
        return

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda value: value.handle.data.item())

    interpreter._patch_lang_tensor = patched
