# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show; `python -m bench.gpu` runs the same checks without pytest."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import zspa_kernels as zk
from bench import gpu_check, gpu_checks, gpu_greedy, gpu_sensitivity, gpu_suppress, gpu_timing
from zspa_kernels._ops import dispatch
from zspa_kernels.backends.triton._common import INTERPRETED

# What needs no GPU is tried on the CPU backend, so that a check that cannot pass, or cannot fail,
# is found here and not on a machine that was lent for an hour.
ON_CPU = (
    *("exact_tokens", "law_core_then_diversity", "law_rows", "law_seeds", "law_strides"),
    "sensitivity_cases",
)


@pytest.mark.gpu
@pytest.mark.raw_memory
@pytest.mark.parametrize("name", gpu_checks.CHECKS)
def test_check(name: str, require_backend: Callable[..., None]) -> None:
    require_backend("triton", "select", "cuda")
    if INTERPRETED.value:
        pytest.skip("Triton interprets in this session: TRITON_INTERPRET=0 pytest -m gpu")
    gpu_checks.CHECKS[name]()


def test_what_torch_says_of_its_debug_mode_is_no_error() -> None:
    """It says so once, when a check first asks for errors where the host waits."""
    what = "Synchronization debug mode is a prototype feature and does not yet detect all"
    warnings.warn(what, UserWarning, stacklevel=1)


@pytest.mark.raw_memory
@pytest.mark.parametrize("name", ON_CPU)
def test_the_checks_pass_on_a_backend_that_is_right(
    name: str, monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("cpp")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    gpu_checks.CHECKS[name]()


# Those that need a device, whose answer is not of an op, or that take seconds.
NOT_ON_CPU = {"errors", "law_ambient_state", "law_pairs", "facility_location_turns"} | {
    name
    for name, check in gpu_checks.CHECKS.items()
    if check.__module__ == "bench.gpu_device_checks" or name.endswith("real_sizes")
}


@pytest.mark.parametrize("name", sorted(gpu_checks.CHECKS.keys() - NOT_ON_CPU))
def test_no_check_passes_where_kernels_do_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    """A law may hold among answers without picks."""
    require_backend("cpp")

    def nothing(op: str, device: torch.device) -> Callable[..., Any]:
        right = dispatch.load("cpp", op)

        def call(*arguments: Any) -> Any:
            found = right(*arguments)
            for x in found if isinstance(found, tuple) else (found,):
                x.fill_(torch.nan if x.is_floating_point() else -1)
            return found

        return call

    monkeypatch.setattr(dispatch, "choose", nothing)
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_check, "DTYPE", torch.bfloat16)
    monkeypatch.setattr(gpu_check, "IMAGES", 3)
    with pytest.raises(AssertionError):
        gpu_checks.CHECKS[name]()


def test_what_is_wrong_is_said_in_a_line() -> None:
    picks = torch.arange(300).view(3, 100)
    gpu_check.alike(picks, picks.clone(), "equal")
    wrong = picks.clone()
    wrong[1, 7] = wrong[2, 3] = -1
    with pytest.raises(
        AssertionError, match=r"^alone 3: 2 of 300 values are wrong, the first at"
    ) as e:
        gpu_check.alike(wrong, picks, "alone 3")
    assert str(e.value).endswith(" [1, 7]: -1 instead of 107")
    with pytest.raises(AssertionError, match=r"^x: \[2, 100\] values instead of \[3, 100\]$"):
        gpu_check.same(picks[:2], picks, "x")
    with pytest.raises(AssertionError, match=r"^again: nothing was picked$"):
        gpu_check.alike(picks * 0 - 1, picks * 0 - 1, "again")
    with pytest.raises(AssertionError, match=r"^again: a token was picked twice$"):
        gpu_check.alike(picks * 0, picks * 0, "again")
    with pytest.raises(AssertionError, match="nan instead of nan"):
        gpu_check.same(torch.tensor([torch.nan]), torch.tensor([torch.nan]), "x")


