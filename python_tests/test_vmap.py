# SPDX-License-Identifier: Apache-2.0
"""`torch.vmap` over an op is one batched call of it; torch's own loop would warn, and fail here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests.runners import same_bits
from zspa_kernels.testing import prompt, tokens

B, N, D, M = 6, 20, 8, 3
VISUAL = torch.stack([tokens("vlm", N, D, seed) for seed in range(B)])
PROMPT = torch.stack([prompt("vlm", M, D, seed) for seed in range(B)])
SCORES = VISUAL[..., 0].abs()
MASK = torch.arange(N) < torch.arange(N - B, N)[:, None]
SEEDS = torch.arange(2 * B).view(B, 2)
PLACES = torch.stack((torch.arange(N) // 5, torch.arange(N) % 5), -1).expand(B, N, 2)

#: Op -> its tensors, and what is the same for all examples.
OPS: dict[str, tuple[tuple[Tensor, ...], Callable[..., Any]]] = {
    "select": ((VISUAL, PROMPT, MASK), lambda op, x, p, m: op(x, p, 2, 3, m)),
    "relevance_topk": ((VISUAL, PROMPT, MASK), lambda op, x, p, m: op(x, p, 4, visual_mask=m)),
    "diversity": (
        (VISUAL, SEEDS, SCORES, MASK),
        lambda op, x, s, w, m: op(x, 4, s, w, visual_mask=m),
    ),
    "dpp": ((VISUAL, SCORES, MASK), lambda op, x, w, m: op(x, 4, weights=w, visual_mask=m)),
    "facility_location": (
        (VISUAL, PROMPT @ VISUAL.mT, MASK),
        lambda op, x, b, m: op(x, 4, benefits=b, visual_mask=m, temperature=0.5),
    ),
    "min_sum": ((VISUAL, SEEDS), lambda op, x, s: op(x, 4, s)),
    "suppress": ((VISUAL, SCORES, MASK), lambda op, x, s, m: op(x, s, 4, 0.3, visual_mask=m)),
    "soft_suppress": (
        (VISUAL, SCORES, PLACES),
        lambda op, x, s, p: op(x, s, 4, 5.0, "scale", p, 2.0, 3.0),
    ),
}


def same(got: Any, right: Any) -> None:
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, right)), strict=True):
        same_bits(a, b.view(a.shape))


@pytest.mark.parametrize("name", OPS)
def test_is_the_batched_call(name: str) -> None:
    given, call = OPS[name]
    op = getattr(torch.ops.zspa, name)

    def one(*x: Tensor) -> Any:
        return call(op, *x)

    right = one(*given)
    same(torch.vmap(one)(*given), right)
    # Other axes, of the results too; each tensor in turn shared by all examples.
    axes = tuple(x.ndim - 1 for x in given)
    moved = [x.movedim(0, -1) for x in given]
    same(torch.vmap(one, in_dims=axes)(*moved), right)
    turned = torch.vmap(one, out_dims=1)(*given)
    same(tuple(x.mT for x in turned) if isinstance(turned, tuple) else turned.mT, right)
    for i, x in enumerate(given):
        shared = [*given[:i], x[:1].expand_as(x), *given[i + 1 :]]
        where = tuple(None if j == i else 0 for j in range(len(given)))
        same(torch.vmap(one, in_dims=where)(*given[:i], x[0], *given[i + 1 :]), one(*shared))
    # A batch inside, and a map inside.
    split = [x.reshape(3, 2, *x.shape[1:]) for x in given]
    same(torch.vmap(one, in_dims=1)(*split), one(*(x.transpose(0, 1).flatten(0, 1) for x in split)))
    same(torch.vmap(torch.vmap(one))(*split), right)
    empty = torch.vmap(one, in_dims=axes)(*(x[..., :0] for x in moved))
    same(empty, one(*(x[:0] for x in given)))


def test_functions_and_methods_can_be_mapped() -> None:
    right = zk.select(VISUAL, PROMPT, keep=5)
    mapped = torch.vmap(lambda x, p: zk.select(x, p, keep=5))
    same_bits(mapped(VISUAL, PROMPT), right)
    kept = torch.vmap(lambda x, p: zk.gather(x, zk.select(x, p, keep=5)))(VISUAL, PROMPT)
    same_bits(kept, zk.gather(VISUAL, right))
    method = zk.ZSPAPrune(5)
    same_bits(torch.vmap(lambda x, p: method.select(x, p).indices)(VISUAL, PROMPT), right)
    compiled = torch.compile(mapped, fullgraph=True, backend="aot_eager")
    same_bits(compiled(VISUAL, PROMPT), right)


def test_errors_are_about_one_example() -> None:
    for function, error, text in (
        (lambda x: zk.select(x[0], keep=1), ValueError, r"visual must be \[N, D\] .*, got \[8\]"),
        (lambda x: zk.diversity(x, 21), ValueError, r"k must be in \[0, N=20\], got 21"),
        (lambda x: zk.dpp(x, 2, weights=SCORES[0, 1:]), ValueError, r"must have shape \[20\], got"),
        (lambda x: zk.select(x.double(), keep=1), TypeError, "visual must be float32, float16 or"),
        (
            lambda x: zk.select(x, keep=1, backend="reference"),
            NotImplementedError,
            "select: backend must be 'auto' under torch.vmap, got 'reference'",
        ),
    ):
        with pytest.raises(error, match=text):
            torch.vmap(function)(VISUAL)
