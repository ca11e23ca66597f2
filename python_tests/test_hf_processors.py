# SPDX-License-Identifier: Apache-2.0
"""Pruning with transformers' own processors, in a process that has torchvision."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from python_tests.trees import HOW, PROCESSORS, ROOT, TREES, mark


@pytest.mark.slow
def test_official_processors() -> None:
    if not mark(PROCESSORS).exists():
        pytest.skip(f"torchvision is not installed: {HOW}")
    path = [str(TREES / PROCESSORS), str(ROOT), str(ROOT / "python_tests" / "torchvision_ops")]
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "python_tests/official_prune.py"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
            "HF_HUB_OFFLINE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None, run.stdout
    assert int(passed[1]) >= 65, run.stdout
