# SPDX-License-Identifier: Apache-2.0
"""The tool that finds the phase in which a kernel goes wrong, by the interpreter on both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import gpu, gpu_phases
from bench.interpreter import take_any_numpy


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]) -> None:
    require_backend("triton")
    monkeypatch.setattr(gpu_phases, "SIZE", (1, 20, 16, 4))
    monkeypatch.setattr(gpu_phases, "PROGRAMS", 2)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("op", gpu_phases.OPS)
def test_phases_of_every_op_are_traced(op: str) -> None:
    picks, memory = gpu_phases.trace(op, "cpu")
    assert torch.equal(picks, gpu_phases.call(op, "cpu"))
    labels = [label for label, _ in memory]
    assert labels[0] == "_diversity_norm_kernel"
    assert f"{op}_step begin" in labels
    assert gpu_phases.difference(memory, memory) is None
    assert all("visual" in left or "inv_norm" in left for _, left in memory)


@pytest.mark.usefixtures("small")
def test_a_wrong_phase_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from zspa_kernels.backends.triton import diversity_phases

    _, want = gpu_phases.trace("diversity", "cpu")
    _, again = gpu_phases.trace("diversity", "cpu")
    assert gpu_phases.difference(again, want) is None
    # Nothing counts as selected from, instead of as far from all as can be.
    monkeypatch.setattr(diversity_phases, "nothing_selected", lambda inv: inv * 0.0)
    _, wrong = gpu_phases.trace("diversity", "cpu")
    text = gpu_phases.difference(wrong, want)
    assert text is not None
    assert text.startswith("diversity_step begin (launch 1) leaves 20 of 20 values of nearest")
    assert text.endswith("the first at 0: 0.0 instead of -1.0")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("op", ["diversity", "facility_location"])
def test_phases_that_never_end_are_not_waited_for(
    op: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A group that no kernel brings to its end."""
    from zspa_kernels.backends.triton import _common

    want = gpu_phases.trace(op, "cpu")
    real, launches = gpu_phases.call, list[object]()

    def nothing(*_: object, **__: object) -> None:
        launches.append(0)
        assert len(launches) < 1000

    monkeypatch.setattr(_common, "launch", nothing)
    monkeypatch.setattr(gpu_phases, "call", lambda op, device: real(op, "cpu"))
    monkeypatch.setattr(gpu_phases, "interpreted", lambda op: want)
    assert gpu_phases.main(op) == 1
    assert len(launches) == len(want[1]) + 1
    assert f"{op}: _diversity_norm_kernel (launch 0) leaves" in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_one_launch_comes_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interpreter stands for the GPU; what is wrong only then is not blamed on a phase."""
    real, calls, wrong_at = gpu_phases.call, list[str](), 0

    def on_cpu(op: str, device: str) -> torch.Tensor:
        calls.append(device)
        return real(op, "cpu") + int(device == "cuda" and calls.count("cuda") == wrong_at)

    monkeypatch.setattr(gpu_phases, "call", on_cpu)
    monkeypatch.setattr(gpu_phases, "interpreted", lambda op: gpu_phases.trace(op, "cpu"))
    for turn, status, text in (
        (0, 0, "launches of phases are right; now one launch"),
        (1, 1, "suppress: picks ["),
        (2, 1, "suppress: one launch picks ["),
    ):
        calls.clear()
        wrong_at = turn
        assert gpu_phases.main("suppress") == status
        assert text in capsys.readouterr().out


@pytest.mark.usefixtures("small")
def test_the_interpreter_of_triton_3_6_runs_with_a_new_numpy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def index(value: Any) -> Any:
        raise TypeError("only 0-dimensional arrays can be converted to Python scalars")

    def as_of_3_6(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", index)

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", as_of_3_6)
    with pytest.raises(interpreter.InterpreterError):
        gpu_phases.call("diversity", "cpu")
    take_any_numpy()
    assert gpu_phases.call("diversity", "cpu").shape == (1, 4)


def test_what_differs() -> None:
    one = [("a", {"x": torch.tensor([1.0, 2.0])}), ("b", {"key": torch.tensor([(5 << 32) + 7])})]
    near = [("a", {"x": torch.tensor([1.0, 2.0])}), ("b", {"key": torch.tensor([(6 << 32) + 7])})]
    assert gpu_phases.difference(one, near) is None
    near[1][1]["key"] += 1
    assert str(gpu_phases.difference(one, near)).startswith("b (launch 1) leaves 1 of 1 values")
    assert gpu_phases.difference(one[:1], one) == "1 launches instead of 2"
    assert gpu_phases.difference(one[1:], one) == "launch 0 is b, and should be a"


def test_every_op_of_one_launch_has_a_job() -> None:
    names = {job.name for job in gpu.correctness()}
    assert {f"phases of {op}" for op in gpu_phases.OPS} <= names
