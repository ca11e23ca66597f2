# SPDX-License-Identifier: Apache-2.0
"""Plain matrix products for backends whose own kernels do the rest."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

from .. import _native

_lock = threading.Lock()
_users: dict[str, int] = {"cuda": 0, "mkldnn": 0}
_callers: dict[str, str] = {}


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """float32 products stay float32 inside, whatever `torch.set_float32_matmul_precision` says.

    The setting belongs to the process, so it is changed only where it asks for less, and put back
    when the last of the threads inside leaves. Another thread's own products are meanwhile more
    precise than asked for, never less.
    """
    name = "cuda" if device.type == "cuda" else "mkldnn"
    setting: Any = getattr(torch.backends, name).matmul
    with _lock:
        lowered = _users[name] > 0 or setting.fp32_precision not in ("ieee", "none")
        if lowered:
            if _users[name] == 0:
                _callers[name] = setting.fp32_precision
                setting.fp32_precision = "ieee"
            _users[name] += 1
    try:
        yield
    finally:
        if lowered:
            with _lock:
                _users[name] -= 1
                if _users[name] == 0:
                    # What was read may have been inherited from the setting for all products.
                    setting.fp32_precision = "none"
                    if setting.fp32_precision != _callers[name]:
                        setting.fp32_precision = _callers[name]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are faster on `device` than those of float32."""
    if device.type == "cpu":
        return _native.reason() is None and _native.module().isa() == "avx512bf16"
    return device.type == "cuda"
