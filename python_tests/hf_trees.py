# SPDX-License-Identifier: Apache-2.0
"""Other versions of transformers, each with its dependencies in a folder of its own.

    python -m python_tests.hf_trees     installs the oldest one, as `make test` does

A folder is put in front of the environment, whose torch all of them share.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREES = ROOT / "build" / "hf"
_PINS = ROOT / "constraints-oldest.txt"
_found = re.search(r"^transformers==(.+)$", _PINS.read_text(), re.MULTILINE)
if _found is None:
    raise ValueError(f"{_PINS.name} must pin transformers")
#: The oldest supported version; everything that it needs is pinned.
OLDEST: str = _found[1]


def mark(version: str) -> Path:
    """A file that is there when a version is installed as a whole."""
    return TREES / version / ".installed"


def install(version: str) -> Path:
    """The folder of a version, which is downloaded if it is not there."""
    done = mark(version)
    pins = _PINS.read_text() if version == OLDEST else ""
    if not done.exists() or done.read_text() != pins:
        done.unlink(missing_ok=True)
        wanted = ["--no-deps", "-r", str(_PINS)] if pins else [f"transformers=={version}"]
        options = ["-q", "--upgrade", "--target", str(done.parent), *wanted]
        subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True)
        done.write_text(pins)
    return done.parent


if __name__ == "__main__":
    install(OLDEST)
