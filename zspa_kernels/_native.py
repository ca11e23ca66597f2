# SPDX-License-Identifier: Apache-2.0
"""The compiled module `zspa_kernels._C`, or the reason it is missing."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

# torch first: its own libgomp must be the one in the process, so that both share one thread pool.
import torch  # noqa: F401

from ._version import __version__

BUILD_COMMAND = "`pip install .` or `make build`"


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    """Imports the compiled module once: (module, None) or (None, reason)."""
    if os.environ.get("ZSPA_NO_NATIVE") == "1":
        return (
            None,
            f"the native module is off: ZSPA_NO_NATIVE=1 (unset it; build with {BUILD_COMMAND})",
        )
    try:
        native = importlib.import_module("zspa_kernels._C")
    except ModuleNotFoundError as error:
        if error.name != "zspa_kernels._C":
            raise
        return None, f"the native module is not built (build it with {BUILD_COMMAND})"
    except ImportError as error:
        return None, f"the native module cannot be loaded ({error}); rebuild with {BUILD_COMMAND}"
    built = native.build_info()["version"]
    if built != __version__:
        return None, (
            f"the native module was built from version {built}, this is {__version__}; "
            f"rebuild with {BUILD_COMMAND}"
        )
    return native, None


def module() -> ModuleType:
    """The compiled module.

    Raises:
        ImportError: It is missing; the text names the build command.
    """
    native, why = _load()
    if native is None:
        raise ImportError(why, name="zspa_kernels._C")
    return native


def reason() -> str | None:
    """Why the compiled module is missing, in one line, or None if it is there."""
    return _load()[1]
