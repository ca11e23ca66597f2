# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' parts that need no run: timing, comparison of two files, the README's table."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor

from bench import compare, greedy, methods, pages, registry, report, run, timing
from bench.ceilings import Ceilings, Floor, Work
from bench.contenders import OURS
from bench.environment import cpu_name
from bench.registry import suite, workload
from bench.results import Record, Results
from bench.timing import POISON
from bench.verify import Verdict
from zspa_kernels.testing import MODELS

RATES = Ceilings({1: 100.0, 2: 200.0}, {1: 50.0, 2: 400.0}, {1: 10.0, 2: 20.0})
HERE = {
    "cpu": {"model": "a CPU"},
    "threads": 2,
    "isa": "avx2",
    "torch": "2",
    "git": None,
    "date": "2026-01-01T00:00:00",
}


def test_a_busy_machine_is_seen() -> None:
    assert not RATES.busy(2)
    assert not RATES.busy(1)
    assert not dataclasses.replace(RATES, bf16_gflops={1: 50.0, 2: 60.0}).busy(2)  # float32 does
    assert Ceilings({1: 100.0, 2: 140.0}, {1: 90.0, 2: 120.0}, {1: 1.0, 2: 1.0}).busy(2)
    assert not Ceilings({1: 1.0, 64: 20.0}, {1: 1.0, 64: 2.0}, {1: 1.0, 64: 1.0}).busy(64)


def _results() -> Results:
    """Two workloads, each with this package's record and one of a baseline."""
    planned = [workload("llava15", core) for core in (0.0, 0.4)]
    records = []
    for w in planned:
        fast, slow = (timing.Summary(ms, ms, ms, 0.05, 9) for ms in (1.0, 12.0))
        verdict = Verdict("oracle", 1, w.k, w.k)
        records += [
            Record(
                w.name, OURS, "ours", "verified", "", verdict, fast, [[1.0]], Work(3, 900, 0),
                Floor(0.5, 0.7, 0.2),
            ),
            Record(w.name, "gram_incremental", "baseline", "verified", "", verdict, slow, [[12.0]]),
        ]  # fmt: skip
    return Results("cpu", 0, HERE, RATES, {w.name: w for w in planned}, records, complete=True)


