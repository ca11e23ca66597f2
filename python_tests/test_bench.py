# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: what a run writes, what is refused a figure, and how much work was done."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import contenders, measure, pages, registry, report, run
from bench.ceilings import Ceilings, count_work
from bench.compiled import NAMES, compiled
from bench.contenders import OURS, Contender
from bench.problem import Image, Problem, draw
from bench.registry import Workload, suite, workload
from bench.results import Record, Results
from bench.verify import Verifier, replay
from zspa_kernels.testing import BASELINES, MODELS, bound, check_select, select64

ROOT = Path(__file__).resolve().parent.parent
RATES = Ceilings({1: 100.0, 2: 200.0}, {1: 50.0, 2: 400.0}, {1: 10.0, 2: 20.0})
SMALL = workload("small", 0.4, seconds=0.0)


@pytest.fixture(scope="module", autouse=True)
def _native(require_backend: Callable[..., None]) -> None:
    require_backend("cpp")


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run of the smoke suite leaves."""
    out = tmp_path_factory.mktemp("bench")
    begin, end = pages.marks(report.TABLE)
    (out / "README.md").write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    command = [sys.executable, "-m", "bench.run", "--suite", "smoke", "--out", str(out)]
    done = subprocess.run(
        [*command, "--readme", str(out / "README.md")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def results(smoke: Path) -> Results:
    return Results.read(smoke / "smoke.json")


def test_every_record_is_verified_and_complete(results: Results) -> None:
    assert results.complete
    assert list(results.workloads) == [w.name for w in suite("smoke")]
    for name, planned in results.workloads.items():
        records = results.of(name)
        assert set(records) == {OURS, *planned.against}
        for record in records.values():
            assert record.status == "verified", record
            assert record.verdict is not None
            assert record.verdict.images == len(planned.images)
            assert record.verdict.picks == sum(c + d for _, c, d in planned.images)
            assert record.times is not None
            assert record.slots is not None
            assert record.times.calls == sum(map(len, record.slots))
            assert 0 < record.times.p10_ms <= record.times.median_ms <= record.times.p90_ms
        ours = records[OURS]
        assert ours.work is not None
        assert ours.floor is not None
        assert ours.work.passes > 0
        assert 0 <= ours.work.seed_dots <= ours.work.dots
        assert ours.floor.plain_ms > 0
        others = len(records) - 1
        assert len(ours.slots or []) > others, "ours has a slot around each of the others"


def test_the_file_says_where_it_was_made(smoke: Path) -> None:
    data = json.loads((smoke / "smoke.json").read_text())
    assert data["schema"] == 1
    here = data["environment"]
    for key in ("date", "git", "cpu", "threads", "load_average", "torch", "build", "variables"):
        assert key in here
    assert here["cpu"]["model"]
    assert all(rate > 0 for rates in data["ceilings"].values() for rate in rates.values())
    assert data["workloads"][suite("smoke")[0].name]["tokens"] == "vlm"


def test_plot_and_table_are_written(smoke: Path) -> None:
    assert (smoke / "smoke.png").read_bytes().startswith(b"\x89PNG")
    text = (smoke / "README.md").read_text()
    begin, end = pages.marks(report.TABLE)
    assert text.startswith(f"above\n{begin}\n| N x D")
    assert text.endswith(f"{end}\nbelow\n")
    assert "old" not in text.split("\n")
    assert "Verified in float64" in text


def test_a_file_is_read_as_it_was_written(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "again.json")
    assert Results.read(tmp_path / "again.json") == results
    (tmp_path / "again.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema must be 1"):
        Results.read(tmp_path / "again.json")


def test_an_interrupted_run_leaves_a_valid_file(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = suite("smoke")[:2]

    def interrupted(planned: Workload, *_: object) -> Iterator[Record]:
        if planned == second:
            raise KeyboardInterrupt
        yield Record(planned.name, OURS, "ours", "verified")

    monkeypatch.setattr(run, "measure", interrupted)
    fresh = dataclasses.replace(results, workloads={}, records=[], complete=False)
    with pytest.raises(KeyboardInterrupt):
        run.run([first, second], fresh, tmp_path / "part.json")
    left = Results.read(tmp_path / "part.json")
    assert not left.complete
    assert [record.workload for record in left.records] == [first.name]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--suite", "none"], "suite must be one of"),
        (["--suite", "smoke", "--only", "nothing"], "only must match"),
        (["--suite", "smoke", "--readme", "LICENSE"], "page must have"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    readme = ROOT / options["--readme"] if "--readme" in options else None
    with pytest.raises(SystemExit, match="1"):
        run.main(options["--suite"], None, options.get("--only", "*"), 0, readme)
    assert text in capsys.readouterr().err.replace("\n", " ")


def test_pytest_benchmark_runs_the_same_registry(tmp_path: Path) -> None:
    out = tmp_path / "pytest.json"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "bench"]
    options = ["--benchmark-only", "--benchmark-max-time=0.01", f"--benchmark-json={out}"]
    # Where several processes test, this one is none of them: benchmarks are disabled there.
    alone = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    command += [*options, "-k", "core10-vlm-fp32"]
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    data = json.loads(out.read_text())
    assert len(data["benchmarks"]) == 1 + len(registry.WITH_CORE)
    assert data["machine_info"]["zspa"]["build"]
    assert data["benchmarks"][0]["extra_info"]["verdict"]["picks"] == 24


# ---- no verification, no figure ------------------------------------------------------------------


def _planted(problem: Problem, fault: str) -> Contender:
    """This package's op with a fault."""
    good = contenders.ours(problem)
    turn = iter(range(10**6))
    still = good.call()

    def call() -> Tensor:
        result = good.call()
        if fault == "another token" or (fault == "now and then" and next(turn) % 2):
            free = sorted(set(range(problem.workload.n)) - set(result[0].tolist()))
            result[0, 3] = free[0]
            result = result.sort().values
        return still if fault == "nothing written" else result

    def unsorted() -> Tensor:
        result = good.unsorted() if good.unsorted else good.call()
        if fault == "another order":
            result[0, [4, 20]] = result[0, [20, 4]]
        return result

    return dataclasses.replace(good, call=call, unsorted=unsorted)


