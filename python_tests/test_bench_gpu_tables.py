# SPDX-License-Identifier: Apache-2.0
"""The README's table of a GPU, other sizes of kernels, and workloads that share a process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor

import zspa_kernels as zk
from bench import gpu, gpu_report, gpu_sweep, gpu_table, gpu_timing, pages
from bench.contenders import Contender
from bench.environment import RESULTS, ROOT
from bench.gpu_jobs import Outcome, write
from bench.problem import Problem
from bench.registry import Workload, workload

SMALL = workload("narrow", 0.4)


def by_triton(problem: Problem) -> Contender:
    (image,) = problem.images

    def call() -> Tensor:
        return zk.select(
            image.visual, image.prompt, k_core=image.k_core, k_diverse=image.k_diverse,
            backend="triton",
        )  # fmt: skip

    return Contender("zspa", "ours", call, list)


def published() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gpu_table.PUBLISHED.read_text())
    return content


def test_the_readme_shows_what_the_file_says() -> None:
    text = (ROOT / "README.md").read_text()
    assert pages.rewrite(text, gpu_table.TABLE, gpu_table.table(published())) == text


@pytest.mark.parametrize("name", ["h100", "h100-first"])
def test_a_published_file_says_where_and_of_what(name: str) -> None:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    assert len(content["git"]["sha"]) == 40
    assert not content["git"]["dirty"]
    assert content["device"].startswith("NVIDIA H100")
    assert all(content[field] for field in ("driver", "date", "torch", "triton"))


def test_what_is_not_verified_has_no_figure() -> None:
    content = published()
    records = [r for job in content["jobs"] for r in job["data"] if "workload" in r]
    wrong = next(r for r in records if r["contender"] == "zspa" and r["mode"] == "graph")
    name = wrong["workload"]
    before = gpu_table.medians(content)[name]
    wrong["status"] = "wrong"
    after = gpu_table.medians(content)[name]
    assert before.keys() - after.keys() == {("zspa", "graph")}
    (line,) = [x for x in gpu_table.table(content).splitlines() if "| 288 (115) |" in x]
    assert line.split(" | ")[2] == "-"
    assert "Verified in float64: 29 of 30 records" in gpu_table.table(content)


def test_a_commit_that_is_told_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, multi_processor_count, total_memory, L2_cache_size = "X", 1, 2, 3

    for field, value in (
        ("get_device_properties", Properties()),
        ("get_device_capability", (9, 0)),
        ("device_count", 1),
    ):
        monkeypatch.setattr(gpu.torch.cuda, field, lambda *_, value=value: value)
    assert gpu.environment("abc")["git"] == {"sha": "abc", "dirty": False}
    assert gpu.environment()["git"] == gpu._git()


def test_other_sizes_must_pick_the_same(
    require_backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_backend("triton")
    forms = (*gpu_sweep._forms("select", slots=(16,)), *gpu_sweep._forms("diversity", none=(1,)))
    monkeypatch.setattr(gpu_sweep, "gpu_suite", lambda: [SMALL])
    monkeypatch.setitem(gpu_sweep.FORMS, SMALL.name, forms)
    monkeypatch.setattr(gpu_sweep.contenders, "ours", by_triton)
    monkeypatch.setattr(gpu_timing, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_timing, "best", lambda call: 0.5)
    plain, slots, bad, again = gpu_sweep.sweep(SMALL.name)
    assert plain == again == {"sweep": SMALL.name, "form": "as it is", "us": 500.0, "equal": True}
    assert slots == plain | {"form": "select slots=16"}
    assert bad["error"].startswith("TypeError: ")
    assert "none" in bad["error"]
    monkeypatch.setattr(gpu_sweep.torch, "equal", lambda *_: False)
    assert [r.get("equal") for r in gpu_sweep.sweep(SMALL.name)] == [False, False, None, False]


def test_other_sizes_in_the_summary(tmp_path: Any) -> None:
    record = {"sweep": SMALL.name, "form": "select slots=16", "us": 31.5, "equal": False}
    failed = {"sweep": SMALL.name, "form": "diversity none=1", "error": "TypeError: no"}
    job = Outcome("sweep", "passed", data=[record, failed])
    write(tmp_path / "sweep.json", {"jobs": [vars(job)]})
    text = gpu_report.summary(tmp_path)
    assert "   31.5 us, other picks\n" in text
    assert " TypeError: no\n" in text
    assert "workload" not in text


def test_a_workload_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(work: Workload) -> Iterator[dict[str, Any]]:
        yield {"workload": work.name}
        if work.tokens == "iid":
            raise ValueError("no")

    works = [workload("narrow", 0.4, tokens=tokens) for tokens in ("iid", "vlm")]
    monkeypatch.setattr(gpu_timing, "measure", measure)
    monkeypatch.setattr(gpu_timing, "gpu_suite", lambda: works)
    records = gpu_timing.several([work.name for work in works])
    assert [next(records)["workload"] for _ in works] == [work.name for work in works]
    with pytest.raises(RuntimeError, match=f"1 of 2 workloads failed, {works[0].name}: ValueError"):
        next(records)
