# SPDX-License-Identifier: Apache-2.0
"""Faults planted in the Triton kernels of dpp and facility_location: the judges must see each."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from python_tests.triton_small import Runs
from zspa_kernels.backends.triton import (
    dpp,
    dpp_phases,
    dpp_steps,
    facility_location,
    facility_location_phases,
    facility_location_steps,
)
from zspa_kernels.testing import tokens
from zspa_kernels.testing.coverage import check_facility_location
from zspa_kernels.testing.determinantal import check_dpp

#: Fault -> (what stands in dpp_phases.py, what is put there).
DPP = {
    "nothing is dependent": ("where(left <= DEPENDENT", "where(left <= -1.0"),
    "<= at the block bound": ("while (best < edge)", "while ((best >> 32) <= (edge >> 32))"),
    "a step too many": ("mask=p_ok & (s < last)", "mask=p_ok & (s <= last)"),
    "first columns forgotten": ("row < count, BLOCK, 0, filled,", "row < count, BLOCK, 1, filled,"),
    "picks of a pass forgotten": ("0, filled + c0, COLS", "0, filled, COLS"),
    "scale of another pick": ("scales + filled + c)", "scales + c)"),
    "weights are not squared": ("-(w * tl.sqrt_rn(residual))", "-(w * residual)"),
    "zero rows have a residual": ("(inv > 0.0, 1.0, 0.0)", "(inv >= 0.0, 1.0, 0.0)"),
}
#: The same for facility_location_phases.py.
FACILITY = {
    "losses count": ("tl.maximum(x - best[None, :], 0.0)\n    more", "x - best[None, :]\n    more"),
    "old gains are picked": ("other=version) != version", "other=version) < 0"),
    "given rows age no gain": ("rose = tl.maximum(rose, more)\n    if", "rose = rose + 0\n    if"),
    "scale of a sum": ("tl.div_rn(scale, count.to(tl.float32))", "scale"),
    "weights ignored": ("value = value * tl.load(weights + token, mask=wanted, other=0.0)", "pass"),
    "infinite benefits count": ("(x > 0.0) & (x < INF)", "x > 0.0"),
}


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


def _with_fault(module: ModuleType, fault: tuple[str, str], folder: Path) -> ModuleType:
    """The module with one piece of its text replaced, as a module of the same package."""
    text = Path(str(module.__file__)).read_text()
    assert text.count(fault[0]) == 1, fault[0]
    path = folder / "mutant.py"
    path.write_text(text.replace(*fault))
    spec = importlib.util.spec_from_file_location(f"{module.__package__}.mutant", path)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    return mutant


def _judge_dpp() -> None:
    """Tokens of rank 7 with a zero row; then some that fall to 0 while lower indices wait."""
    draw = torch.Generator().manual_seed(1)
    visual = torch.randn(26, 7, generator=draw) @ torch.randn(7, 20, generator=draw)
    visual[11] = 0.0
    weights = torch.rand(26, generator=draw)
    picks = dpp.dpp(visual[None], 11, weights[None], None)[0]
    check_dpp(visual, picks, 11, weights=weights, bound=1e-6)
    assert picks[7:].tolist() == picks[7:].sort().values.tolist()
    visual = torch.zeros(30, 6)
    visual[:20, 0] = 1.0
    visual[20:, 1:6] = torch.randn(10, 5, generator=torch.Generator().manual_seed(2))
    picks = dpp.dpp(visual[None], 11, None, None)[0]
    check_dpp(visual, picks, 11, bound=1e-6)
    assert picks[6:].tolist() == list(range(1, 6))


def _judge_facility_location() -> None:
    run = facility_location.facility_location
    n, draw = 18, torch.Generator().manual_seed(1)
    visual, weights = tokens("clusters", n, 20, seed=1), torch.rand(n, generator=draw)
    visual[3], weights[3] = 0.0, 9.0
    words = torch.rand(3, n, generator=draw) / 4
    words[1, 4] = torch.inf
    picks = run(visual[None], 7, words[None], weights[None], None, 0.0, 0.5)[0]
    given: dict[str, Any] = {"benefits": words, "weights": weights, "scale": 0.5}
    check_facility_location(visual, picks, 7, bound=1e-6, **given)
    nothing = torch.zeros(n, 20)  # without a direction: given rows alone are covered
    picks = run(nothing[None], 4, words[None], None, None, 0.0, 1.0)[0]
    check_facility_location(nothing, picks, 4, bound=1e-6, benefits=words)


@pytest.mark.parametrize("fault", [None, *DPP])
def test_dpp(fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Runs(monkeypatch, dpp, span=4, own_rows=8, own_cols=2, ahead=2)
    if fault is None:
        return _judge_dpp()
    monkeypatch.setattr(dpp_steps, "phases", _with_fault(dpp_phases, DPP[fault], tmp_path))
    with pytest.raises(AssertionError):
        _judge_dpp()
    return None


@pytest.mark.parametrize("fault", [None, *FACILITY])
def test_facility_location(
    fault: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    greedy = {"lanes": 2, "width": 8, "words": 2, "own": 2}
    Runs(monkeypatch, facility_location, list_block=16, **greedy)
    if fault is None:
        return _judge_facility_location()
    mutant = _with_fault(facility_location_phases, FACILITY[fault], tmp_path)
    monkeypatch.setattr(facility_location_steps, "phases", mutant)
    with pytest.raises(AssertionError):
        _judge_facility_location()
    return None