@pytest.mark.parametrize(
    "fault", ["another token", "another order", "now and then", "nothing written"]
)
def test_a_wrong_selection_has_no_figure(fault: str) -> None:
    records = list(measure.measure(SMALL, RATES, 2, ours=lambda problem: _planted(problem, fault)))
    ours = records[0]
    assert ours.status == "wrong"
    assert ours.reason
    assert (ours.times, ours.slots, ours.work, ours.floor) == (None, None, None, None)
    assert [record.status for record in records[1:]] == ["verified"] * len(SMALL.against)


def test_a_wrong_baseline_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_tokens(visual: Tensor, prompt: Tensor | None, core: int, diverse: int) -> Tensor:
        return torch.arange(core + diverse)

    monkeypatch.setitem(BASELINES, "incremental", first_tokens)
    by_name = {r.contender: r for r in measure.measure(SMALL, RATES, 2)}
    assert by_name["incremental"].status == "wrong"
    assert by_name["incremental"].times is None
    assert by_name[OURS].status == "verified"


def test_a_half_precision_loop_is_marked_inexact() -> None:
    planned = dataclasses.replace(SMALL, against=("half",))
    half = list(measure.measure(planned, RATES, 2))[1]
    assert (half.status, half.kind) == ("inexact", "inexact")
    assert half.times is not None
    assert half.reason


@pytest.mark.parametrize("model", [*MODELS, "duplicates", "constant"])
@pytest.mark.parametrize("k_core", [0, 10])
def test_replay_agrees_with_the_judge_of_the_tests(model: str, k_core: int) -> None:
    planned = dataclasses.replace(workload("small"), tokens=model, k_core=k_core)
    image = draw(planned).images[0]
    limit = 0.0 if model == "exact" else bound(planned.d)
    right = select64(image.visual, image.prompt, image.k_core, image.k_diverse)

    def both(picks: Tensor) -> list[bool]:
        """Whether each of the two judges accepts."""
        return [
            _accepts(lambda: _judge(image, picks, limit)),
            _accepts(lambda: replay(image, picks, bound=limit, lowest_index=True)),
        ]

    assert both(right) == [True, True]
    free = sorted(set(range(planned.n)) - set(right.tolist()))
    for turn in (0, 1, 9, 10, 11, 23):
        for token in (free[0], free[-1]):
            wrong = right.clone()
            wrong[turn] = token
            verdicts = both(wrong)
            assert verdicts[0] == verdicts[1], (turn, token)
            assert model in ("vlm", "video") or verdicts == [False, False], (turn, token)
    for turn, token in ((5, int(right[4])), (3, planned.n), (23, -1)):
        wrong = right.clone()
        wrong[turn] = token
        assert both(wrong) == [False, False]
    assert both(right[:-1]) == [False, False]


def _judge(image: Image, picks: Tensor, limit: float) -> object:
    return check_select(
        image.visual, image.prompt, image.k_core, image.k_diverse, picks, bound=limit
    )


