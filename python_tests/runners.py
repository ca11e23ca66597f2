# SPDX-License-Identifier: Apache-2.0
"""The public functions of one backend on one segment, in the shape the standard cases call them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from zspa_kernels._ops.call import call
from zspa_kernels.testing.cases import DTYPES, Case, Diversity, RelevanceTopk, Select

BACKENDS = ("reference", "cpp", "triton")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_backend_and_dtype = pytest.mark.parametrize(
    ("backend", "dtype"),
    [(b, t) for b in ("reference", "cpp") for t in DTYPES] + [("triton", torch.bfloat16)],
    ids=lambda value: str(value).removeprefix("torch."),
)


def fitting(backend: str, op: str, cases: list[Case]) -> list[Case]:
    """The cases that `backend` manages in seconds.

    The reference multiplies row by row in float64, a second for 10**8 products. The interpreter
    takes some 10 ms a pick, so it gets small sizes and one case in four or six; the cases of each
    kind of input are dealt out so that dtypes, cores and seeds still take turns.
    """
    if backend == "cpp" or (backend == "reference" and op == "relevance_topk"):
        return cases
    if backend == "reference":
        return [case for case in cases if _products(case) <= 3_000_000]
    deal = 4 if op == "relevance_topk" else 6
    kinds: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        if case.n <= 300 and case.d <= 128 and case.k_diverse <= 40:
            kind = (case.tokens, case.pooling, case.seeds, case.weights)
            kinds.setdefault(kind, []).append(case)
    return [
        case
        for turn, group in enumerate(kinds.values())
        for i, case in enumerate(group)
        if i % deal == (turn + turn // deal) % deal
    ]


def _products(case: Case) -> int:
    return case.n * max(case.k_diverse, 0 if case.k_core else case.n) * case.d


def relevance_topk(backend: str) -> RelevanceTopk:
    def run(
        visual: Tensor,
        prompt: Tensor,
        k: int,
        mask: Tensor | None,
        prompt_mask: Tensor | None,
        pooling: str,
    ) -> tuple[Tensor, Tensor]:
        return zk.relevance_topk(
            visual,
            prompt,
            k,
            visual_mask=mask,
            prompt_mask=prompt_mask,
            pooling=pooling,
            backend=backend,
        )

    return run


def diversity(backend: str) -> Diversity:
    def run(
        visual: Tensor,
        k: int,
        seeds: Tensor | None,
        weights: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        return zk.diversity(
            visual, k, seeds=seeds, weights=weights, visual_mask=mask, backend=backend
        )

    return run


def select(backend: str) -> Select:
    def run(
        visual: Tensor,
        prompt: Tensor | None,
        k_core: int,
        k_diverse: int,
        mask: Tensor | None,
        prompt_mask: Tensor | None,
        pooling: str,
    ) -> Tensor:
        return zk.select(
            visual,
            prompt,
            k_core=k_core,
            k_diverse=k_diverse,
            visual_mask=mask,
            prompt_mask=prompt_mask,
            pooling=pooling,
            sorted=False,
            backend=backend,
        )

    return run


def growing_errors(n: int, later: int) -> tuple[Tensor, Tensor]:
    """Tokens that `dpp` takes by index, for their weights are 0; each leaves little of the next.

    So errors of the `later` rows behind them grow a hundredfold a pick.
    """
    step = 2.0**-7
    visual = torch.zeros(n + later, n)
    visual[:n] = step * torch.eye(n) + (1 - step**2) ** 0.5 * torch.eye(n).roll(1, 0)
    visual[0] = torch.eye(n)[0]
    visual[n:] = torch.randn(later, n, generator=torch.Generator().manual_seed(1))
    return visual, torch.zeros(n + later)


def strided_views(x: Tensor) -> dict[str, Tensor]:
    """The values of `x` `[..., N, D]` in memory orders a caller may bring."""
    n, d = x.shape[-2:]
    lead = x.shape[:-2]
    transposed = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    wide = torch.full((*lead, n, 2 * d + 3), torch.nan, dtype=x.dtype)
    wide[..., 1 : d + 1] = x
    stepped = torch.full((*lead, 2 * n, d), torch.nan, dtype=x.dtype)
    stepped[..., ::2, :] = x
    columns = torch.full((*lead, n, 3 * d), torch.nan, dtype=x.dtype)
    columns[..., ::3] = x
    offset = torch.full((x.numel() + 1,), torch.nan, dtype=x.dtype)[1:].view(x.shape)
    offset.copy_(x)
    return {
        "transposed": transposed,
        "part of a wider row": wide[..., 1 : d + 1],
        "every other row": stepped[..., ::2, :],
        "every third column": columns[..., ::3],
        "unaligned start": offset,
    }


def spread(x: Any) -> Any:
    """A tensor's values with a gap after each, along every axis; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    for dim in range(x.ndim):
        x = x.repeat_interleave(2, dim)
    return x[(slice(None, None, 2),) * x.ndim]


def turned(x: Any) -> Any:
    """A tensor's values with the first axis next to each other; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    axes = tuple(reversed(range(x.ndim)))
    return x.permute(axes).contiguous().permute(axes)


def select_varlen(
    backend: str,
    visual: Tensor,
    cu_seqlens: Tensor,
    prompt: Tensor | None,
    prompt_spans: Tensor | None,
    k_core: Tensor,
    k_diverse: Tensor,
    *,
    total_k: int,
    max_seqlen: int,
    pooling: str = "mean",
    sort: bool = False,
) -> Tensor:
    """The op with all its arguments, on one backend."""
    given = (visual, cu_seqlens, prompt, prompt_spans, k_core, k_diverse)
    arguments = (*given, total_k, max_seqlen, pooling, sort)
    result: Tensor = call("select_varlen", backend, arguments)
    return result


def diversity_varlen(
    backend: str,
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    *,
    total_k: int,
    max_seqlen: int,
    weights: Tensor | None = None,
) -> Tensor:
    """The op with all its arguments, on one backend."""
    arguments = (visual, cu_seqlens, k, total_k, max_seqlen, weights)
    result: Tensor = call("diversity_varlen", backend, arguments)
    return result


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with torch's number of threads set to `count`."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_bits(a: Tensor, b: Tensor) -> None:
    """Equal bits; NaN never occurs in a result."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert torch.equal(a, b), f"{a.tolist()} != {b.tolist()}"
