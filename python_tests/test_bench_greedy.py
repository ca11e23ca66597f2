# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the greedy ops, at the size of a thumbnail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("typer")

from bench import greedy


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


def test_a_wrong_pick_ends_the_run() -> None:
    for pair in greedy.pairs(40, 32, 6, "vlm", torch.float32):
        picks = pair.ours()
        pair.check(picks)
        with pytest.raises(AssertionError):
            pair.check(picks.flip(0))