def test_what_others_take_of_the_machine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds on a clock, of all CPUs, of this process."""
    for used, others in (((10.0, 12.0, 9.0), 0.3), ((10.0, 9.5, 9.0), 0.05), ((10.0, 8.9, 9.0), 0)):
        at = iter([(0.0, 0.0, 0.0), used, used])
        monkeypatch.setattr(timing, "_used", lambda at=at: next(at))
        machine = timing.Machine()
        assert machine.others() == pytest.approx(others)
        assert bool(machine.refusal()) == (others > 0.1)
    monkeypatch.undo()
    before = timing._used()
    while timing._used()[2] - before[2] < 0.1:  # what this process does is in both
        pass
    after = timing._used()
    assert after[0] > before[0]
    assert after[1] - before[1] > 0.05


@pytest.mark.parametrize("refusal", ["", "others were busy"])
def test_figures_of_a_busy_machine_are_not_published(
    refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(run, "run", lambda workloads, results, path: results.write(path))
    monkeypatch.setattr(timing.Machine, "refusal", lambda machine: refusal)
    (tmp_path / "cpu.json").write_text("of last time")
    path, why = run.run_in(tmp_path, [], _results(), published=True)
    assert why == refusal
    assert path.parent == (tmp_path / "scratch" if refusal else tmp_path)
    assert Results.read(path).complete
    assert ((tmp_path / "cpu.json").read_text() == "of last time") == bool(refusal)
    assert run.run_in(tmp_path, [], _results(), published=False) == (tmp_path / "cpu.json", "")


# ---- timing --------------------------------------------------------------------------------------


def test_others_stand_between_slots_of_the_first() -> None:
    order: list[str] = []

    def call(name: str) -> Tensor:
        if not order or order[-1] != name:
            order.append(name)
        return torch.zeros(3, dtype=torch.int64)

    others = {"b": lambda: call("b"), "c": lambda: call("c")}
    samples = timing.interleave(lambda: call("a"), others, seconds=0.0)
    assert order == ["a", "b", "a", "c", "a"]
    assert [len(samples[name].slots) for name in ("", "b", "c")] == [3, 1, 1]
    alone = timing.interleave(lambda: call("a"), {}, seconds=0.0)
    assert len(alone[""].slots) == 2, "its noise is known without others, too"


def test_outputs_are_poisoned_between_calls() -> None:
    buffer = torch.arange(3)
    samples = timing.Samples()
    samples.add(lambda: buffer, 2)  # a call that writes nothing
    assert samples.result is not None
    assert samples.result.tolist() == [POISON] * 3
    assert not samples.steady


def test_summary() -> None:
    summary = timing.summary([[1.0, 3.0], [2.0, 2.0], [5.0, 3.0]])
    assert summary.median_ms == 2.5
    assert (summary.calls, summary.p10_ms, summary.p90_ms) == (6, 1.5, 4.0)
    assert summary.noise == pytest.approx((3.6 - 2.0) / 2.5)
    assert timing.summary([[1.0, 2.0]]).noise is None


# ---- two files -----------------------------------------------------------------------------------


def _slower(results: Results, factor: float, kind: str) -> Results:
    """The same results with the times of one kind multiplied."""

    def scaled(record: Record) -> Record:
        if record.kind != kind or record.times is None:
            return record
        times = dataclasses.replace(record.times, median_ms=record.times.median_ms * factor)
        return dataclasses.replace(record, times=times)

    return dataclasses.replace(results, records=[scaled(record) for record in results.records])


def _compare(tmp_path: Path, old: Results, new: Results) -> int:
    old.write(tmp_path / "old.json")
    new.write(tmp_path / "new.json")
    with pytest.raises(SystemExit) as left:
        compare.main(tmp_path / "old.json", tmp_path / "new.json")
    return int(left.value.code or 0)


def test_compare_finds_a_planted_regression(tmp_path: Path) -> None:
    calm = _results()
    assert _compare(tmp_path, calm, calm) == 0
    assert _compare(tmp_path, calm, _slower(calm, 1.3, "ours")) == 1
    assert _compare(tmp_path, calm, _slower(calm, 0.5, "ours")) == 0
    assert _compare(tmp_path, calm, _slower(calm, 1.04, "ours")) == 0, "within noise"
    both = _slower(_slower(calm, 1.3, "ours"), 1.4, "baseline")
    assert _compare(tmp_path, calm, both) == 0, "the whole machine was slower"


def test_compare_finds_wrong_picks(tmp_path: Path) -> None:
    calm = _results()
    first, *rest = calm.records
    wrong = Record(first.workload, first.contender, first.kind, "wrong", "pick 3 ...")
    new = dataclasses.replace(calm, records=[wrong, *rest])
    assert _compare(tmp_path, calm, new) == 1
    assert compare.compare(calm, new)[0].verdict == "wrong"


def test_compare_tells_more_work() -> None:
    calm = _results()
    first, *rest = calm.records
    assert first.work is not None
    more = dataclasses.replace(first.work, dots=first.work.dots + 1)
    new = dataclasses.replace(calm, records=[dataclasses.replace(first, work=more), *rest])
    change = compare.compare(calm, new)[0]
    assert (change.verdict, change.worse) == ("more work", False)


def test_compare_names_what_the_later_file_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calm = _results()
    first, last = calm.records[0].workload, calm.records[-1].workload
    assert first != last
    kept = [record for record in calm.records if record.workload != last]
    assert _compare(tmp_path, calm, dataclasses.replace(calm, records=kept)) == 0
    assert f"lacks them: {last}" in capsys.readouterr().out
    other = dataclasses.replace(calm.workloads[first], n=calm.workloads[first].n + 1)
    renamed = dataclasses.replace(calm, workloads={**calm.workloads, first: other})
    assert _compare(tmp_path, calm, renamed) == 2
    assert f"workload {first} must be the same" in " ".join(capsys.readouterr().out.split())
    longer = dataclasses.replace(calm.workloads[first], seconds=9.0)
    same = dataclasses.replace(calm, workloads={**calm.workloads, first: longer})
    assert _compare(tmp_path, calm, same) == 0


def test_generations_of_one_name_are_told_apart() -> None:
    cpu = {"brand_raw": "AMD EPYC", "family": 25, "model": 17}
    assert cpu_name(cpu) == "AMD EPYC (family 25, model 17)"
    assert cpu_name({"brand_raw": "AMD EPYC"}) == "AMD EPYC"


def test_compare_refuses_other_machines(tmp_path: Path) -> None:
    calm = _results()
    cpu = {**calm.environment["cpu"], "model": "another"}
    other = dataclasses.replace(calm, environment={**calm.environment, "cpu": cpu})
    assert _compare(tmp_path, calm, other) == 2
    assert _compare(tmp_path, calm, dataclasses.replace(calm, records=[])) == 2


# ---- README --------------------------------------------------------------------------------------


def test_readme_is_rewritten_between_its_markers_only() -> None:
    begin, end = pages.marks("t")
    text = f"# a\n\\1 {begin}\nold\n{end} b\n"
    new = pages.rewrite(text, "t", "x \\g<0>")
    assert new == f"# a\n\\1 {begin}\nx \\g<0>\n{end} b\n"
    for bad in ("", begin, f"{end}{begin}", text + text):
        with pytest.raises(ValueError, match="page must have"):
            pages.rewrite(bad, "t", "")


def test_tables_say_what_they_were_made_of() -> None:
    for git, said in (
        ({"sha": "0123456789abcdef", "dirty": False}, "0123456789ab"),
        ({"sha": "0123456789abcdef", "dirty": True}, "0123456789ab+"),
        (None, "no commit"),
    ):
        assert f", {said}, 20" in pages.where({**HERE, "git": git})


def test_readme_table_says_what_was_verified_and_what_not() -> None:
    made = _results()
    for w in [workload("llava15", core, tokens="iid") for core in (0.0, 0.4)]:
        made.workloads[w.name] = w
        times = timing.Summary(2.0, 2.0, 2.0, 0.05, 9)
        made.records.append(Record(w.name, OURS, "ours", "verified", times=times))
        made.records.append(
            dataclasses.replace(made.records[1], workload=w.name, contender="incremental")
        )
    made.records[2] = Record(made.records[2].workload, OURS, "ours", "wrong", "pick 7")
    made.records += [
        Record(made.records[2].workload, name, "baseline", status)
        for name, status in (("half", "inexact"), ("half", "inexact"), ("fpsample", "unavailable"))
    ]
    text = report.readme_table(made)
    assert (
        "| 576 x 4096 | 58 (0) | 1 | gram_incremental 12 | 12x | - | 6x (iid) | 2x | 0.0269 |"
        in text
    )
    assert "| 576 x 4096 | 58 (23) | wrong picks: no figure |" in text
    assert "7 of 11 records; 2 inexact (`half`); 1 unavailable (`fpsample`)" in text
    assert "; 1 refused a figure; **wrong picks of ours in 1**" in text


# ---- registry ------------------------------------------------------------------------------------


def test_suites_cover_what_is_published() -> None:
    for name in registry.SUITES:
        names = [w.name for w in suite(name)]
        assert len(set(names)) == len(names)
    for name in ("cpu", "full"):
        planned = suite(name)
        for shape in ("llava15", "qwen25vl", "llavanext", "large"):
            for model in MODELS:
                for core in (0.0, 0.4):
                    k_core = round(core * registry.SHAPES[shape].k)
                    cell = (shape, model, k_core, "bf16", 1, 0)
                    assert cell in {
                        (w.shape, w.tokens, w.k_core, w.dtype, w.batch, w.threads) for w in planned
                    }
        assert {w.dtype for w in planned} == set(registry.DTYPES)
        assert {w.batch for w in planned} == {1, 2, 4, 8, 16, 32}
        assert {w.tokens for w in planned} == {*MODELS, "constant", "duplicates"}
        assert any(w.ragged for w in planned)
        assert any(w.n == 16384 for w in planned)
    assert [w.shape for w in suite("cpu", "video-*core0")] == ["video"]


def test_wrong_picks_fail_a_run() -> None:
    results = _results()
    run.stop_if_wrong(results)
    results.records[0] = dataclasses.replace(results.records[0], status="wrong")
    with pytest.raises(SystemExit) as left:
        run.stop_if_wrong(results)
    assert left.value.code == 1


@pytest.mark.parametrize(("module", "name"), [(greedy, "greedy"), (methods, "methods")])
@pytest.mark.parametrize("refusal", ["", "others were busy"])
def test_a_page_shows_no_figures_of_a_busy_machine(
    module: Any, name: str, refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, end = pages.marks(module.TABLE)
    page = tmp_path / "page.md"
    page.write_text(f"{begin}\nof last time\n{end}")
    monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pages, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(module, "environment", lambda threads: HERE)
    monkeypatch.setattr(module, "measure", lambda *arguments: [])
    monkeypatch.setattr(module, "READINGS", {}, raising=False)
    monkeypatch.setattr(timing.Machine, "refusal", lambda machine: refusal)
    with pytest.raises(typer.Exit) if refusal else contextlib.nullcontext():
        module.main()
    assert ("of last time" in page.read_text()) == bool(refusal)
    folder = tmp_path / ("scratch" if refusal else "results")
    assert [path.name for path in tmp_path.rglob("*.json")] == [f"{name}.json"]
    assert (folder / f"{name}.json").exists()
