# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels at real sizes: laws, instruction sets, and a fork after a parallel call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

import zspa_kernels as zk
from python_tests.runners import (
    diversity,
    relevance_topk,
    same_bits,
    select,
    select_varlen,
    threads,
)
from zspa_kernels.testing import MODELS, prompt, tokens
from zspa_kernels.testing.cases import (
    DTYPES,
    judge_diversity,
    judge_relevance_topk,
    judge_select,
    model_cases,
    pooling_cases,
    seed_and_weight_cases,
    special_cases,
)

Require = Callable[..., None]


@pytest.mark.parametrize("model", MODELS)
def test_threads_and_batches_at_real_sizes(model: str, require_backend: Require) -> None:
    """Large enough that every phase of the compiled kernels is parallel and blocked."""
    require_backend("cpp")
    n, d = 1300, 200
    for dtype in (torch.float32, torch.bfloat16):
        visual, words = tokens(model, n, d, dtype=dtype), prompt(model, 4, d, dtype=dtype)
        for text, k_core in ((words, 50), (None, 0)):
            run = select("cpp")
            with threads(1):
                one = run(visual, text, k_core, 200, None, None, "mean")
            for count in (2, 3):
                with threads(count):
                    same_bits(run(visual, text, k_core, 200, None, None, "mean"), one)
            longer = run(visual, text, k_core, 201, None, None, "mean")
            same_bits(longer[:-1], one)
            pair = zk.select(
                torch.stack([visual.flip(0), visual]),
                None if text is None else torch.stack([text, text]),
                k_core=k_core,
                k_diverse=200,
                sorted=False,
                backend="cpp",
            )
            same_bits(pair[1], one)
            segments = select_varlen(
                "cpp",
                torch.cat([visual[:77], visual]),
                torch.tensor([0, 77, 77 + n], dtype=torch.int32),
                text,
                None,
                torch.tensor([3 if k_core else 0, k_core]),
                torch.tensor([5, 200]),
                total_k=208 + k_core if k_core else 205,
                max_seqlen=n,
            )
            same_bits(segments[-len(one) :] - 77, one)


_FORK = """
import os, sys, time
import torch
torch.set_num_threads(2)
import zspa_kernels as zk
from zspa_kernels.testing import prompt, tokens

visual, words = tokens("vlm", 1500, 256), prompt("vlm", 4, 256)

def calls():
    return [
        zk.select(visual, words, k_core=40, k_diverse=160, sorted=False, backend="cpp"),
        zk.diversity(visual, 90, backend="cpp"),
        zk.relevance_topk(visual, words, 9, backend="cpp")[1],
    ]

before = calls()
child = os.fork()
if child == 0:
    after = calls()
    same = all(torch.equal(a, b) for a, b in zip(before, after))
    os._exit(0 if same else 3)
_, status = os.waitpid(child, 0)
again = calls()
same = all(torch.equal(a, b) for a, b in zip(before, again))
print("child", os.waitstatus_to_exitcode(status), "parent", same)
"""


def test_fork_after_a_parallel_call(require_backend: Require) -> None:
    """A child forked after a parallel region finishes the same call with the same result."""
    require_backend("cpp")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORK],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("the child of a fork hangs in the call")
    assert output.strip().splitlines()[-1] == "child 0 parent True", output


def _isas() -> list[str]:
    from zspa_kernels import _native

    return _native.module().isas() if _native.reason() is None else ["none"]


@pytest.fixture(params=_isas())
def native_isa(request: pytest.FixtureRequest, require_backend: Require) -> Iterator[str]:
    require_backend("cpp")
    from zspa_kernels import _C

    _C.use_isa(request.param)
    assert _C.isa() == request.param
    yield request.param
    _C.use_isa("auto")


def test_instruction_sets_meet_the_oracle(native_isa: str) -> None:
    small, wide, large = (model_cases(tier) for tier in ("small", "wide", "large"))
    for case in small[::4] + wide[::2] + large[1::8] + special_cases()[::5]:
        judge_select(case, select("cpp"), "cpp")
    for case in small[1::5] + pooling_cases()[::4] + wide[1::2]:
        judge_relevance_topk(case, relevance_topk("cpp"), "cpp")
    for case in seed_and_weight_cases()[::4]:
        judge_diversity(case, diversity("cpp"), "cpp")


def test_instruction_sets_keep_the_laws(native_isa: str) -> None:
    for dtype in DTYPES:
        for n, d in ((150, 129), (700, 67)):
            visual, words = tokens("vlm", n, d, dtype=dtype), prompt("vlm", 3, d, dtype=dtype)
            run, top = select("cpp"), relevance_topk("cpp")
            alone = run(visual, words, n // 8, n // 4, None, None, "mean")
            with threads(1):
                same_bits(run(visual, words, n // 8, n // 4, None, None, "mean"), alone)
            core, scores = top(visual, words, n // 8, None, None, "mean")
            rest = diversity("cpp")(visual, n // 4, core, None, None)
            same_bits(torch.cat([core, rest]), alone)
            free = run(visual, None, 0, n // 4, None, None, "mean")
            same_bits(run(visual, None, 0, n // 4 + 9, None, None, "mean")[: n // 4], free)
            padded = torch.cat([torch.full_like(visual[:13], torch.nan), visual, visual[:5]])
            mask = (torch.arange(n + 18) >= 13) & (torch.arange(n + 18) < 13 + n)
            same_bits(run(padded, None, 0, n // 4, mask, None, "mean") - 13, free)
            same_bits(top(padded, words, 1, mask, None, "mean")[1][13 : 13 + n], scores)


def test_instruction_sets_agree_on_exact_tokens(native_isa: str) -> None:
    from zspa_kernels import _C

    for dtype in DTYPES:
        visual, words = tokens("exact", 500, 129, dtype=dtype), prompt("exact", 4, 129)
        got = select("cpp")(visual, words, 50, 150, None, None, "mean")
        free = select("cpp")(visual, None, 0, 150, None, None, "mean")
        _C.use_isa("auto")
        same_bits(select("cpp")(visual, words, 50, 150, None, None, "mean"), got)
        same_bits(select("cpp")(visual, None, 0, 150, None, None, "mean"), free)
        _C.use_isa(native_isa)
