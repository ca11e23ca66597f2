# SPDX-License-Identifier: Apache-2.0
"""The measurement of what a call costs before its kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench import overhead
from zspa_kernels._ops import dispatch
from zspa_kernels.backends.cpp import select

CASES = overhead.cases()


@pytest.mark.parametrize("name", CASES)
def test_every_call_is_timed_to_the_entry_of_the_kernel(
    name: str, monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("cpp")
    monkeypatch.setattr(overhead, "_CALLS", 3)
    native = vars(select)["module"]
    assert 0 < overhead.before_the_kernel(*CASES[name]) < 1e6
    assert vars(select)["module"] is native  # what was replaced is back


def test_every_selection_is_timed() -> None:
    selections = {op for op in dispatch.OPS if not op.startswith("sensitivity")}
    assert {op for op, _ in CASES.values()} == selections


def test_a_call_with_wrong_picks_has_no_figure(require_backend: Callable[..., None]) -> None:
    require_backend("cpp")
    op, arguments = CASES["diversity [N, D]"]
    with pytest.raises(RuntimeError, match="differ from the reference"):
        overhead._check(op, arguments, lambda visual, k: torch.zeros(k, dtype=torch.int64))