def _accepts(judgement: Callable[[], object]) -> bool:
    try:
        judgement()
    except AssertionError:
        return False
    return True


def test_large_images_are_replayed() -> None:
    problem = draw(SMALL)
    ours = contenders.ours(problem)
    assert Verifier(problem).check(ours, ours.call()).judge == "oracle"
    assert Verifier(problem, judge_limit=100).check(ours, ours.call()).judge == "replay"


# ---- contenders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k_core", [0, 10])
def test_compiled_loops_pick_what_the_loops_pick(name: str, k_core: int) -> None:
    image = draw(dataclasses.replace(SMALL, k_core=k_core)).images[0].float()
    arguments = (image.visual, image.prompt, image.k_core, image.k_diverse)
    assert torch.equal(compiled(name, "eager")(*arguments), BASELINES[name](*arguments))


def test_a_compiler_that_fails_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(contenders, "compiled", broken)
    planned = dataclasses.replace(SMALL, against=(*SMALL.against, "compiled"))
    record = list(measure.measure(planned, RATES, 2))[-1]
    assert (record.contender, record.status) == ("compiled", "unavailable")
    assert record.reason == "RuntimeError: no compiler"


def test_fpsample_is_recorded_whether_it_is_there_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = dataclasses.replace(SMALL, against=("fpsample",))
    monkeypatch.setitem(sys.modules, "fpsample", None)
    record = list(measure.measure(planned, RATES, 2))[1]
    assert (record.status, record.reason) == ("unavailable", "not installed")

    def fps_sampling(points: object, k: int, start: list[int]) -> object:
        rows = torch.from_numpy(points)  # type: ignore[arg-type]
        picks = list(start)
        while len(picks) < k:
            largest = (rows @ rows[picks].T).amax(-1)
            largest[picks] = torch.inf
            picks.append(int(largest.argmin()))
        return torch.tensor(picks).numpy()

    library = types.SimpleNamespace(fps_sampling=fps_sampling)
    monkeypatch.setitem(sys.modules, "fpsample", library)  # type: ignore[arg-type]
    assert list(measure.measure(planned, RATES, 2))[1].status == "verified"


# ---- work ----------------------------------------------------------------------------------------

#: (tokens, N, D, K, core) -> passes, dots / NK, seed dots / NK, alike for all instruction sets. A
#: change that raises one of them needs a reason; one that lowers them lowers these numbers.
WORK = {
    ("iid", 576, 256, 58, 0): (8, 3.204, 2.537),
    ("iid", 576, 256, 58, 23): (2, 0.609, 0),
    ("smooth", 576, 256, 58, 0): (7, 1.163, 0.323),
    ("smooth", 576, 256, 58, 23): (3, 0.748, 0),
    ("clusters", 576, 256, 58, 0): (10, 2.501, 1.703),
    ("clusters", 576, 256, 58, 23): (6, 0.898, 0),
    ("vlm", 576, 256, 58, 0): (7, 1.324, 0.605),
    ("vlm", 576, 256, 58, 23): (3, 0.768, 0),
    ("video", 576, 256, 58, 0): (9, 1.072, 0.327),
    ("video", 576, 256, 58, 23): (8, 0.923, 0),
    ("exact", 576, 256, 58, 0): (6, 2.622, 2.035),
    ("exact", 576, 256, 58, 23): (2, 0.632, 0),
    ("duplicates", 576, 64, 58, 23): (6, 0.855, 0),
    ("constant", 576, 64, 58, 23): (1, 0.442, 0),
    ("iid", 2880, 128, 288, 0): (16, 1.762, 1.320),
    ("iid", 2880, 128, 288, 115): (3, 0.492, 0),
    ("vlm", 2880, 128, 288, 0): (17, 0.653, 0.107),
    ("vlm", 2880, 128, 288, 115): (5, 0.593, 0),
    ("video", 2880, 128, 288, 0): (19, 0.601, 0.094),
    ("video", 2880, 128, 288, 115): (11, 0.741, 0),
}


@pytest.mark.parametrize("case", WORK, ids=lambda case: "-".join(map(str, case)))
def test_work_does_not_grow(case: tuple[str, int, int, int, int]) -> None:
    tokens, n, d, k, k_core = case
    problem = draw(Workload("work", n, d, k, k_core, tokens))
    work = count_work(problem)
    got = (work.passes, work.dots / problem.plain_dots, work.seed_dots / problem.plain_dots)
    assert all(a <= b for a, b in zip(got, WORK[case], strict=True)), got
    assert work.seed_dots <= n * n / 2
