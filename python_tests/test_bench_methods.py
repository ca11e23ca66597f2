# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the methods: what it verifies, and the table it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from bench import methods
from bench.method_readings import GREEDY, READINGS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"


def test_readings_are_of_methods() -> None:
    assert set(READINGS) <= set(zk.methods.available())
    assert set(GREEDY) <= set(READINGS)


@pytest.mark.parametrize("name", list(READINGS))
def test_smoke(name: str) -> None:
    record = methods.measure(name, "small", "vlm", 0.0)
    assert record.verified in ("equal", "replayed")
    assert record.gain is not None
    assert record.k == 24


@pytest.mark.parametrize("name", ["divprune", "todre"])
def test_wrong_picks_have_no_figure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(k: int, given: Any) -> Any:
        return lambda: torch.arange(k)

    monkeypatch.setattr(methods, "ours", lambda name, k, given: first(k, given))
    record = methods.measure(name, "small", "vlm", 0.0)
    assert record.gain is None
    assert record.ours_ms is None
    assert "pick" in record.verified


def test_a_replay_accepts_what_a_tie_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading breaks a tie otherwise: then the picks themselves are judged."""

    def other(k: int, *, visual: Tensor) -> Tensor:
        return torch.arange(k)

    monkeypatch.setitem(READINGS, "divprune", other)
    assert methods.measure("divprune", "small", "vlm", 0.0).verified == "replayed"


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods.main("smoke", "scoredtopk", tmp_path, 1, 0)
    results = json.loads((tmp_path / "methods.json").read_text())
    assert [r["method"] for r in results["records"]] == ["scoredtopk"] * 2
    text = methods.table(results)
    assert "`scoredtopk`" in text
    assert "2 of 2 records" in text
    gains = [r["gain"] for r in results["records"]]
    assert f"{min(gains):.3g}x (" in text
    results["records"][0] |= {"gain": None, "verified": "pick 3 is wrong"}
    assert "**pick 3 is wrong**" in methods.table(results)
    page = f"a\n{methods.BEGIN}\nold\n{methods.END}\nb\n"
    assert methods.rewrite(page, text) == f"a\n{methods.BEGIN}\n{text}\n{methods.END}\nb\n"
    with pytest.raises(ValueError, match="page must have"):
        methods.rewrite("nothing", text)
    assert "scoredtopk" in capsys.readouterr().out


def test_the_page_shows_the_results() -> None:
    results = json.loads((PAGE.parent.parent / "bench" / "results" / "methods.json").read_text())
    text = PAGE.read_text()
    assert methods.rewrite(text, methods.table(results)) == text
