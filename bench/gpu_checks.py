# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: `python -m bench.gpu_checks NAME` runs one check.

A check is a function that raises AssertionError.

`bench.gpu` runs each in a process of its own, because a fault on a GPU spoils the process it
happens in; `python_tests/test_gpu.py` runs the same functions under pytest. Nothing but torch,
Triton and this package is needed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import zspa_kernels as zk
from zspa_kernels.testing import MODELS, bound, check_diversity, tokens
from zspa_kernels.testing.cases import (
    DTYPES,
    Case,
    judge_diversity,
    judge_relevance_topk,
    judge_select,
    large_special_cases,
    model_cases,
    pooling_cases,
    seed_and_weight_cases,
    special_cases,
)

#: Where the checks run; the tests of the checks themselves put a CPU here.
DEVICE = "cuda"

CHECKS: dict[str, Callable[[], None]] = {}


def _error(call: Callable[[], object], kind: type[Exception]) -> str:
    """The text of the error that a call must raise."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def check(function: Callable[[], None]) -> Callable[[], None]:
    """Enter a function into `CHECKS` by its name."""
    CHECKS[function.__name__] = function
    return function


# --- the cases of the tests -----------------------------------------------------------------------


def _moved(values: tuple[Any, ...]) -> list[Any]:
    return [x.to(DEVICE) if isinstance(x, Tensor) else x for x in values]


def _select(*case: Any) -> Tensor:
    visual, prompt, k_core, k_diverse, mask, prompt_mask, pooling = _moved(case)
    return zk.select(
        visual,
        prompt,
        k_core=k_core,
        k_diverse=k_diverse,
        visual_mask=mask,
        prompt_mask=prompt_mask,
        pooling=pooling,
        sorted=False,
    ).cpu()


def _relevance_topk(*case: Any) -> tuple[Tensor, Tensor]:
    visual, prompt, k, mask, prompt_mask, pooling = _moved(case)
    indices, scores = zk.relevance_topk(
        visual, prompt, k, visual_mask=mask, prompt_mask=prompt_mask, pooling=pooling
    )
    return indices.cpu(), scores.cpu()


def _diversity(*case: Any) -> Tensor:
    visual, k, seeds, weights, mask = _moved(case)
    return zk.diversity(visual, k, seeds=seeds, weights=weights, visual_mask=mask).cpu()


def _judge(judge: Callable[..., Any], run: Callable[..., Any], cases: list[Case]) -> None:
    for case in cases:
        try:
            judge(case, run, "triton")
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error


def _models() -> list[Case]:
    return [case for tier in ("small", "wide", "large") for case in model_cases(tier)]


@check
def select_cases() -> None:
    """Every standard case of select against the float64 oracle."""
    _judge(judge_select, _select, _models() + special_cases() + pooling_cases())


@check
def relevance_topk_cases() -> None:
    """Every standard case of relevance_topk."""
    _judge(judge_relevance_topk, _relevance_topk, _models() + special_cases() + pooling_cases())


@check
def diversity_cases() -> None:
    """Every standard case of diversity."""
    _judge(judge_diversity, _diversity, _models() + special_cases() + seed_and_weight_cases())


@check
def diversity_large_cases() -> None:
    """Special inputs, seeds and weights over many passes."""
    _judge(judge_diversity, _diversity, large_special_cases())


@check
def exact_tokens() -> None:
    """Where every cosine is exact, the picks are those of the reference, ties included."""
    for dtype in DTYPES:
        for n, d, core, diverse in ((300, 64, 0, 60), (577, 256, 40, 50), (1300, 64, 10, 200)):
            visual, prompt = tokens("exact", n, d, 1, dtype), tokens("exact", 3, d, 2, dtype)
            words = prompt if core else None
            arguments = (visual, words, core, diverse, None, None, "none_max")
            want = zk.select(
                visual, words, k_core=core, k_diverse=diverse, pooling="none_max",
                sorted=False, backend="reference",
            )  # fmt: skip
            assert torch.equal(_select(*arguments), want), (dtype, n, d)


@check
def real_sizes() -> None:
    """Thousands of channels: the picks are judged with the error bound of matrix units."""
    for model in MODELS:
        visual = tokens(model, 1296, 3584, 3, torch.bfloat16)
        got = _diversity(visual, 130, None, None, None)
        check_diversity(visual, got, 130, bound=bound(3584, "triton"))


# --- laws, bit for bit ----------------------------------------------------------------------------


def _tokens(batch: int, n: int, d: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    rows = [tokens(MODELS[i % len(MODELS)], n, d, i, dtype) for i in range(batch)]
    return torch.stack(rows).to(DEVICE)


def _same(a: Tensor, b: Tensor, what: object) -> None:
    assert torch.equal(a, b), f"{what}: {a.tolist()} != {b.tolist()}"


@check
def law_core_then_diversity() -> None:
    """Select is relevance_topk followed by diversity from its picks."""
    for dtype in DTYPES:
        visual = _tokens(3, 700, 256, dtype)
        prompt = visual[:, 5:9] + 1
        whole = zk.select(visual, prompt, k_core=30, k_diverse=60, sorted=False)
        core, _ = zk.relevance_topk(visual, prompt, 30)
        _same(whole, torch.cat((core, zk.diversity(visual, 60, seeds=core)), 1), dtype)


@check
def law_rows() -> None:
    """A row alone, in a batch (other groups of programs), padded, and as a ragged segment."""
    visual = _tokens(40, 300, 512)
    whole = zk.diversity(visual, 40)
    ragged = zk.diversity_varlen(list(visual), 40)
    padded = torch.cat((visual, visual.flip(1)), 1)
    mask = torch.arange(600, device=DEVICE).expand(40, 600) < 300
    _same(zk.diversity(padded, 40, visual_mask=mask), whole, "padded")
    for b in range(0, 40, 7):
        _same(zk.diversity(visual[b], 40), whole[b], f"alone {b}")
        _same(ragged[b], whole[b], f"ragged {b}")


@check
def law_seeds() -> None:
    """Picks continued from seeds are the rest of the picks: a Gram block and an update agree."""
    for dtype in DTYPES:
        visual = _tokens(2, 1500, 1024, dtype)
        whole = zk.diversity(visual, 200)
        for first in (1, 17, 130):
            rest = zk.diversity(visual, 200 - first, seeds=whole[:, :first])
            _same(rest, whole[:, first:], (dtype, first))
            _same(zk.diversity(visual, first), whole[:, :first], (dtype, first))


@check
def law_strides() -> None:
    """Memory order changes nothing."""
    visual = _tokens(2, 400, 257, torch.float16)
    want = zk.diversity(visual, 40)
    wide = torch.full((2, 400, 600), torch.nan, dtype=visual.dtype, device=DEVICE)
    wide[..., 3:260] = visual
    for view in (wide[..., 3:260], visual.transpose(1, 2).contiguous().transpose(1, 2)):
        _same(zk.diversity(view, 40), want, view.stride())


@check
def law_repetition() -> None:
    """The same call many times, at sizes with one and with many programs: a race would show."""
    for batch, n, d, k in (
        (1, 576, 512, 58),
        (7, 300, 128, 60),
        (1, 5000, 128, 300),
        (150, 40, 64, 9),
    ):
        visual = _tokens(batch, n, d)
        want = zk.diversity(visual, k)
        for turn in range(100):
            _same(zk.diversity(visual, k), want, (batch, n, turn))


@check
def law_ambient_state() -> None:
    """Autocast, matmul precision and default dtype change nothing."""
    visual = _tokens(1, 500, 300, torch.float32)
    want = zk.diversity(visual, 50)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        _same(zk.diversity(visual, 50), want, "autocast")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        _same(zk.diversity(visual, 50), want, "matmul precision")
    finally:
        torch.set_float32_matmul_precision(before)


# --- host and device ------------------------------------------------------------------------------


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """A synchronisation raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _calls(visual: Tensor, prompt: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every op of selection on one batch."""
    batch, n, d = visual.shape
    offsets = torch.arange(batch + 1, device=DEVICE) * n
    counts = torch.full((batch,), 9, device=DEVICE)
    spans = (torch.arange(batch + 1, device=DEVICE) * prompt.shape[1]).unfold(0, 2, 1)
    weights = torch.rand(batch, n, device=DEVICE)
    ops = torch.ops.zspa
    packed, words = visual.view(-1, d), prompt.reshape(-1, d)
    return {
        "select": lambda: ops.select(visual, prompt, 9, 30),
        "select without a core": lambda: ops.select(visual, None, 0, 30),
        "relevance_topk": lambda: ops.relevance_topk(visual, prompt, 9)[0],
        "diversity": lambda: ops.diversity(visual, 20, None, weights, None),
        "select_varlen": lambda: ops.select_varlen(
            packed, offsets, words, spans, counts, counts, 18 * batch, n
        ),
        "diversity_varlen": lambda: ops.diversity_varlen(packed, offsets, counts, 9 * batch, n),
    }


@check
def no_synchronisation() -> None:
    """No op waits for the device."""
    visual = _tokens(3, 700, 512)
    for call in _calls(visual, visual[:, 1:5] + 1).values():
        call()
        with no_sync():
            call()


@check
def graphs() -> None:
    """Captured once, replayed on inputs that were written after the capture."""
    inputs = [_tokens(3, 700, 512), _tokens(6, 700, 512)[3:] * 2]
    visual = inputs[0].clone()
    for name, call in _calls(visual, visual[:, 1:5]).items():
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
        for turn in (1, 0, 1):
            visual.copy_(inputs[turn])
            output.fill_(-7)
            graph.replay()
            _same(output, call(), f"{name}, replay {turn}")


@check
def capture_of_a_cold_kernel() -> None:
    """A kernel that is not compiled yet cannot be captured; the error says what to do."""
    visual = _tokens(1, 64, 64)
    torch.cuda.synchronize()

    def capture() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            zk.diversity(visual, 5)

    text = _error(capture, RuntimeError)
    assert "zk.warmup" in text, text
    zk.warmup("cuda", visual.dtype, num_tokens=64, dim=64)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = zk.diversity(visual, 5)
    graph.replay()
    _same(output, zk.diversity(visual, 5), "after warmup")


@check
def streams() -> None:
    """Two streams at the same time, neither the default one."""
    visual = _tokens(2, 2000, 512)
    want = [zk.diversity(row, 150) for row in visual]
    torch.cuda.synchronize()
    side = [torch.cuda.Stream(), torch.cuda.Stream()]
    got: list[list[Tensor]] = [[], []]
    for _ in range(10):
        for stream, row, out in zip(side, visual, got, strict=True):
            with torch.cuda.stream(stream):
                out.append(zk.diversity(row, 150))
    torch.cuda.synchronize()
    for out, expected in zip(got, want, strict=True):
        for picks in out:
            _same(picks, expected, "stream")


@check
def second_device() -> None:
    """Tensors on a device that is not the current one; passes where there is one device only."""
    if torch.cuda.device_count() < 2:
        print("one device only")
        return
    visual = tokens("vlm", 500, 256, 0, torch.bfloat16)
    _same(
        zk.diversity(visual.to("cuda:1"), 50).cpu(), zk.diversity(visual.to("cuda:0"), 50).cpu(), ""
    )


@check
def compiled() -> None:
    """torch.compile(fullgraph=True) with another N on the second call."""

    @torch.compile(fullgraph=True, dynamic=True)
    def pruned(visual: Tensor, prompt: Tensor) -> Tensor:
        return zk.gather(visual, torch.ops.zspa.select(visual, prompt, 5, 20))

    for n in (300, 411):
        visual = _tokens(2, n, 128)
        want = zk.gather(visual, torch.ops.zspa.select(visual, visual[:, :3], 5, 20))
        assert torch.equal(pruned(visual, visual[:, :3]), want)


@check
def no_square_matrix() -> None:
    """Scratch of a call does not grow with N squared."""
    visual = _tokens(1, 16384, 256)
    zk.diversity(visual, 20)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    zk.diversity(visual, 20)
    used = torch.cuda.max_memory_allocated() - before
    assert used < 16 * 2**20, f"{used} bytes"


@check
def more_than_two_to_the_31_elements() -> None:
    """Rows that only 64-bit offsets reach."""
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        print("not enough memory")
        return
    n, d = 40, 64
    stride = 2**31 // (n - 8)
    buffer = torch.empty(n * stride, dtype=torch.bfloat16, device=DEVICE)
    near = _tokens(1, n, d)[0]
    far = buffer.as_strided((n, d), (stride, 1))
    far.copy_(near)
    _same(zk.diversity(far, 20), zk.diversity(near, 20), "rows")
    whole = zk.select(far[:, None], near[:, None], k_core=0, k_diverse=1)
    _same(whole, torch.zeros_like(whole), "batch")


@check
def errors() -> None:
    """The texts of the contract, on tensors of this device."""
    visual = _tokens(1, 8, 16)
    for call, error, text in (
        (lambda: zk.diversity(visual, 9), ValueError, "diversity: k must be"),
        (lambda: zk.diversity(visual.cpu(), 1, backend="triton"), NotImplementedError, "diversity"),
        (
            lambda: zk.diversity(visual, 1, seeds=torch.tensor([[0]])),
            ValueError,
            "diversity: seeds",
        ),
        (lambda: zk.diversity(visual.double(), 1), TypeError, "diversity: visual must"),
    ):
        found = _error(call, error)
        assert found.startswith(text), found


def main(name: str) -> int:
    """Run one check."""
    CHECKS[name]()
    torch.cuda.synchronize()
    print(f"{name}: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
