# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the greedy ops, at the size of a thumbnail."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("typer")

import zspa_kernels as zk
from bench import greedy, pages, timing
from zspa_kernels.testing import Replay


@pytest.mark.raw_memory
def test_smoke(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(greedy.main)
    result = CliRunner().invoke(app, ["--suite", "smoke", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "greedy.json").read_text())["records"]
    assert {record["rule"] for record in records} == {
        "dpp",
        "min_sum",
        "CDPruner",
        "SCOPE",
        "MMTok",
    }
    for record in records:
        assert record["replayed"] == 6
        assert record["same"] > 0.8
        assert record["gain"] > 0
        if record["rule"] in ("SCOPE", "MMTok"):
            assert record["dots"] is None
        else:
            assert 0.2 < record["dots"] < 6


def test_the_page_shows_the_results() -> None:
    results = json.loads((greedy.ROOT / "bench" / "results" / "greedy.json").read_text())
    text = greedy.PAGE.read_text()
    assert pages.rewrite(text, greedy.TABLE, greedy.table(results)) == text


@pytest.mark.parametrize(("method", "part"), [("CDPruner", "_scaled"), ("MMTok", "_words")])
def test_what_tokens_are_weighed_by_is_not_believed(
    method: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Picks may be right for weights that are wrong."""
    weigh = getattr(getattr(zk.methods, method), part)

    def halved(*given: Any) -> Any:
        weights = weigh(*given)
        return weights / 2 if method == "CDPruner" else (weights[0] / 2, weights[1])

    monkeypatch.setattr(getattr(zk.methods, method), part, halved)
    with pytest.raises(AssertionError, match="not close"):
        list(greedy.pairs(40, 32, 6, "vlm", torch.float32))


def test_both_of_a_pair_are_called_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    calls = dict.fromkeys(("ours", "plain"), 0)

    def called(name: str) -> torch.Tensor:
        calls[name] += 1
        return torch.arange(6)

    def interleave(ours: Any, others: Any, seconds: float) -> Any:
        timed.extend(calls.values())
        return timing.interleave(ours, others, seconds)

    ours, plain = (partial(called, name) for name in calls)
    pair = greedy.Pair("p", ours, plain, lambda picks: Replay(6, 6))
    monkeypatch.setattr(greedy, "pairs", lambda *_: [pair])
    monkeypatch.setattr(greedy, "interleave", interleave)
    greedy.measure("smoke", 1)
    assert min(timed) >= 1


def test_a_wrong_pick_ends_the_run() -> None:
    for pair in greedy.pairs(40, 32, 6, "vlm", torch.float32):
        picks = pair.ours()
        pair.check(picks)
        with pytest.raises(AssertionError):
            pair.check(picks.flip(0))
