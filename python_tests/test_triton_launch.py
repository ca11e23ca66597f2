# SPDX-License-Identifier: Apache-2.0
"""Kernels that are compiled are launched without Triton's search, and never in a wrong form."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import CompiledKernel

from zspa_kernels.backends.triton import _common, _compiled

BACKEND = CUDABackend(GPUTarget("cuda", 90, 32))
MEMORY = torch.zeros(64, dtype=torch.float32)
EDGES = (0, 1, 2, 15, 16, -1, -16, 2**31 - 1, 2**31, 2**31 + 8, -(2**31), -(2**31) - 1, 2**40)
CURRENT = torch.device("cuda")
WHOLE = st.sampled_from(EDGES) | st.integers(-(2**62), 2**62)
TENSORS = tuple(
    MEMORY.view(dtype)[start:]
    for dtype in (torch.float32, torch.int32, torch.bfloat16, torch.int64, torch.bool)
    for start in range(9)
)


def forms(x: Any) -> list[Any]:
    """How Triton specialises a kernel for an argument, if its parameter is to be, and if not."""
    return [native_specialize_impl(BACKEND, x, False, some, True) for some in (True, False)]


def kind(x: Any) -> Any:
    return _compiled.kinds((x,))[0]


@given(WHOLE, WHOLE)
def test_integers_of_one_kind_need_one_form(a: int, b: int) -> None:
    assert (kind(a) == kind(b)) == (forms(a) == forms(b))


def test_arguments_of_one_kind_need_one_form() -> None:
    arguments = (*TENSORS, *EDGES, None, 0.0, 1.0, 16.0, True, False)
    for a, b in combinations(arguments, 2):
        if kind(a) == kind(b):
            assert forms(a) == forms(b), (a, b)
    assert len({kind(x) for x in TENSORS}) == 10  # and no more than there are


def test_kinds_of_several_arguments_tell_them_apart() -> None:
    """Of a tensor there are two, so nothing else may look like one of them."""
    arguments = (MEMORY, MEMORY[1:], 1, 2, 16, None, True, 1.0)
    lists = [args for length in (1, 2, 3) for args in product(arguments, repeat=length)]
    for a, b in combinations(lists, 2):
        if _compiled.kinds(a)[0] == _compiled.kinds(b)[0]:
            assert list(map(forms, a)) == list(map(forms, b)), (a, b)


class Kernel:
    """Notes what is launched by way of Triton's search, and what without it."""

    __name__ = "_a_kernel"
    arg_names = ("x", "n", "LAST", "FIRST")

    def __init__(self) -> None:
        self.searched: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def search(*args: Any, **options: Any) -> Compiled:
            self.searched.append((grid, args, options))
            hook = triton.knobs.runtime.jit_cache_hook
            if hook is not None:
                hook()
            return Compiled(self.launched)

        return search


class Compiled:
    """Has of `triton.compiler.CompiledKernel` what a launch needs."""

    function, packed_metadata = 1234, (4, 1, 0)

    def __init__(self, launched: list[tuple[Any, ...]]) -> None:
        self.launched = launched

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args: self.launched.append((grid, "by Triton", args))

    def run(self, x: int, y: int, z: int, stream: int, *more: Any) -> None:
        handles, hooks, args = more[:2], more[2:5], more[5:]
        assert handles == (self.function, self.packed_metadata)
        assert hooks == (None, None, None)
        self.launched.append(((x, y, z), stream, args))


