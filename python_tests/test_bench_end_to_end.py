# SPDX-License-Identifier: Apache-2.0
"""The efficiency harness: what it times is what it says, and wrong picks get no figure."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import zspa_kernels as zk
from bench import end_to_end, end_to_end_report, end_to_end_runs
from bench.end_to_end_models import PRESETS, Encoder, build, inputs
from zspa_kernels.testing import tokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    steps: list[str] = []
    found = end_to_end_runs.measure(PRESETS["tiny"], CPU, 3, 2, steps.append)
    assert len(steps) == 1 + 4 * (2 + 2)
    return found


def test_a_run_has_every_figure(measured: dict[str, Any]) -> None:
    full, *pruned = measured["records"]
    assert (full["visual"], full["prompt"], full["verified"]) == (64, 64 + 59, None)
    for record in pruned:
        assert (record["visual"], record["prompt"]) == (6, 6 + 59)
        assert record["verified"]["picks"] == 6
        assert record["kv_mib"] == pytest.approx(full["kv_mib"] * 65 / 123)
        assert record["median_ms"]["select"] > 0
    for record in (full, *pruned):
        low, middle, high = (record[name] for name in ("p10_ms", "median_ms", "p90_ms"))
        assert all(low[part] <= middle[part] <= high[part] for part in middle)
        assert middle["total"] > middle["first"] > middle["encoder"] > 0


def test_a_qwen_answers_as_well() -> None:
    found = end_to_end_runs.measure(PRESETS["tiny-qwen"], CPU, 2, 1, lambda step: None, "sdpa")
    assert [one["visual"] for one in found["records"]] == [64, 6, 6, 6]
    assert all(one["verified"]["picks"] == 6 for one in found["records"][1:])


def test_parts_of_an_answer_add_up() -> None:
    model, asked = build(PRESETS["tiny"], CPU), inputs(PRESETS["tiny"], CPU)
    one = end_to_end_runs.Answering(
        end_to_end_runs.CONTENDERS[3], model, asked, Encoder(model), new_tokens=4
    )
    one.answer()
    (times,) = one.times
    assert times.first == pytest.approx(times.encoder + times.select + times.prefill)
    assert times.total == pytest.approx(times.first + 3 * times.decode)
    assert one.method is not None
    (visual,) = one.method.visual  # what was selected from is the model of tokens
    assert torch.equal(visual, tokens("vlm", 64, 64, 0).to(visual.dtype))


def _answered(method: Any) -> end_to_end_runs.Answering:
    model, asked = build(PRESETS["tiny"], CPU), inputs(PRESETS["tiny"], CPU)
    contender = end_to_end_runs.Contender("faulty", lambda sort: method, ours=True)
    one = end_to_end_runs.Answering(contender, model, asked, Encoder(model), new_tokens=2)
    one.answer()
    return one


class First(zk.MethodBase):
    """The first tokens, whatever they are."""

    def select(self, visual: Any, prompt: Any = None) -> zk.Selection:
        indices = torch.arange(6)
        return zk.Selection(indices, torch.zeros(6, dtype=torch.bool))


def test_wrong_picks_get_no_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError, match="pick 0 is token 0"):
        _answered(First()).verify()
    faulty = end_to_end_runs.Contender("faulty", lambda sort: First(), ours=True)
    monkeypatch.setattr(end_to_end_runs, "CONTENDERS", (end_to_end_runs.CONTENDERS[0], faulty))
    with pytest.raises(SystemExit):
        end_to_end.main(preset=["tiny"], device="cpu", new_tokens=2, rounds=1, out=tmp_path)
    assert "tiny: no figure: pick 0 is token 0" in capsys.readouterr().err
    assert not (tmp_path / "end_to_end.json").exists()


def _always(chosen: zk.Selection) -> Any:
    """Makes a method that answers with `chosen`."""

    def make(sort: bool) -> Any:
        return types.SimpleNamespace(select_varlen=lambda *asked: [chosen])

    return make


def test_ties_of_ours_go_to_the_lowest_index() -> None:
    one = _answered(First())
    assert one.method is not None
    one.method.visual = [torch.eye(3)[[0, 0, 1]]]  # the first two are alike
    one.method.prompt = [torch.zeros(0, 3)]
    for picks, right in (([2, 0], True), ([2, 1], False)):
        chosen = zk.Selection(torch.tensor(picks), torch.zeros(2, dtype=torch.bool))
        one.contender = end_to_end_runs.Contender("ours", _always(chosen), ours=True)
        one.method.picked = [zk.Selection(chosen.indices.sort().values, chosen.core_mask)]
        if right:
            assert one.verify() == {"picks": 2, "decided": 0}
        else:
            with pytest.raises(AssertionError, match="the lowest index must win"):
                one.verify()


def test_an_unpruned_cache_gets_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    one = _answered(zk.DivPrune(keep=6))
    peak = one.memory()
    assert peak is None or peak >= 0
    monkeypatch.setattr(one, "_generate", _with_report(one))
    with pytest.raises(AssertionError, match="the cache holds 66 tokens, not 66 \\+ 1"):
        one.memory()


def _with_report(one: end_to_end_runs.Answering) -> Any:
    generate = one._generate

    def call() -> Any:
        result = generate()
        one.report.prompt_after[0] += 1
        return result

    return call


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_fit_their_models(name: str) -> None:
    """Without weights: the prompt has as many image tokens as the encoder gives."""
    from zspa_kernels.hf.architectures import Target
    from zspa_kernels.hf.layout import layout

    preset = PRESETS[name]
    with torch.device("meta"):
        model = build(preset, torch.device("meta"))
    target = Target.of(model)
    given = inputs(preset, CPU)
    where = layout(target, given, given["input_ids"], {"image": [preset.tokens]})
    assert len(where.cell) == preset.tokens
    parameters = sum(p.numel() for p in model.parameters())
    millions = {
        "tiny": 4,
        "tiny-next": 4,
        "tiny-qwen": 20,
        "small": 260,
        "1b": 1410,
        "llava-1.5-7b": 7063,
    }
    millions |= {"llava-next-7b": 7063, "qwen2.5-vl-7b": 8292}
    assert round(parameters / 1e6) == millions[name]


def test_table_and_picture(measured: dict[str, Any], tmp_path: Path) -> None:
    machine = {
        "cpu": {"model": "A CPU"}, "threads": 2, "isa": "avx2", "torch": "2", "date": "2026-01-01",
        "transformers": "5", "git": {"sha": "0" * 40, "dirty": True},
    }  # fmt: skip
    results = {"runs": {"tiny": {**measured, "environment": machine}}}
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- end_to_end:begin -->\nold\n<!-- end_to_end:end -->\nb\n")
    for _ in range(2):  # what was written is replaced
        end_to_end_report.write_page(page, results)
    text = page.read_text()
    assert text.startswith("a\n")
    assert text.endswith("<!-- end_to_end:end -->\nb\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2].startswith("| full | 64 | ")
    assert "000000000000+, 2026" in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="page must have"):
        end_to_end_report.write_page(page, results)
    end_to_end_report.plot(tmp_path / "a.png", results)
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "huge"], "--preset must be one of tiny, tiny-next, tiny-qwen, small, "),
        (["--preset", "llava-1.5-7b", "--device", "cpu"], "too slow for a CPU"),
        (["--device", "nothing"], "--device must be a device's name"),
        (["--publish", "--out", "here"], "--out must not be given with --publish"),
    ],
)
def test_bad_calls(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import typer

    monkeypatch.setattr(end_to_end, "run", None)  # nothing is measured, or published
    app = typer.Typer()
    app.command()(end_to_end.main)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert said in " ".join((result.output + capsys.readouterr().err).split())


def published() -> Iterator[dict[str, Any]]:
    path = end_to_end.RESULTS / "end_to_end.json"
    yield from json.loads(path.read_text())["runs"].values()


def test_the_page_shows_the_published_results() -> None:
    text = end_to_end.PAGE.read_text()
    results = json.loads((end_to_end.RESULTS / "end_to_end.json").read_text())
    assert end_to_end_report.tables(results) in text
    assert all(record["verified"] for run in published() for record in run["records"][1:])
