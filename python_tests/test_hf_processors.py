# SPDX-License-Identifier: Apache-2.0
"""Pruning with transformers' own processors, in a process that has torchvision."""

from __future__ import annotations

import pytest

from python_tests import vlms
from python_tests.trees import HOW, PROCESSORS, mark, passed


@pytest.mark.slow
def test_official_processors() -> None:
    if vlms.VERSION < (5, 24):
        pytest.skip("transformers >= 5.24: the processors of older ones are made in other ways")
    if not mark(PROCESSORS).exists():
        pytest.skip(f"torchvision is not installed: {HOW}")
    assert passed(PROCESSORS, ["python_tests/official_prune.py"]) >= 100