class Driver:
    """The stream of device 1 is 11."""

    @staticmethod
    def get_current_stream(index: int) -> int:
        return 10 + index


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The current device, and whether it captures."""
    state = [0, 0]

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            self.before, state[0] = state[0], self.index

        def __exit__(self, *_: object) -> None:
            state[0] = self.before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: state[0])
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(state[1]))
    monkeypatch.setattr(_compiled, "_forms", {})
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver)
    return state


def test_a_form_that_is_known_is_launched_without_a_search(gpu: list[int]) -> None:
    kernel, device = Kernel(), torch.device("cuda", 0)
    options = {"FIRST": 1, "LAST": 2, "num_warps": 4}
    _common.launch(kernel, 3, device, MEMORY, 32, **options)
    gpu[1] = 1  # and nothing has to be compiled while a graph is captured
    _common.launch(kernel, 5, device, MEMORY[4:], 48, **options)
    assert len(kernel.searched) == 1
    ((grid, stream, args),) = kernel.launched
    assert (grid, stream) == ((5, 1, 1), 10)
    # An address in place of the tensor, and constants in the order of parameters.
    assert args == (MEMORY[4:].data_ptr(), 48, 2, 1)


def test_a_launch_takes_the_current_stream_of_its_device(gpu: list[int]) -> None:
    kernel = Kernel()
    for index in (0, 1, 0, 1, 1):
        _common.launch(kernel, 1, torch.device("cuda", index), MEMORY, 32, FIRST=1, LAST=2)
    assert [stream for _, stream, _ in kernel.launched] == [10, 11, 11]


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_launches_that_are_watched_are_triton_s(
    gpu: list[int], monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    kernel, runtime = Kernel(), triton.knobs.runtime

    def launch() -> str:
        _common.launch(kernel, 3, torch.device("cuda", 0), MEMORY, 32, FIRST=1, LAST=2)
        return "Triton's" if kernel.launched and kernel.launched[-1][1] == "by Triton" else "ours"

    assert [launch(), launch()] == ["ours"] * 2
    getattr(runtime, hook).add(print)
    try:
        assert launch() == "Triton's"
        assert kernel.launched[-1] == ((3, 1, 1), "by Triton", (MEMORY, 32, 2, 1))
    finally:
        getattr(runtime, hook).remove(print)
    assert launch() == "ours"
    monkeypatch.setattr(runtime, hook, print)  # a hook that is no chain
    assert launch() == "Triton's"


def test_a_triton_that_is_not_known_launches_itself(
    gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compiled, "_KNOWN", False)
    kernel = Kernel()
    for _ in range(2):
        _common.launch(kernel, 3, torch.device("cuda", 0), MEMORY, 32, FIRST=1, LAST=2)
    assert kernel.launched == [((3, 1, 1), "by Triton", (MEMORY, 32, 2, 1))]


def test_a_compiled_kernel_is_called_as_triton_calls_it() -> None:
    """What is read here is what `_compiled` was written for; a Triton that differs is not known."""
    assert _compiled._KNOWN
    lines = " ".join(inspect.getsource(CompiledKernel.__getitem__).split())
    assert (
        "self.run(grid[0], grid[1], grid[2], stream, self.function, self.packed_metadata, "
        "launch_metadata, knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *args)"
    ) in lines


@pytest.mark.parametrize(
    "change",
    [
        {"x": MEMORY[1:]},
        {"x": MEMORY.view(torch.int32)},
        {"x": None},
        {"n": 1},
        {"n": 33},
        {"n": 2**31},
        {"device": torch.device("cuda", 1)},
        {"together": True},
        {"num_warps": 8},
        {"FIRST": 3},
    ],
)
def test_another_form_is_searched_for(gpu: list[int], change: dict[str, Any]) -> None:
    kernel = Kernel()

    def launch(x: Any = MEMORY, n: int = 32, device: torch.device = CURRENT, **more: Any) -> None:
        _common.launch(kernel, 3, device, x, n, **{"FIRST": 1, "LAST": 2, "num_warps": 4, **more})

    for known in (0, 1):
        launch()
        launch(**change)
        assert (len(kernel.searched), len(kernel.launched)) == (2, 2 * known)
    assert gpu[0] == 0


def test_another_kernel_is_searched_for(gpu: list[int]) -> None:
    for _ in range(2):
        kernel = Kernel()
        _common.launch(kernel, 1, torch.device("cuda", 0), 5, FIRST=1, LAST=2, n=3)
        assert len(kernel.searched) == 1
    kept = weakref.ref(kernel)
    del kernel
    assert kept() is not None  # no other can get its id


def test_defaults_are_left_to_the_search(gpu: list[int]) -> None:
    kernel = Kernel()
    for _ in range(2):
        _common.launch(kernel, 1, torch.device("cuda", 0), MEMORY, 16, FIRST=1)
    assert len(kernel.searched) == 2


def test_on_amd_sizes_of_tensors_count_as_well(
    gpu: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    kernel = Kernel()
    for _ in range(2):
        _common.launch(kernel, 1, torch.device("cuda", 0), MEMORY, 16, FIRST=1, LAST=2)
    assert len(kernel.searched) == 2


def test_kernels_are_launched_on_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    @contextlib.contextmanager
    def device(which: int) -> Iterator[None]:
        events.append(which)
        yield
        events.append("back")

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *a, **k: events.append(grid)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    _common.launch(Kernel(), 3, torch.device("cuda", 1))
    assert events == [1, (3,), "back"]
    _common.launch(Kernel(), 0, torch.device("cuda", 1))
    assert len(events) == 3  # an empty grid is not launched
    _common.launch(Kernel(), 2, torch.device("cuda", 0))
    assert events[3:] == [(2,)]  # it is the current one already


@pytest.mark.parametrize("compiled", [True, False])
def test_nothing_is_compiled_during_a_capture(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = triton.knobs.runtime
    launched: list[dict[str, Any]] = []

    class Kernel:
        __name__ = "_a_kernel"

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def run(*args: Any, **options: Any) -> None:
                if not compiled:  # what Triton does before it compiles, see JITFunction.run
                    hooks.jit_cache_hook(key="", repr="", fn=None, compile={})
                launched.append(options)

            return run

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    before = hooks.jit_cache_hook
    if compiled:
        _common.launch(Kernel(), 3, torch.device("cuda", 0), together=True, num_warps=4)
        assert launched == [{"num_warps": 4} | _common.compiler_options(together=True)]
    else:
        with pytest.raises(RuntimeError, match=r"_a_kernel must be compiled .* zk\.warmup\("):
            _common.launch(Kernel(), 3, torch.device("cuda", 0))
    assert hooks.jit_cache_hook is before
