# SPDX-License-Identifier: Apache-2.0
"""The GPU kit without a GPU: jobs and their limits, stages, records, summary."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import (
    end_to_end,
    end_to_end_report,
    gpu,
    gpu_check,
    gpu_end_to_end,
    gpu_jobs,
    gpu_kernels,
    gpu_parts,
    gpu_report,
    gpu_sweep,
    gpu_timing,
    registry,
)
from bench.gpu_jobs import Job, Outcome, python, run, run_all
from python_tests.triton_together import RaceError, Together, World
from zspa_kernels.testing import BASELINES


@pytest.mark.parametrize("stage", ["timing", "end_to_end"])
def test_without_a_gpu_it_says_so_and_writes_nothing(stage: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    out = tmp_path / "out"
    command = ("-m", "bench.gpu", "--stage", stage, "--out", str(out))
    done = subprocess.run(python(*command), capture_output=True, text=True, check=False)
    assert done.returncode == gpu.NO_DEVICE
    assert done.stdout == ""
    assert done.stderr.startswith("bench.gpu: no CUDA device: torch")
    assert not out.exists()


def test_it_needs_nothing_but_torch() -> None:
    """What a bare machine may lack is not imported, nor is the native module."""
    code = (
        "import sys; blocked = ('typer', 'rich', 'matplotlib', 'cpuinfo', 'skimage', 'pytest',"
        " 'hypothesis', 'PIL'); sys.modules.update(dict.fromkeys(blocked))\n"
        "import bench.gpu, bench.gpu_timing, bench.gpu_checks\n"
        "assert 'zspa_kernels._C' not in sys.modules"
    )
    subprocess.run(python("-c", code), check=True, cwd=gpu_jobs.ROOT)


@pytest.fixture(scope="module")
def answers() -> Outcome:
    """The job of a tiny model on the CPU, without the packages that a bare machine may lack."""
    code = (
        "import sys; blocked = ('typer', 'rich', 'matplotlib', 'cpuinfo', 'skimage', 'pytest');"
        " sys.modules.update(dict.fromkeys(blocked))\n"
        "from bench import gpu_end_to_end as job; job.NEW_TOKENS, job.ROUNDS = 2, 1\n"
        "raise SystemExit(job.main('tiny-next', 'sdpa', 'cpu'))"
    )
    return run(Job("tiny-next sdpa", python("-W", "ignore", "-c", code), 120))


def test_whole_answers_are_a_stage(answers: Outcome, tmp_path: Path) -> None:
    assert answers.status == "passed", answers.tail
    (found,) = answers.data
    assert [one["visual"] for one in found["records"]] == [336, 34, 34, 34]
    assert all(one["verified"]["picks"] == 34 for one in found["records"][1:])
    assert (found["attention"], found["preset"]) == ("sdpa", "tiny-next")
    stage = {"driver": "1", "date": "2026-11-25", "git": None, "torch": "2", "device": "X"}
    gpu_jobs.write(tmp_path / "end_to_end.json", {**stage, "jobs": [vars(answers)]})
    text = gpu_report.summary(tmp_path)
    assert "end_to_end: 1 passed" in text
    lines = [line for line in text.splitlines() if line.startswith("tiny-next, sdpa")]
    assert len(lines) == 4
    assert [line.split()[-9] for line in lines] == ["336", "34", "34", "34"]


def test_results_of_a_gpu_become_tables(answers: Outcome, tmp_path: Path) -> None:
    found = {**answers.data[0], "device": "NVIDIA X", "preset": "large"}
    stage = {"driver": "1", "date": "2026-11-25", "git": None, "torch": "2", "device": "X"}
    failed = Outcome("other", "failed", data=[found])
    passed = Outcome("tiny-next sdpa", "passed", data=[found])
    gpu_jobs.write(
        tmp_path / "in.json", {**stage, "jobs": [vars(passed), vars(failed), vars(answers)]}
    )
    end_to_end.main(add=tmp_path / "in.json", out=tmp_path)
    results = json.loads((tmp_path / "end_to_end.json").read_text())
    assert list(results["runs"]) == ["large sdpa"]
    text = end_to_end_report.tables(results)
    assert "`python -m bench.gpu --stage end_to_end`: NVIDIA X, driver 1, attention sdpa" in text
    assert (tmp_path / "end_to_end.png").exists()
    (tmp_path / "in.json").write_text("{}")
    with pytest.raises(SystemExit):
        end_to_end.main(add=tmp_path / "in.json", out=tmp_path)


def test_wrong_answers_of_a_model_have_no_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*arguments: Any) -> Any:
        raise AssertionError("pick 3")

    monkeypatch.setattr(gpu_end_to_end, "measure", wrong)
    assert gpu_end_to_end.main("tiny", "sdpa", "cpu") == 1
    assert capsys.readouterr().out == "no figure: pick 3\n"


def test_models_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_end_to_end.ATTENTION, "flash_attention_2", "no_such_package")
    names = ["tiny", "tiny-next", "tiny-qwen", "llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b"]
    assert [job.name for job in gpu.end_to_end()] == [f"{name} sdpa" for name in names]
    monkeypatch.setitem(gpu_end_to_end.ATTENTION, "flash_attention_2", "json")
    flash = [job.name for job in gpu.end_to_end()][len(names) :]
    assert flash == [f"{name} flash_attention_2" for name in names[3:]]
    assert all(job.variables["HF_HUB_OFFLINE"] == "1" for job in gpu.end_to_end())


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "many"])
def test_bad_arguments(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--minutes", minutes])
    assert stopped.value.code == 2
    assert "--minutes" in capsys.readouterr().err


def test_outcomes() -> None:
    code = "print('{\"a\": 1}'); print('words'); print('{\"a\": 2}')"
    passed = run(Job("good", python("-c", code), 20))
    assert (passed.status, passed.tail, passed.data) == ("passed", "words", [{"a": 1}, {"a": 2}])
    failed = run(Job("bad", python("-c", "raise ValueError('reason')"), 20))
    assert failed.status == "failed"
    assert failed.tail.endswith("ValueError: reason")
    told = run(Job("told", python("-c", "import os; print(os.environ['X'])"), 20, {"X": "y"}))
    assert told.tail == "y"


def test_a_job_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(mark)!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.perf_counter()
    outcome = run(Job("hangs", python("-c", parent), 0.7))
    assert outcome.status == "too slow"
    assert time.perf_counter() - start < 2
    time.sleep(max(0.0, start + 2.5 - time.perf_counter()))
    assert not mark.exists()


def test_a_process_that_cannot_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that left the group stands for one that is stuck in a driver."""
    monkeypatch.setattr(gpu_jobs, "GRACE", 0.2)
    code = (
        "import subprocess, sys, time; print('here', flush=True)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(4)'],"
        " start_new_session=True); time.sleep(60)"
    )
    start = time.perf_counter()
    outcome = run(Job("stuck", python("-c", code), 1))
    assert time.perf_counter() - start < 3
    assert outcome.status == "too slow"
    assert outcome.tail == "here\n\nkilled, but it has not ended 0.2 s later"


