# SPDX-License-Identifier: Apache-2.0
"""Packages that cannot be in the environment, each in a folder of its own under build/trees.

    python -m python_tests.trees     installs what `make test` wants

Another transformers, with its own dependencies; vLLM for CPUs with what it needs; lmms-eval without
its eighty dependencies, of which its registry of models needs one; what the processors of
transformers need, which most tests do without. A folder is put in front of the environment's path,
whose torch all of them share.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREES = ROOT / "build" / "trees"
_PINS, _OLDEST_PINS, _VLLM_PINS = (ROOT / f"constraints{of}.txt" for of in ("", "-oldest", "-vllm"))
_found = re.search(r"^transformers==(.+)$", _OLDEST_PINS.read_text(), re.MULTILINE)
if _found is None:
    raise ValueError(f"{_OLDEST_PINS.name} must pin transformers")
#: The oldest supported transformers; everything that it needs is pinned.
OLDEST: str = _found[1]
LMMS_EVAL = "lmms-eval"
VLLM = "vllm"
PROCESSORS = "processors"
#: What `make test` wants: arguments of pip, with the files of their pins.
WANTED: dict[str, list[str | Path]] = {
    # These are large: compiling what is never imported would take longer than the download.
    OLDEST: ["--no-deps", "--no-compile", "-r", _OLDEST_PINS],
    VLLM: ["--no-deps", "--no-compile", "-r", _VLLM_PINS],
    LMMS_EVAL: ["--no-deps", "-c", _PINS, "lmms-eval", "loguru"],
    PROCESSORS: ["--no-deps", "-c", _PINS, "-c", _VLLM_PINS, "torchvision", "num2words"],
}
HOW = "`python -m python_tests.trees` downloads it"


def mark(name: str) -> Path:
    """A file that is there when a folder is complete."""
    return TREES / name / ".installed"


def install(name: str) -> Path:
    """The folder of one of `WANTED` or of a version of transformers, downloaded if need be."""
    arguments = WANTED.get(name, [f"transformers=={name}"])
    content = "".join(part.read_text() for part in arguments if isinstance(part, Path))
    done = mark(name)
    if not done.exists() or done.read_text() != content:
        done.unlink(missing_ok=True)
        options = ["-q", "--upgrade", "--target", str(done.parent), *map(str, arguments)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True)
        done.write_text(content)
    return done.parent


def passed(name: str, files: Sequence[str], **environment: str) -> int:
    """How many tests of `files` pass in a process with a folder in front of its path.

    Raises:
        AssertionError: with the end of the output, if one fails.
    """
    path = [str(TREES / name), str(ROOT), str(ROOT / "python_tests" / "torchvision_ops")]
    path.append(os.environ.get("PYTHONPATH", ""))
    options = ["-q", "-W", "ignore", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "HF_HUB_OFFLINE": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    counted = re.search(r"(\d+) passed", run.stdout)
    if run.returncode != 0 or counted is None:
        raise AssertionError(run.stdout[-8000:])
    return int(counted[1])


if __name__ == "__main__":
    for wanted in WANTED:
        install(wanted)
