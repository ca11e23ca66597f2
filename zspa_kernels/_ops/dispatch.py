# SPDX-License-Identifier: Apache-2.0
"""Which backend runs an op on a device, and why another one does not.

One predicate, `why_not`, serves every use: the automatic choice skips a backend with a reason, a
backend named by the caller raises that reason, and `zspa doctor` prints it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("reference", "cpp", "triton")
OPS = (
    "select",
    "select_varlen",
    "relevance_topk",
    "diversity",
    "diversity_varlen",
    "dpp",
    "dpp_varlen",
    "facility_location",
    "facility_location_varlen",
    "min_sum",
    "min_sum_varlen",
    "suppress",
    "soft_suppress",
    "sensitivity",
    "sensitivity_hidden",
    "sensitivity_rms",
    "sensitivity_rms_hidden",
)

# What backend="auto" tries, best first. The reference comes after these, and only where the backend
# in front of it is not there at all: it is too slow to be chosen for any other reason.
_AUTO = {"cpu": ("cpp",), "cuda": ("triton",)}


def why_not(backend: str, op: str, device: torch.device) -> str | None:
    """Why `backend` cannot run `op` on `device` now, or None if it can."""
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend must be one of auto, {', '.join(BACKENDS)}, got {backend}")
    if op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op}")
    devices = ("cpu",) if backend == "cpp" else ("cpu", "cuda")
    if device.type not in devices:
        return f"it runs on {' and '.join(devices)} tensors, not on {device.type}"
    if device.type == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return _missing(backend) or (_triton_refuses(device) if backend == "triton" else None)


def load(backend: str, op: str) -> Callable[..., Any]:
    """The function of `backend` that computes `op`; backends are imported on first use.

    What it takes as a batch, `[B, ...]`, it takes as one image as well, without that axis.
    """
    stem = "sensitivity" if op.startswith("sensitivity") else op.removesuffix("_varlen")
    module = importlib.import_module(f"zspa_kernels.backends.{backend}.{stem}")
    function: Callable[..., Any] = getattr(module, op)
    # The native module has strides to say it with, and a view costs as much as a short kernel.
    own_axes = backend == "cpp" or op.endswith("_varlen") or stem == "sensitivity"
    return function if own_axes else _also_unbatched(function)


def _also_unbatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of batches, for one image as well: a batch of one, all of whose tensors are."""

    @functools.wraps(function)
    def call(visual: Tensor, *others: Any) -> Any:
        if visual.ndim == 3:
            return function(visual, *others)
        result = function(*(x[None] if isinstance(x, Tensor) else x for x in (visual, *others)))
        return result[0] if isinstance(result, Tensor) else tuple(x[0] for x in result)

    return call


@functools.cache
def choose(op: str, device: torch.device) -> Callable[..., Any]:
    """What backend="auto" runs: the fastest backend that can.

    Raises:
        NotImplementedError: no backend runs on this device; the text says why for each.
    """
    reasons = {}
    for backend in _AUTO.get(device.type, BACKENDS):
        reason = why_not(backend, op, device)
        if reason is None:
            return load(backend, op)
        reasons[backend] = reason
    if device.type in _AUTO and _missing(backend):
        _warn_once(reasons[backend])
        return load("reference", op)
    tried = "; ".join(f"{backend}: {reason}" for backend, reason in reasons.items())
    raise NotImplementedError(
        f"{op}: {_argument(op)} must be on a device a backend runs on, got {device} ({tried})"
    )


def named(backend: str, op: str, device: torch.device) -> Callable[..., Any]:
    """What a backend named by the caller runs; it never falls back to another one.

    Raises:
        NotImplementedError: it cannot run here.
        ImportError: it is not built or not installed; the text has the command.
        ValueError: there is no such backend.
    """
    reason = why_not(backend, op, device)
    if reason is None:
        return load(backend, op)
    error = ImportError if reason == _missing(backend) else NotImplementedError
    raise error(f"{op}: backend {backend!r} cannot run: {reason}")


def _argument(op: str) -> str:
    """The argument whose device decides."""
    if op.startswith("sensitivity"):
        return "preactivation" if op.endswith("_hidden") else "features"
    return "visual"


def _missing(backend: str) -> str | None:
    """Why a backend is not there at all, whatever the device; the text says how to get it."""
    if backend == "cpp":
        from .. import _native

        return _native.reason()
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    return None


def _triton_refuses(device: torch.device) -> str | None:
    if device.type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            return "it needs an NVIDIA GPU of compute capability 8.0 or newer"
        return None
    if os.environ.get("TRITON_INTERPRET") == "1":
        import triton.language

        # Triton decides when it is imported: from then on its functions are one kind or the other.
        if type(triton.language.cdiv).__name__ == "InterpretedFunction":
            return None
    return "CPU tensors need Triton's interpreter: set TRITON_INTERPRET=1 before importing triton"


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"zspa_kernels uses its reference backend, which is slow: {reason}", stacklevel=2)