@pytest.mark.parametrize("op", ["dpp", "facility_location", "min_sum"])
def test_the_checks_of_greedy_ops_pass_and_fail(
    op: str, monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("cpp")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    cases = gpu_greedy._cases
    monkeypatch.setattr(gpu_greedy, "_cases", lambda *absent: cases(*absent)[::40])
    monkeypatch.setattr(gpu_greedy, "DTYPES", (torch.bfloat16,))
    for name in (f"{op}_cases", f"{op}_laws"):
        gpu_checks.CHECKS[name]()
    right = getattr(zk, op)

    def wrong(visual: torch.Tensor, k: int, **given: object) -> torch.Tensor:
        picks: torch.Tensor = right(visual, k, **given)
        return picks.flip(-1) if visual.dim() == 2 else picks

    monkeypatch.setattr(gpu_greedy.zk, op, wrong)
    for name in (f"{op}_cases", f"{op}_laws"):
        with pytest.raises(AssertionError):
            gpu_checks.CHECKS[name]()


@pytest.mark.parametrize("op", ["suppress", "soft_suppress"])
def test_the_checks_of_suppression_pass_and_fail(
    op: str, monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("cpp")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_suppress, "CASES", ((50, 33), (80, 70)))
    monkeypatch.setattr(gpu_suppress, "AXES", 9)
    monkeypatch.setattr(gpu_check, "IMAGES", 3)
    monkeypatch.setattr(gpu_suppress, "DTYPES", (torch.bfloat16,) * 3)
    of_op = {"suppress": ("cases", "at_the_threshold", "laws"), "soft_suppress": ("cases", "laws")}
    names = [f"{op}_{name}" for name in of_op[op]]
    for name in names:
        gpu_checks.CHECKS[name]()
    right = getattr(zk, op)

    def wrong(visual: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        picks: torch.Tensor = right(visual, *given, **more)
        return picks.flip(-1) if visual.dim() == 2 else picks

    monkeypatch.setattr(gpu_suppress.zk, op, wrong)
    for name in names:
        with pytest.raises(AssertionError):
            gpu_checks.CHECKS[name]()


def test_suppression_is_timed_beside_its_judge(
    monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("cpp")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_timing, "best", lambda call: float(call().sum()))
    monkeypatch.setattr(gpu_timing, "eager", lambda call: float(call().sum()))
    records = list(gpu_suppress.timing(((2, 40, 32, 9),)))
    assert [record["status"] for record in records] == ["verified"] * 2
    assert all(record["ms"] > 0 and record["loop_ms"] > 0 for record in records)
    right = zk.suppress
    monkeypatch.setattr(gpu_suppress.zk, "suppress", lambda *a, **k: right(*a, **k).flip(-1))
    wrong, other = gpu_suppress.timing(((2, 40, 32, 9),))
    assert wrong["status"] == "wrong"
    assert other["status"] == "verified"
    assert "ms" not in wrong


def test_the_calls_of_the_host_checks_are_right(
    monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("cpp")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    visual = gpu_check.draw(3, 60, 32)
    results = {n: c() for n, c in gpu_check.calls_of(visual, visual[:, 1:5] + 1).items()}
    rows = results["select_varlen"].view(3, 18) - torch.arange(3)[:, None] * 60
    assert torch.equal(rows, torch.ops.zspa.select(visual, visual[:, 1:5] + 1, 9, 9))
    assert all(bool((picks >= 0).all()) for picks in results.values())


def test_sensitivity_is_timed_beside_its_error(
    monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("cpp")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_timing, "best", lambda call: float(call().abs().sum()))
    records = list(gpu_sensitivity.timing(n=20, d=32, width=300, m=3))
    assert len(records) == 5
    assert all(record["ms"] > 0 for record in records)
    assert sum(record["error"] is not None for record in records) == 2
    monkeypatch.setattr(gpu_sensitivity, "error", lambda scores, right: 0.5)
    wrong = [record for record in gpu_sensitivity.timing(20, 32, 300, 3) if "status" in record]
    assert len(wrong) == 2
    assert all("ms" not in record for record in wrong)


def test_greedy_ops_are_timed_beside_their_judges(
    monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("cpp")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_timing, "best", lambda call: float(call().sum()))
    monkeypatch.setattr(gpu_timing, "eager", lambda call: float(call().sum()))
    records = list(gpu_greedy.timing(((2, 40, 32, 9),)))
    assert [record["status"] for record in records] == ["verified"] * 3
    assert all(record["ms"] > 0 and record["loop_ms"] > 0 for record in records)
    right = zk.dpp
    monkeypatch.setattr(gpu_greedy.zk, "dpp", lambda *a, **k: right(*a, **k).flip(-1))
    wrong, *others = gpu_greedy.timing(((2, 40, 32, 9),))
    assert wrong["status"] == "wrong"
    assert {other["status"] for other in others} == {"verified"}
    assert "ms" not in wrong


def test_a_wrong_backend_fails_the_checks(
    monkeypatch: pytest.MonkeyPatch, require_backend: Callable[..., None]
) -> None:
    require_backend("cpp")
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    right = gpu_checks.zk.diversity

    def wrong(visual: torch.Tensor, k: int, **given: object) -> torch.Tensor:
        picks = right(visual, k, **given)  # type: ignore[arg-type]
        return picks.flip(-1) if visual.dim() == 2 else picks

    monkeypatch.setattr(gpu_checks.zk, "diversity", wrong)
    for name in ("law_rows", "diversity_large_cases"):
        with pytest.raises(AssertionError):
            gpu_checks.CHECKS[name]()
