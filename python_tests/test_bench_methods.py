# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the methods: what it verifies, and the table it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor

import zspa_kernels as zk
from bench import methods, pages
from bench.method_readings import GREEDY, READINGS


def test_readings_are_of_methods() -> None:
    assert set(READINGS) <= set(zk.methods.available())
    assert set(GREEDY) <= set(READINGS)


@pytest.mark.parametrize("name", list(READINGS))
def test_smoke(name: str) -> None:
    record = methods.measure(name, "small", "vlm", 0.0)
    assert record.verified in ("equal", "replayed")
    assert record.gain is not None
    assert record.k == 24


@pytest.mark.parametrize("name", ["divprune", "todre", "anchorprune", "cenprune", "zooprune"])
def test_wrong_picks_have_no_figure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(k: int, given: Any) -> Any:
        return lambda: torch.arange(k)

    monkeypatch.setattr(methods, "ours", lambda name, k, given: first(k, given))
    record = methods.measure(name, "small", "vlm", 0.0)
    assert record.gain is None
    assert record.ours_ms is None
    assert "pick" in record.verified or "anchor" in record.verified


def test_a_replay_accepts_what_a_tie_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading breaks a tie otherwise: then the picks themselves are judged."""

    def other(k: int, *, visual: Tensor) -> Tensor:
        return torch.arange(k)

    monkeypatch.setitem(READINGS, "divprune", other)
    assert methods.measure("divprune", "small", "vlm", 0.0).verified == "replayed"


def test_wrong_weights_have_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Picks that are right for the weights of a method that weighs tokens wrongly."""
    weigh = zk.methods.CenPrune._weighed

    def squared(self: Any, *given: Any) -> tuple[Tensor, Tensor]:
        middle, weights = weigh(self, *given)
        return middle, weights.square()

    monkeypatch.setattr(zk.methods.CenPrune, "_weighed", squared)
    record = methods.measure("cenprune", "small", "vlm", 0.0)
    assert record.gain is None
    assert "not close" in record.verified


@pytest.mark.parametrize("only", ["cdpruner", "no method"])
def test_bad_options_are_refused(only: str, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="must be one of"):
        methods.main("cpu", only, tmp_path, 1, 0)
    assert not list(tmp_path.iterdir())


def test_a_wrong_record_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "verify", lambda *_: "pick 3 is wrong")
    with pytest.raises(typer.Exit) as left:
        methods.main("smoke", "scoredtopk", tmp_path, 1, 0)
    assert left.value.exit_code == 1
    assert "pick 3 is wrong" in (tmp_path / "methods.json").read_text()


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
    assert "scoredtopk" in capsys.readouterr().out


def test_the_page_shows_the_results() -> None:
    results = json.loads((methods.ROOT / "bench" / "results" / "methods.json").read_text())
    text = methods.PAGE.read_text()
    assert pages.rewrite(text, methods.TABLE, methods.table(results)) == text
