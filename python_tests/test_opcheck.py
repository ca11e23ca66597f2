# SPDX-License-Identifier: Apache-2.0
"""torch.library.opcheck on every op: schema, fakes, autograd registration, AOT dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels  # noqa: F401  # registers the ops

# opcheck of torch 2.14 and 2.15 asks for the gradients of copies that are no leaves, and is warned.
of_copies = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
pytestmark = of_copies

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
B, N, D, M = 2, 7, 5, 3


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    return x.to(dtype).requires_grad_()


def strided(*shape: int) -> Tensor:
    """The same values with no axis where it usually is."""
    x = torch.randn([2 * n for n in shape[::-1]], generator=torch.Generator().manual_seed(1))
    return x[tuple(slice(None, None, 2) for _ in shape)].permute(*reversed(range(len(shape))))


def mask(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.3


def ints(*values: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def check(op: str, *arguments: Any, **options: Any) -> None:
    torch.library.opcheck(getattr(torch.ops.zspa, op).default, arguments, options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_select(dtype: torch.dtype) -> None:
    prompt = draw(B, M, D, dtype=dtype)
    check("select", draw(B, N, D, dtype=dtype), prompt, 2, 3, mask(B, N), mask(B, M), "max", False)


@pytest.mark.parametrize("batch", [(), (0,), (1,)])
@pytest.mark.parametrize(("k_core", "k_diverse"), [(0, 0), (0, 1), (1, 0), (3, 4)])
def test_select_sizes(batch: tuple[int, ...], k_core: int, k_diverse: int) -> None:
    check("select", draw(*batch, N, D), draw(*batch, M, D), k_core, k_diverse)


def test_select_without_a_prompt_and_strided() -> None:
    check("select", draw(B, N, D), None, 0, 4)
    visual = strided(B, N, D).requires_grad_()
    check("select", visual, strided(B, M, D), 2, 2, mask(N, B).T, pooling="none_max")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pooling", ["mean", "none_mean"])
def test_relevance_topk(dtype: torch.dtype, pooling: str) -> None:
    visual, prompt = draw(B, N, D, dtype=dtype), draw(B, M, D)
    check("relevance_topk", visual, prompt, 3, mask(B, N), pooling=pooling)


@pytest.mark.parametrize("k", [0, 1, N])
@pytest.mark.parametrize("batch", [(), (0,)])
def test_relevance_topk_sizes(batch: tuple[int, ...], k: int) -> None:
    check("relevance_topk", draw(*batch, N, D), draw(*batch, 0, D), k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_diversity(dtype: torch.dtype) -> None:
    seeds, weights = ints(0, -1, 3, 9).view(B, 2), draw(B, N)
    check("diversity", draw(B, N, D, dtype=dtype), 3, seeds, weights, mask(B, N))


@pytest.mark.parametrize("k", [0, 1, N])
@pytest.mark.parametrize("batch", [(), (0,), (B,)])
def test_diversity_sizes(batch: tuple[int, ...], k: int) -> None:
    check("diversity", strided(*batch, N, D).requires_grad_(), k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prompt", ["none", "shared", "spans"])
def test_select_varlen(dtype: torch.dtype, prompt: str) -> None:
    check(
        "select_varlen",
        draw(N, D, dtype=dtype),
        ints(0, 2, N, dtype=torch.int32),
        None if prompt == "none" else draw(M, D),
        ints(0, M, 1, M).view(2, 2) if prompt == "spans" else None,
        ints(1, 1),
        ints(1, 2),
        7,
        5,
    )


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("total_k", [0, 4])
def test_diversity_varlen(weights: bool, total_k: int) -> None:
    cu_seqlens, k = ints(0, 2, N), ints(1, 2)
    check("diversity_varlen", draw(N, D), cu_seqlens, k, total_k, 5, draw(N) if weights else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, 1, N])
def test_dpp(dtype: torch.dtype, k: int) -> None:
    check("dpp", draw(B, N, D, dtype=dtype), k, draw(B, N), mask(B, N))
    check("dpp", strided(N, D).to(dtype).requires_grad_(), k)


@pytest.mark.parametrize("weights", [False, True])
def test_dpp_varlen(weights: bool) -> None:
    cu_seqlens, k = ints(0, 2, N), ints(1, 2)
    check("dpp_varlen", draw(N, D), cu_seqlens, k, 4, 5, draw(N) if weights else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, N])
def test_facility_location(dtype: torch.dtype, k: int) -> None:
    op = "facility_location"
    check(op, draw(B, N, D, dtype=dtype), k, draw(B, M, N), draw(B, N), mask(B, N), 0.2, 0.5)
    check(op, strided(N, D).to(dtype).requires_grad_(), k)


def test_facility_location_varlen() -> None:
    table = ints(0, 2, N), ints(1, 2), 4, 5
    check("facility_location_varlen", draw(N, D), *table, draw(M, N), draw(N), 0.2)
    check("facility_location_varlen", draw(N, D), *table)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, N])
def test_min_sum(dtype: torch.dtype, k: int) -> None:
    check("min_sum", draw(B, N, D, dtype=dtype), k, ints(0, -1, 3, 9).view(B, 2), mask(B, N))
    check("min_sum", strided(N, D).to(dtype).requires_grad_(), k)


def test_min_sum_varlen() -> None:
    check("min_sum_varlen", draw(N, D), ints(0, 2, N), ints(1, 2), 4, 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, N])
def test_suppress(dtype: torch.dtype, k: int) -> None:
    check("suppress", draw(B, N, D, dtype=dtype), draw(B, N), k, 0.3, False, mask(B, N))
    check("suppress", strided(N, D).to(dtype).requires_grad_(), draw(N).detach().double(), k, 0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, N])
def test_soft_suppress(dtype: torch.dtype, k: int) -> None:
    places, tokens = draw(B, N, 2), draw(B, N, D, dtype=dtype)
    near = "scale", places, 1.5, 3.0, mask(B, N)
    check("soft_suppress", tokens, draw(B, N), k, 9.0, *near)
    check(
        "soft_suppress", strided(N, D).to(dtype).requires_grad_(), draw(N).detach().half(), k, 9.0
    )


def test_outputs_never_require_grad() -> None:
    visual, prompt = draw(B, N, D), draw(B, M, D)
    indices, scores = torch.ops.zspa.relevance_topk(visual, prompt, 2)
    assert not indices.requires_grad
    assert not scores.requires_grad
    assert not torch.ops.zspa.select(visual, prompt, 1, 2).requires_grad


def test_schemas_are_what_the_design_fixes() -> None:
    def schema(op: str) -> str:
        return str(getattr(torch.ops.zspa, op).default._schema)

    assert schema("select") == (
        "zspa::select(Tensor visual, Tensor? prompt, SymInt k_core, SymInt k_diverse, "
        "Tensor? visual_mask=None, Tensor? prompt_mask=None, "
        'str pooling="mean", bool sorted=True) -> Tensor'
    )
    assert schema("select_varlen") == (
        "zspa::select_varlen(Tensor visual, Tensor cu_seqlens, Tensor? prompt, "
        "Tensor? prompt_spans, Tensor k_core, Tensor k_diverse, SymInt total_k, "
        'SymInt max_seqlen, str pooling="mean", bool sorted=True) -> Tensor'
    )
    assert schema("relevance_topk") == (
        "zspa::relevance_topk(Tensor visual, Tensor prompt, SymInt k, Tensor? visual_mask=None, "
        'Tensor? prompt_mask=None, str pooling="mean") -> (Tensor indices, Tensor scores)'
    )
    assert schema("diversity") == (
        "zspa::diversity(Tensor visual, SymInt k, Tensor? seeds=None, Tensor? weights=None, "
        "Tensor? visual_mask=None) -> Tensor"
    )
    assert schema("diversity_varlen") == (
        "zspa::diversity_varlen(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k, "
        "SymInt max_seqlen, Tensor? weights=None) -> Tensor"
    )

    assert schema("dpp") == (
        "zspa::dpp(Tensor visual, SymInt k, Tensor? weights=None, Tensor? visual_mask=None)"
        " -> Tensor"
    )
    assert schema("dpp_varlen") == schema("diversity_varlen").replace("diversity", "dpp")

    assert schema("facility_location") == (
        "zspa::facility_location(Tensor visual, SymInt k, Tensor? benefits=None, "
        "Tensor? weights=None, Tensor? visual_mask=None, float temperature=0., float scale=1.)"
        " -> Tensor"
    )
    assert schema("min_sum") == (
        "zspa::min_sum(Tensor visual, SymInt k, Tensor? seeds=None, Tensor? visual_mask=None)"
        " -> Tensor"
    )
    assert schema("min_sum_varlen") == (
        "zspa::min_sum_varlen(Tensor visual, Tensor cu_seqlens, Tensor k, SymInt total_k, "
        "SymInt max_seqlen) -> Tensor"
    )
    assert schema("suppress") == (
        "zspa::suppress(Tensor visual, Tensor scores, SymInt k, float threshold, bool fill=True, "
        "Tensor? visual_mask=None) -> Tensor"
    )
    assert schema("soft_suppress") == (
        "zspa::soft_suppress(Tensor visual, Tensor scores, SymInt k, float sharpness, "
        'str rule="subtract", Tensor? positions=None, float? spread=None, float? reach=None, '
        "Tensor? visual_mask=None) -> Tensor"
    )


@pytest.mark.parametrize(
    "op",
    [
        *("select", "select_varlen", "relevance_topk", "diversity"),
        *("dpp", "facility_location", "min_sum", "min_sum_varlen"),
        *("suppress", "soft_suppress"),
    ],
)
def test_ops_are_tagged(op: str) -> None:
    assert torch.Tag.pt2_compliant_tag in getattr(torch.ops.zspa, op).default.tags
