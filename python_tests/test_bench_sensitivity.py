# SPDX-License-Identifier: Apache-2.0
"""The study of sensitivity, at the size of a thumbnail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

typer = pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from bench import sensitivity, sensitivity_report, sensitivity_study  # noqa: E402 - they need what was looked for
from bench.sensitivity_study import SIZES, Problem  # noqa: E402


def test_compare() -> None:
    right = torch.arange(1.0, 31.0)
    assert sensitivity_study.compare(right * 2.0, right) == (1.0, 1.0, 1.0)
    spearman, top, _ = sensitivity_study.compare(-right, right)
    assert spearman == pytest.approx(-1.0)
    assert top == 0.0
    swapped = right.clone()
    swapped[[29, 0]] = swapped[[0, 29]]
    assert sensitivity_study.compare(swapped, right)[1] == pytest.approx(2 / 3)


def test_spectra_keep_the_norm_and_fall() -> None:
    size = SIZES["smoke"]
    ratios = []
    for decay in (0.0, 0.5, 1.0):
        problem = Problem.draw(size, decay).to(torch.float64)
        ratios.append(problem.participation())
        assert float(problem.w1.norm()) == pytest.approx(size.h**0.5, rel=0.1)
    assert ratios[0] > 2.0 * ratios[1] > 3.0 * ratios[2] > 3.0


def test_agreement_of_exact_variants() -> None:
    with torch.no_grad():
        records = list(sensitivity_study.agreement(SIZES["smoke"], "mid", (2,), 0))
    by_name = {record.variant: record for record in records}
    # bfloat16 inputs are multiplied as such where the CPU does it.
    bounds = {"zeroth order": 1e-5, "zeroth order, bfloat16 input": 1e-2, "linearised": 1e-5}
    for name, bound in bounds.items():
        assert by_name[name].spearman == pytest.approx(1.0, abs=1e-3)
        error = by_name[name].error
        assert error is not None
        assert error < bound
    assert by_name["published in bfloat16"].spearman < 0.9
    assert by_name["norm of the output"].error is None


def test_peak_memory_is_that_of_the_call() -> None:
    """In a process of its own it is compared; here it only has to be a size."""
    for variant in ("published", "zeroth", "plan"):
        assert 0.0 <= sensitivity._peak_here(variant, SIZES["smoke"], 2, 0) < 1000.0


def test_a_run_writes_figures_picture_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "peak_megabytes", lambda variant, *_: float(len(variant)))
    monkeypatch.setattr(sensitivity, "SPECTRA", {"mid": 0.5})
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study:begin -->\nold\n<!-- study:end -->\nafter\n")
    app = typer.Typer()
    app.command()(sensitivity.main)
    done = CliRunner().invoke(
        app, ["--suite", "smoke", "--out", str(tmp_path), "--page", str(page), "--threads", "1"]
    )
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "sensitivity.json").read_text())
    assert {record["variant"] for record in results["cost"]} >= {sensitivity.FORWARD, "published"}
    checked = [record["error"] for record in results["cost"] if record["error"] is not None]
    assert len(checked) >= 4
    assert max(checked) < 1e-2
    assert results["checks"]["memory, published / with a plan"] == pytest.approx(9 / 4)
    assert (tmp_path / "sensitivity.png").stat().st_size > 10_000
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| zeroth order |" in text
    results["environment"]["git"] = None
    assert ", no commit, 20" in sensitivity_report.tables(results)
    page.write_text("no marks")
    done = CliRunner().invoke(app, ["--suite", "smoke", "--page", str(page)])
    assert done.exit_code == 2
    assert "agreement" not in done.output, "before anything is measured"
