# SPDX-License-Identifier: Apache-2.0
"""Who runs what, and what a caller hears when nobody can."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import zspa_kernels as zk
from python_tests import test_contract_errors, test_vmap
from python_tests.runners import spread, turned
from zspa_kernels import _native
from zspa_kernels._ops import dispatch, register

CPU = torch.device("cpu")
COMMAND = "build it with `pip install .` or `make build`"


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The native module is missing; what was chosen before and after is forgotten."""
    why = f"the native module is not built ({COMMAND})"
    monkeypatch.setattr(_native, "_load", lambda: (None, why))
    for cached in (dispatch.choose, dispatch._warn_once):
        cached.cache_clear()
    yield
    for cached in (dispatch.choose, dispatch._warn_once):
        cached.cache_clear()


def tokens() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("op", dispatch.OPS)
@pytest.mark.parametrize("backend", dispatch.BACKENDS)
def test_a_backend_without_a_reason_loads(backend: str, op: str) -> None:
    reason = dispatch.why_not(backend, op, CPU)
    if reason is None:
        assert callable(dispatch.load(backend, op))
    else:
        assert reason


def tables(op: str) -> Iterator[tuple[str, bool]]:
    """What a new op is added to, and whether `op` is there; see CONTRIBUTING.md."""
    tests = {path.name: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
    yield "api.py", op in zk.__all__
    yield "test_contract_errors.py", op in test_contract_errors.OPS
    yield "test_opcheck.py", f'"{op}"' in tests["test_opcheck.py"]
    yield "any test that calls it", any(f"zk.{op}(" in text for text in tests.values())
    if not op.endswith("_varlen"):
        yield "_BATCHED of register.py", op in register._BATCHED
        yield "test_vmap.py", op in test_vmap.OPS
        yield "_batches of test_dispatch.py", op in _batches()


#: The ops of a projector stand behind one function, and have their tables in test_sensitivity_*.
SELECTIONS = [op for op in dispatch.OPS if not op.startswith("sensitivity")]


@pytest.mark.parametrize("op", SELECTIONS)
def test_nothing_of_an_op_is_forgotten(op: str) -> None:
    missing = [table for table, there in tables(op) if not there]
    assert not missing, f"{op} is not in {', '.join(missing)}; see CONTRIBUTING.md, Add an op"


def test_every_registered_op_has_backends() -> None:
    assert set(register._OPS) == set(dispatch.OPS), "OPS of dispatch.py is what can be called"


def _batches() -> dict[str, tuple[Any, ...]]:
    """The arguments of the ops of a batch, `[2, 6, 4]`, none left out."""
    draw = torch.Generator().manual_seed(1)
    visual, mask = torch.randn(2, 6, 4, generator=draw), torch.arange(12).view(2, 6) % 5 != 1
    words, heard = torch.randn(2, 3, 4, generator=draw), torch.arange(6).view(2, 3) != 4
    weights, seeds = torch.rand(2, 6, generator=draw), torch.tensor([[0], [2]])
    places, benefits = torch.rand(2, 2, 6, 2, generator=draw).unbind(0)
    return {
        "select": (visual, words, 2, 3, mask, heard, "mean", False),
        "relevance_topk": (visual, words, 4, mask, heard, "none_max"),
        "diversity": (visual, 4, seeds, weights, mask),
        "dpp": (visual, 4, weights, mask),
        "facility_location": (visual, 4, benefits.mT.contiguous(), weights, mask, 0.5, 2.0),
        "min_sum": (visual, 4, seeds, mask),
        "suppress": (visual, weights, 4, 0.3, True, mask),
        "soft_suppress": (visual, weights, 4, 2.0, "scale", places, 0.5, 0.7, mask),
    }


@pytest.mark.parametrize("op", [op for op in dispatch.OPS if op in _batches()])
@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_an_image_is_a_batch_of_one(
    backend: str, op: str, require_backend: Callable[..., None]
) -> None:
    require_backend(backend)
    run, arguments = dispatch.load(backend, op), _batches()[op]
    whole = run(*arguments)
    alone = run(*(x[1] if isinstance(x, torch.Tensor) else x for x in arguments))
    if op != "relevance_topk":
        whole, alone = (whole,), (alone,)
    for both, one in zip(whole, alone, strict=True):
        assert one.shape == both.shape[1:]
        assert torch.equal(one, both[1])


@pytest.mark.parametrize("op", list(_batches()))
@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_every_argument_may_have_strides(
    backend: str, op: str, require_backend: Callable[..., None]
) -> None:
    require_backend(backend)
    run, arguments = getattr(register, op), _batches()[op]
    right = run(*arguments, backend=backend)
    for form in (spread, turned):
        found = run(*map(form, arguments), backend=backend)
        pairs = zip(found, right, strict=True) if op == "relevance_topk" else [(found, right)]
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_ragged_arguments_may_have_strides_and_images_are_cut(
    backend: str, require_backend: Callable[..., None]
) -> None:
    """Images of 5 and 7 tokens, of which `max_seqlen` leaves 4."""
    require_backend(backend)
    draw = torch.Generator().manual_seed(1)
    visual, words = torch.randn(12, 4, generator=draw), torch.randn(5, 4, generator=draw)
    weights, benefits = torch.rand(12, generator=draw), torch.rand(3, 12, generator=draw)
    weights[4] = weights[9:] = 9.0  # what is cut off would be picked first
    ends, spans = torch.tensor([0, 5, 12]), torch.tensor([[0, 2], [1, 5]])
    core, picks = torch.tensor([1, 1]), torch.tensor([2, 3])
    parts, counts = (slice(0, 4), slice(5, 9)), picks.tolist()

    def same(op: str, arguments: tuple[Any, ...], alone: list[torch.Tensor]) -> None:
        found = getattr(register, op)(*map(spread, arguments), backend=backend)
        right = [one + part.start for one, part in zip(alone, parts, strict=True)]
        assert torch.equal(found, torch.cat(right)), op

    alone = [
        zk.select(visual[part], words[slice(*own)], k_core=c, k_diverse=k, sorted=False)
        for part, own, c, k in zip(parts, spans.tolist(), core.tolist(), counts, strict=True)
    ]
    same("select_varlen", (visual, ends, words, spans, core, picks, 7, 4, "mean", False), alone)
    alone = [
        zk.diversity(visual[part], k, weights=weights[part])
        for part, k in zip(parts, counts, strict=True)
    ]
    same("diversity_varlen", (visual, ends, picks, 5, 4, weights), alone)
    alone = [
        zk.dpp(visual[part], k, weights=weights[part])
        for part, k in zip(parts, counts, strict=True)
    ]
    same("dpp_varlen", (visual, ends, picks, 5, 4, weights), alone)
    alone = [zk.min_sum(visual[part], k) for part, k in zip(parts, counts, strict=True)]
    same("min_sum_varlen", (visual, ends, picks, 5, 4), alone)
    alone = [
        zk.facility_location(visual[part], k, benefits=benefits[:, part], weights=weights[part])
        for part, k in zip(parts, counts, strict=True)
    ]
    rows = (benefits, weights)
    same("facility_location_varlen", (visual, ends, picks, 5, 4, *rows), alone)


@pytest.mark.parametrize("op", dispatch.OPS)
def test_auto_on_cpu_is_the_native_backend(op: str) -> None:
    if _native.reason() is None:
        assert dispatch.choose(op, CPU) is dispatch.load("cpp", op)


def test_named_backends_run_or_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(backend: Any) -> torch.Tensor:
        return zk.diversity(tokens(), 2, backend=backend)

    assert torch.equal(run("reference"), run("auto"))
    with pytest.raises(ValueError, match=r"^diversity: backend must be one of auto, .* got str 'f"):
        run("fast")
    with pytest.raises(TypeError, match=r"^diversity: backend must be one of auto, .* got None"):
        run(None)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(NotImplementedError, match=r"^diversity: backend 'triton' cannot run: CPU "):
        run("triton")


def test_other_devices_get_a_reason_for_each_backend() -> None:
    with pytest.raises(
        NotImplementedError, match=r"^select: visual must be on .* got mps"
    ) as error:
        dispatch.choose("select", torch.device("mps"))
    for backend in dispatch.BACKENDS:
        assert f"{backend}: " in str(error.value)


def test_unknown_names_are_value_errors() -> None:
    with pytest.raises(ValueError, match="backend must be one of"):
        dispatch.why_not("fast", "select", CPU)
    with pytest.raises(ValueError, match="op must be one of"):
        dispatch.why_not("cpp", "chosen", CPU)


def test_cpp_refuses_other_devices() -> None:
    reason = dispatch.why_not("cpp", "select", torch.device("cuda"))
    assert reason == "it runs on cpu tensors, not on cuda"


def test_the_argument_whose_device_decides_is_named() -> None:
    for op in dispatch.OPS:
        name = "visual"
        if op.startswith("sensitivity"):
            name = "preactivation" if op.endswith("_hidden") else "features"
        with pytest.raises(NotImplementedError, match=rf"^{op}: {name} must be on a device a back"):
            dispatch.choose(op, torch.device("mps"))


def test_triton_wants_itself_and_a_gpu_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dispatch.why_not("triton", "select", gpu) == "torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    for capability in ((8, 0), (9, 0), (7, 5)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        reason = dispatch.why_not("triton", "select", gpu)
        assert (reason is None) == (capability >= (8, 0)), reason
        assert reason is None or "compute capability 8.0 or newer" in reason
    dispatch.choose.cache_clear()
    with pytest.raises(NotImplementedError, match=r"^select: .* 8\.0 or newer"):
        dispatch.choose("select", gpu)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert dispatch.why_not("triton", "select", gpu) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert dispatch.why_not("triton", "select", gpu) == (
        "triton is not installed: pip install triton"
    )
    with pytest.raises(ImportError, match=r"^select: backend 'triton' cannot run: triton is not"):
        dispatch.named("triton", "select", CPU)


def test_the_interpreter_must_have_been_on_when_triton_was_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert dispatch.why_not("triton", "select", CPU) is None  # the whole session interprets
    with monkeypatch.context() as late:
        late.setattr("triton.language.cdiv", len)
        reason = dispatch.why_not("triton", "select", CPU)
        assert reason is not None
        assert "before importing triton" in reason
    monkeypatch.delenv("TRITON_INTERPRET")
    assert dispatch.why_not("triton", "select", CPU) == reason


@pytest.mark.usefixtures("not_built")
def test_without_a_compiler_the_reference_runs_after_one_warning() -> None:
    with pytest.warns(UserWarning, match="reference backend, which is slow: .*make build") as seen:
        first = zk.select(tokens(), keep=2)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = zk.diversity(tokens(), 2)
        prompt = tokens()[:2]
        ragged = zk.select_varlen([tokens(), tokens()[:3]], prompt, keep=2, core_ratio=0.5)
        own = zk.select_varlen([tokens()], [prompt], keep=2, core_ratio=0.5)
        best = zk.primitives.topk(tokens()[:, 0], 2)
    assert torch.equal(first, second.sort().values)
    assert torch.equal(ragged[0], zk.select(tokens(), prompt, keep=2, core_ratio=0.5))
    assert torch.equal(own[0], ragged[0])
    assert torch.equal(best, tokens()[:, 0].topk(2).indices)


@pytest.mark.usefixtures("not_built")
def test_a_named_backend_that_is_not_built_is_an_import_error() -> None:
    with pytest.raises(ImportError, match=r"^diversity: backend 'cpp' cannot run: .*make build"):
        zk.diversity(tokens(), 2, backend="cpp")
    plan = zk.SensitivityPlan(torch.ones(3, 4), None, torch.ones(2, 3), "gelu")
    with pytest.raises(ImportError, match=r"^SensitivityPlan: backend 'cpp' cannot run: "):
        plan(tokens(), backend="cpp")
