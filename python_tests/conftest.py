# SPDX-License-Identifier: Apache-2.0
"""What holds for the whole session: Triton interprets, and fresh memory is poisoned."""

from __future__ import annotations

import os

# Read by triton when it is imported, so it is set before anything can import it. Tests that compile
# ahead of time do so in a child process without it. Tests marked `gpu` want TRITON_INTERPRET=0.
os.environ.setdefault("TRITON_INTERPRET", "1")
# cuBLAS is deterministic only with this; the poisoned memory below comes with deterministic mode.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Processes that test at the same time share the cores: a thread without work sleeps.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch

from bench.interpreter import take_any_numpy
from python_tests import quicker

hypothesis.settings.register_profile(
    "zspa", derandomize=True, deadline=None, max_examples=50, database=None
)
hypothesis.settings.load_profile("zspa")


def _why_not(backend: str, op: str = "select", device: str = "cpu") -> str | None:
    from zspa_kernels._ops import dispatch

    return dispatch.why_not(backend, op, torch.device(device))


def _required() -> list[str]:
    return [name for name in os.environ.get("ZSPA_REQUIRE_BACKENDS", "").split(",") if name]


def pytest_report_header() -> list[str]:
    from zspa_kernels._ops import dispatch

    reasons = {name: _why_not(name) for name in dispatch.BACKENDS}
    lines = [f"torch: {torch.__version__}, {torch.get_num_threads()} threads"]
    return lines + [f"backend {name}: {why or 'ready'}" for name, why in reasons.items()]


def pytest_sessionstart() -> None:
    for name in _required():
        why = _why_not(name)
        if why is not None:
            pytest.exit(f"required backend {name} is missing: {why}", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests come first, so that of several processes none is left alone with one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def require_backend() -> Callable[..., None]:
    """`require_backend(name, op="select", device="cpu")`: skips with the reason why it cannot run.

    A backend named in ZSPA_REQUIRE_BACKENDS (comma separated) fails the test instead, on every
    device this machine has.
    """

    def require(name: str, op: str = "select", device: str = "cpu") -> None:
        why = _why_not(name, op, device)
        here = device == "cpu" or torch.cuda.is_available()
        if why is not None and here and name in _required():
            pytest.fail(f"required backend {name} cannot run {op}: {why}")
        if why is not None:
            pytest.skip(f"{name}: {why}")

    return require


@pytest.fixture(scope="session", autouse=True)
def quicker_interpreter() -> Iterator[None]:
    """Triton's interpreter does not prepare the same thing again and again."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["TRITON_INTERPRET"] == "1":  # its compiler stays as it is
            take_any_numpy()
            quicker.use(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def masks_of_bools() -> Iterator[None]:
    """Every version of Triton's interpreter refuses masks of integers, as that of 3.9 does."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            from triton.runtime.interpreter import InterpreterBuilder
        except ImportError:
            yield
            return
        for name, at in (("create_masked_load", 1), ("create_masked_store", 2)):
            access = getattr(InterpreterBuilder, name)

            def check(builder: Any, *args: Any, access: Any = access, at: int = at) -> Any:
                if args[at].data.dtype != bool:
                    raise ValueError(f"a mask must be of bools, got {args[at].data.dtype}")
                return access(builder, *args)

            patch.setattr(InterpreterBuilder, name, check)
        yield


@pytest.fixture(autouse=True)
def one_thread_for_tiny_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads of models this small only wait for one another, most of all on a busy machine."""
    if not hasattr(request.module, "vlms"):
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch.empty gives NaN or the largest integer: an element nobody writes is seen."""
    if request.node.get_closest_marker("raw_memory"):
        yield
        return
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        yield
    torch.set_deterministic_debug_mode(mode)