def test_kernels_with_spills_are_named(tmp_path: Path) -> None:
    kernel = {"kernel": "clean", "tokens": ["bfloat16"], "spill": 0, "registers": 90}
    wide = {"kernel": "wide", "tokens": ["float32"], "spill": 8, "registers": 255}
    job = Outcome("kernels of float32", "passed", data=[kernel, wide])
    gpu_jobs.write(tmp_path / "correctness.json", {"jobs": [vars(job)]})
    text = gpu_report.summary(tmp_path)
    assert "kernels: 2 compiled, 1 with spills\n  wide (float32): 8 bytes, 255 registers\n" in text


def test_every_outcome_is_on_disk_before_the_next_job(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    read = f"import json; print(len(json.load(open({str(path)!r}))['jobs']))"
    jobs = [Job("first", python("-c", ""), 20), Job("second", python("-c", read), 20)]
    said: list[str] = []
    outcomes = run_all(jobs, path, {"device": "x"}, time.perf_counter() + 60, said.append)
    assert outcomes[1].tail == "1"
    assert len(said) == 2
    content = json.loads(path.read_text())
    assert content["device"] == "x"
    assert [job["status"] for job in content["jobs"]] == ["passed", "passed"]
    late = run_all(jobs, path, {}, time.perf_counter(), said.append)
    assert [outcome.status for outcome in late] == ["not run", "not run"]


def test_jobs_at_the_same_time_and_again(tmp_path: Path) -> None:
    """Three wait for one another, after the one that is first; a later run keeps what it leaves."""
    path = tmp_path / "stage.json"
    said: list[str] = []
    meet = (
        "import pathlib, sys, time\n"
        "here = pathlib.Path(sys.argv[1]); assert (here / 'first').exists()\n"
        "(here / sys.argv[2]).touch()\n"
        "while len(list(here.glob('[abc]'))) < 3: time.sleep(0.01)"
    )
    jobs = [Job(name, python("-c", meet, str(tmp_path), name), 20) for name in "abc"]
    touch = f"import pathlib; pathlib.Path({str(tmp_path / 'first')!r}).touch()"
    jobs = [replace(job, turn=1) for job in jobs] + [Job("first", python("-c", touch), 20)]
    counted: list[int] = []

    def done() -> None:
        counted.append(len(json.loads(path.read_text())["jobs"]))

    outcomes = run_all(jobs, path, {}, time.perf_counter() + 60, said.append, 3, done)
    assert [(o.name, o.status) for o in outcomes] == [(n, "passed") for n in (*"abc", "first")]
    assert counted == [1, 2, 3, 4]
    run_all([Job("b", python("-c", "1 / 0"), 20)], path, {}, time.perf_counter() + 60, said.append)
    kept = {job["name"]: job["status"] for job in json.loads(path.read_text())["jobs"]}
    assert kept == {"a": "passed", "b": "failed", "c": "passed", "first": "passed"}


def test_what_is_timed_runs_alone(tmp_path: Path) -> None:
    beside = (
        "import pathlib, sys, time\n"
        "mark = pathlib.Path(sys.argv[1]); mark.touch(exist_ok=False)\n"
        "time.sleep(0.3); mark.unlink()"
    )
    jobs = [Job(n, python("-c", beside, str(tmp_path / "mark")), 20, alone=True) for n in "abc"]
    outcomes = run_all(jobs, tmp_path / "x.json", {}, time.perf_counter() + 60, str, 3)
    assert [outcome.status for outcome in outcomes] == ["passed"] * 3


def test_a_stage_that_is_told_to_end_leaves_nothing_running(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = (
        "import signal, sys, time, pathlib\n"
        "from bench import gpu, gpu_jobs\n"
        "signal.signal(signal.SIGTERM, gpu._stopped)\n"
        f"jobs = [gpu_jobs.Job(n, gpu_jobs.python('-c', {child!r}), 20) for n in 'ab']\n"
        "print('ready', flush=True)\n"
        f"out = pathlib.Path({str(tmp_path / 'x.json')!r})\n"
        "gpu_jobs.run_all(jobs, out, {}, time.perf_counter() + 60, print, 2)"
    )
    process = subprocess.Popen(python("-c", code), stdout=subprocess.PIPE, cwd=gpu_jobs.ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    process.terminate()
    assert process.wait(10) == 128 + 15
    process.stdout.close()
    time.sleep(3)
    assert not mark.exists()


def test_a_line_that_was_cut_off_spoils_nothing() -> None:
    cut = run(Job("cut", python("-c", "print('{\"a\": 1}'); print('{\"a\": ')"), 20))
    assert (cut.status, cut.data) == ("passed", [{"a": 1}])


def test_a_part_of_a_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that seems to have a GPU: what fails is said, what passed is on disk."""
    monkeypatch.setattr(gpu, "why_not", lambda stage: None)
    monkeypatch.setattr(
        gpu,
        "environment",
        lambda commit: (
            {"git": {"sha": commit, "dirty": False}, "device": "X"}
            | dict.fromkeys(("driver", "date", "torch", "triton", "cuda"), "1")
        ),
    )
    commands = {"good": "print('fine')", "goods": "raise ValueError('no good')", "bad": "1"}
    jobs = [Job(name, python("-c", code), 20) for name, code in commands.items()]
    monkeypatch.setitem(gpu.JOBS, "correctness", lambda: iter(jobs))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        stage = ("--commit", "abc", "--stage", "correctness", "--out", str(tmp_path), "--only")
        assert gpu.main([*stage, "good*"]) == 1
        assert gpu.main([*stage, "bad"]) == 0
        with pytest.raises(SystemExit):
            gpu.main([*stage, "other"])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "--only must match" in capsys.readouterr().err
    text = (tmp_path / "summary.txt").read_text()
    assert "commit abc\n" in text
    assert "correctness: 2 passed, 1 failed" in text
    assert "goods: failed: ValueError: no good" in text
    assert len(json.loads((tmp_path / "correctness.json").read_text())["jobs"]) == 3


@pytest.mark.parametrize("semantics", ["", "acquire", "release"])
def test_letters_find_a_barrier_that_orders_nothing(
    semantics: str, monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    """The kernel of the check is itself free of races, and a race where the barrier is blind."""
    require_backend("triton")
    atomic, together = World.atomic, Together(monkeypatch, seed=2)

    def without(world: World, address: int, given: str) -> None:
        blind = bool(semantics) and semantics.upper() in given
        atomic(world, address, "" if blind else given)

    monkeypatch.setattr(World, "atomic", without)
    arrivals, wrong = torch.zeros(2, 32, dtype=torch.int32)
    letters, device = torch.zeros(5, 16, dtype=torch.int32), torch.device("cpu")
    arguments = (gpu_kernels.letters_kernel, 5, device, arrivals, letters, wrong, 3, 5)
    if semantics:
        with pytest.raises(RaceError, match="not ordered after"):
            together.launch(*arguments, WORDS=16, HIP=False)
    else:
        together.launch(*arguments, WORDS=16, HIP=False)
        assert wrong[:5].tolist() == [0] * 5


def test_every_workload_has_a_job_and_a_name_of_its_own() -> None:
    names = [job.name for job in gpu.timing()]
    assert len(names) == len(set(names))
    arguments = ",".join(job.command[-1] for job in gpu.timing()).split(",")
    assert len(arguments) == len(set(arguments))
    assert {w.name for w in registry.gpu_suite()} <= set(arguments)
    assert {job.command[-1] for job in gpu.sweep() if job.alone} == {
        f"sweep {name}" for name in gpu_sweep.FORMS
    }
    assert set(gpu_report.GOALS) <= set(names)
    assert {w.tokens for w in registry.gpu_suite()} >= set(registry.MODELS)
    checks = [job.name for job in gpu.correctness()]
    assert set(gpu.CHECKS) <= {name.split()[0] for name in checks}
    assert set(gpu.CHECKS) >= gpu.BY_DTYPE
    assert set(gpu.SANITIZED) <= set(gpu.CHECKS)
    assert all(Path(job.command[0]) == Path(sys.executable) for job in gpu.correctness())


@pytest.mark.usefixtures("on_cpu")
def test_what_a_workload_needs_is_compiled_before() -> None:
    """With random tokens, by the same call as in the workload."""
    small = [registry.workload("small", core) for core in (0.4, 0.0)]
    small.append(registry.ragged(registry.SMALL_RAGGED, 96, 0.4, against=(), seconds=0.1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_timing, "gpu_suite", lambda: small)
        assert [record["ready"] for record in gpu_timing.ready("small")] == [
            work.name for work in small if work.shape == "small"
        ]
        assert gpu_timing.main("ready small") == 0


class FakeReplay:
    """Runs the call where a graph would be replayed."""

    def __init__(self, call: Any) -> None:
        self.call, self.output = call, call()

    def milliseconds(self, flush: object = None) -> float:
        self.output.copy_(self.call())
        return 0.5 if flush is None else 0.75


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(call: Any) -> float:
        call()
        return 2.0

    monkeypatch.setattr(gpu_timing, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_timing, "Replay", FakeReplay)
    monkeypatch.setattr(gpu_timing, "eager", eager)
    monkeypatch.setattr(gpu_timing, "flush_buffer", lambda: torch.empty(1))
    monkeypatch.setattr(gpu_timing, "SLOTS", 2)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    "workload",
    [
        registry.workload("small", 0.4),
        registry.workload("small", 0.0, tokens="exact", batch=2),
        registry.ragged(registry.SMALL_RAGGED, 96, 0.4, against=(), seconds=0.1),
    ],
    ids=lambda workload: workload.name,
)
def test_records_of_a_workload(workload: registry.Workload) -> None:
    records = list(gpu_timing.measure(workload))
    assert [(r["contender"], r["mode"]) for r in records[:3]] == [
        ("zspa", mode) for mode in ("graph", "graph cold", "eager")
    ]
    assert [r["mode"] for r in records[3:]] == ["eager", "eager", "graph"]
    assert all(r["status"] == "verified" and r["picks"] > 0 for r in records), records
    assert json.loads(json.dumps(records)) == records


@pytest.mark.usefixtures("on_cpu")
def test_wrong_picks_have_no_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = registry.workload("small", 0.4)
    monkeypatch.setattr(gpu_timing, "gpu_suite", lambda: [workload])
    assert gpu_timing.main(workload.name) == 0
    right = FakeReplay.milliseconds

    def one_less(self: FakeReplay, flush: object = None) -> float:
        time = right(self, flush)
        self.output.sub_(1)
        return time

    monkeypatch.setattr(FakeReplay, "milliseconds", one_less)
    assert gpu_timing.main(workload.name) == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()[6:]]
    wrong = [record for record in records if record["status"] == "wrong"]
    assert {record["contender"] for record in wrong} == {"zspa", "gram_incremental sync-free"}
    assert not any("median_ms" in record for record in wrong)


def test_both_ways_for_few_tokens_are_timed_and_compared(
    monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("triton")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_timing, "best", lambda call: float(call().sum()))
    records = list(gpu_parts.few(((40, 1),), 24))
    assert [record["status"] for record in records] == ["verified"] * 2
    assert all(record["matrix"] == record["blocks"] > 0 for record in records)
    monkeypatch.setattr(gpu_parts.torch, "equal", lambda *_: False)
    assert all(set(r) == {"few", "kind", "status"} for r in gpu_parts.few(((40, 1),), 24))


def test_the_loop_without_syncs_picks_the_same() -> None:
    problem = gpu_timing.draw(registry.workload("small", 0.4))
    (image,) = problem.floats
    free = gpu_timing.sync_free("gram_incremental")
    for core, diverse in ((image.k_core, image.k_diverse), (0, 20)):
        arguments = (image.visual, image.prompt, core, diverse)
        assert torch.equal(free(*arguments), BASELINES["gram_incremental"](*arguments))


def test_summary(tmp_path: Path) -> None:
    name = "llava15-576x4096-k58-core23-vlm-bf16"

    def record(contender: str, mode: str, median: float) -> dict[str, Any]:
        head = {"workload": name, "contender": contender, "mode": mode, "status": "verified"}
        return {**head, "median_ms": median}

    records = [
        record("zspa", "graph", 0.05),
        record("zspa", "graph cold", 0.07),
        record("zspa", "eager", 0.1),
        record("gram_incremental sync-free", "graph", 0.5),
        record("zspaprune_loop", "eager", 4.0),
        {**record("gram_incremental", "eager", 1), "status": "wrong", "reason": "pick 3"},
    ]
    del records[-1]["median_ms"]
    head = {"device": "X", "driver": "1", "date": "2026", "git": None, "torch": "2", "triton": "3"}
    gpu_jobs.write(tmp_path / "environment.json", {**head, "cuda": "13"})
    machine = [
        {"ceiling": "copy GB/s", "value": 4000.0},
        {"step": "barrier", "programs": 132, "ns": 1100.0},
        {"pick": "1 warps", "error": "no"},
    ]
    jobs = [
        Outcome("machine", "passed", data=machine),
        Outcome(name, "passed", data=records),
        Outcome("late", "not run"),
    ]
    gpu_jobs.write(tmp_path / "timing.json", {"jobs": [vars(job) for job in jobs]})
    failed = Outcome("law_rows", "failed", tail="Traceback\nAssertionError: alone 3")
    gpu_jobs.write(tmp_path / "correctness.json", {"jobs": [vars(failed)]})
    text = gpu_report.summary(tmp_path)
    assert "correctness: 1 failed\n  law_rows: failed: AssertionError: alone 3" in text
    assert "timing: 2 passed, 1 not run" in text
    assert "barrier               1100 ns, 132 programs" in text
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    assert line.split()[1:] == ["50.0", "70.0", "100.0", "60", "10.0", "40.0"]
    assert "gram_incremental (eager) has no figure: pick 3" in text
