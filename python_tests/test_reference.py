# SPDX-License-Identifier: Apache-2.0
"""The reference backend against cases small enough to do by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from zspa_kernels._segments import (
    _spans_of_tensors,
    _table_of_tensors,
    prompt_spans,
    ragged_table,
)
from zspa_kernels.backends.reference._common import Rows, row_sum

NAN, INF = float("nan"), float("inf")


def select(visual: Tensor, prompt: Tensor | None, core: int, diverse: int, **options: Any) -> Any:
    options = {"sorted": False, **options}
    indices = zk.select(
        visual, prompt, k_core=core, k_diverse=diverse, backend="reference", **options
    )
    return indices.tolist()


def diversity(visual: Tensor, k: int, **options: Any) -> Any:
    return zk.diversity(visual, k, backend="reference", **options).tolist()


def relevance(visual: Tensor, prompt: Tensor, k: int, **options: Any) -> tuple[Any, Any]:
    indices, scores = zk.relevance_topk(visual, prompt, k, backend="reference", **options)
    return indices.tolist(), scores.tolist()


# Directions in the plane, by angle: cosines are those of the differences.
ANGLES = torch.tensor([0.0, 10.0, 95.0, 110.0, 180.0])
PLANE = torch.stack((ANGLES.deg2rad().cos(), ANGLES.deg2rad().sin()), dim=1)
EAST = torch.tensor([[3.0, 0.0]])


# ---- relevance -----------------------------------------------------------------------------------


def test_relevance_is_the_cosine_with_the_pooled_prompt() -> None:
    visual = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0], [1.0, 0.0]])
    assert relevance(visual, EAST, 3) == ([3, 0, 1], pytest.approx([0.6, 0.0, -1.0, 1.0]))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", [1 / 5**0.5, 2 / 5**0.5]),  # of (1, 2) = ((2, 0) + (0, 4)) / 2
        ("max", [1 / 5**0.5, 2 / 5**0.5]),  # of (2, 4)
        ("none_mean", [0.5, 0.5]),  # of the cosines 1 and 0
        ("none_max", [1.0, 1.0]),
    ],
)
def test_poolings(pooling: str, expected: list[float]) -> None:
    prompt = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    assert relevance(torch.eye(2), prompt, 0, pooling=pooling)[1] == pytest.approx(expected)


@pytest.mark.parametrize("pooling", ["mean", "max", "none_mean", "none_max"])
def test_masked_and_non_finite_prompt_tokens_do_not_count(pooling: str) -> None:
    prompt = torch.tensor([[NAN, 1.0], [0.0, 1.0], [INF, 0.0], [9.0, 9.0], [2.0**41, 0.0]])
    mask = torch.tensor([True, True, True, False, True])
    scores = relevance(torch.eye(2), prompt, 0, prompt_mask=mask, pooling=pooling)[1]
    assert scores == [0.0, 1.0]


def test_a_zero_prompt_token_counts_as_a_cosine_of_zero() -> None:
    prompt = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    visual = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert relevance(visual, prompt, 0, pooling="none_mean")[1] == [0.5, -0.5]
    assert relevance(visual, prompt, 0, pooling="none_max")[1] == [1.0, 0.0]


@pytest.mark.parametrize("pooling", ["mean", "max", "none_mean", "none_max"])
def test_scores_of_special_rows(pooling: str) -> None:
    visual = torch.tensor([[0.0, 0.0], [NAN, 0.0], [1.0, 0.0], [INF, 1.0], [2.0**41, 0.0]])
    zero_prompt = torch.zeros(1, 2)
    assert relevance(visual, zero_prompt, 5, pooling=pooling) == (
        [2, 0, -1, -1, -1],
        [-1.0, -INF, 0.0, -INF, -INF],
    )
    assert relevance(visual, EAST, 5, pooling=pooling)[0] == [2, 0, -1, -1, -1]


@pytest.mark.parametrize(
    "prompt", [torch.empty(0, 2), torch.full((2, 2), NAN)], ids=["none", "nan"]
)
def test_without_a_valid_prompt_token_there_is_no_core(prompt: Tensor) -> None:
    visual = torch.cat((PLANE, torch.tensor([[0.0, 0.0], [NAN, 0.0]])))
    assert relevance(visual, prompt, 2) == ([-1, -1], [0.0] * 5 + [-1.0, -INF])
    assert select(visual, prompt, 2, 1) == select(visual, None, 0, 3)


def test_relevance_ties_go_to_the_lowest_index() -> None:
    visual = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, -1.0], [1.0, 0.0], [-0.0, 3.0]])
    assert relevance(visual, EAST, 5)[0] == [1, 3, 0, 2, 4]  # 0.0 and -0.0 are equal


# ---- diversity -----------------------------------------------------------------------------------


def test_the_seed_is_the_token_whose_nearest_neighbour_is_farthest() -> None:
    # Nearest neighbours are 10, 10, 15, 15 and 70 degrees away. From 180, 0 is farthest; then 95
    # is 85 degrees from both, then 110 is 15 degrees from 95, and 10 is 10 degrees from 0.
    assert diversity(PLANE, 5) == [4, 0, 2, 3, 1]


def test_picks_start_from_the_seeds() -> None:
    assert diversity(PLANE, 2, seeds=torch.tensor([2])) == [0, 4]
    assert diversity(PLANE, 2, seeds=torch.tensor([0, 4])) == [2, 3]


def test_seeds_that_are_none_are_ignored() -> None:
    seeds = torch.tensor([-1, 99, 2, 2, -7, 5])
    visual = torch.cat((PLANE, torch.tensor([[NAN, 0.0]])))
    assert diversity(visual, 6, seeds=seeds) == [*diversity(PLANE, 4, seeds=seeds[2:3]), -1, -1]
    assert diversity(visual, 2, seeds=torch.tensor([-1, 5])) == diversity(PLANE, 2)


def test_weights_scale_the_distance() -> None:
    weights = torch.tensor([1.0, 1.0, 2.0, 5.0, 0.5])
    # First the largest weight, at 110 degrees; scores are then 1.34, 1.17, 0.07 and 0.33. After 0
    # they are 0.02, 0.07 and 0.33.
    assert diversity(PLANE, 5, weights=weights) == [3, 0, 4, 2, 1]
    # Without weights the first pick is the seed, so weights of one are something else.
    assert diversity(PLANE, 1, weights=torch.ones(5)) == [0]
    assert diversity(PLANE, 1) == [4]


def test_bad_weights_mask_and_zero_weights_come_last() -> None:
    weights = torch.tensor([NAN, -1.0, 0.0, -0.0, 1.0])
    assert diversity(PLANE, 5, weights=weights) == [4, 2, 3, -1, -1]
    weights = torch.tensor([INF, 1.0, 2.0, 0.0, 0.0])
    assert diversity(PLANE, 2, weights=weights, seeds=torch.tensor([0])) == [2, 1]


def test_ties_go_to_the_lowest_index() -> None:
    assert diversity(torch.eye(4), 4) == [0, 1, 2, 3]
    assert diversity(torch.ones(4, 3), 4) == [0, 1, 2, 3]
    assert diversity(torch.eye(4), 2, seeds=torch.tensor([1])) == [0, 2]
    assert diversity(torch.eye(3), 3, weights=torch.tensor([1.0, 2.0, 2.0])) == [1, 2, 0]


def test_zero_rows_are_chosen_last_and_influence_nobody() -> None:
    visual = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1e-13, 0.0], [0.0, 1.0]])
    assert diversity(visual, 4) == [1, 3, 0, 2]
    assert diversity(visual, 3, seeds=torch.tensor([0])) == [1, 3, 2]
    assert select(visual, EAST, 4, 0) == [1, 3, 0, 2]
    assert diversity(visual, 2, weights=torch.tensor([9.0, 1.0, 1.0, 2.0])) == [0, 3]
    # Beside a zero row everybody stays at -1, so that cosines below 0 still count.
    visual = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-0.5, 0.8], [-1.0, 0.0]])
    assert diversity(visual, 3, seeds=torch.tensor([0])) == [1, 3, 2]


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 2.0**41])
def test_rows_that_are_not_finite_or_huge_count_as_masked_out(bad: float) -> None:
    visual = PLANE.clone()
    visual[2, 1] = bad
    mask = torch.tensor([True, True, False, True, True])
    assert select(visual, EAST, 2, 3) == select(PLANE, EAST, 2, 3, visual_mask=mask)
    assert select(visual, EAST, 2, 3)[4:] == [-1]
    assert diversity(visual, 5) == diversity(PLANE, 5, visual_mask=mask)


def test_thresholds() -> None:
    # 2**-40 and 2**40 are the smallest and largest usable lengths.
    lengths = torch.tensor([2.0**-40, 2.0**-41, 2.0**40, 2.0**40.5, 0.0])
    rows = Rows.of(lengths[:, None], None)
    assert rows.zero.tolist() == [False, True, False, False, True]
    assert rows.valid.tolist() == [True, True, True, False, True]
    cosines = rows.cosine(rows.values[0], rows.inverse[0])
    assert cosines[:3].tolist() == [1.0, 0.0, 1.0]


# ---- the whole selection -------------------------------------------------------------------------


def test_core_then_diversity() -> None:
    assert select(PLANE, EAST, 1, 2) == [0, 4, 2]
    assert select(PLANE, EAST, 2, 2) == [0, 1, 4, 2]
    assert select(PLANE, EAST, 5, 0) == [0, 1, 2, 3, 4]
    assert select(PLANE, EAST, 0, 3) == diversity(PLANE, 3)
    assert select(PLANE, EAST, 1, 2, sorted=True) == [0, 2, 4]


def test_too_few_valid_tokens_leave_minus_one_at_the_end() -> None:
    mask = torch.tensor([False, True, False, True, False])
    assert select(PLANE, EAST, 3, 2, visual_mask=mask) == [1, 3, -1, -1, -1]
    assert select(PLANE, EAST, 1, 3, visual_mask=mask, sorted=True) == [1, 3, -1, -1]
    assert select(PLANE, EAST, 1, 1, visual_mask=torch.zeros(5, dtype=torch.bool)) == [-1, -1]


# ---- arithmetic ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 100, 4097])
def test_row_sum(width: int) -> None:
    x = torch.randn(5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    assert torch.allclose(row_sum(x), x.sum(-1), rtol=1e-13, atol=1e-13)
    assert torch.equal(row_sum(x[1:2]), row_sum(x)[1:2])  # a row alone
    assert torch.equal(row_sum(x.T.contiguous().T), row_sum(x))  # strides


def test_cosines_are_bitwise_symmetric() -> None:
    rows = Rows.of(torch.randn(40, 33, generator=torch.Generator().manual_seed(0)), None)
    cosines = torch.stack([rows.cosine(rows.values[i], rows.inverse[i]) for i in range(40)])
    assert torch.equal(cosines, cosines.T)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def test_one_thread_is_two_threads_bit_for_bit() -> None:
    # One row longer than PyTorch's grain of parallel work, and many short ones.
    generator = torch.Generator().manual_seed(0)
    for n, d in ((1, 200_000), (300, 257)):
        visual, prompt = torch.randn(2, n, d, generator=generator).unbind()
        answers = []
        for count in (1, 2):
            with threads(count):
                answers.append(zk.relevance_topk(visual, prompt[:1], 1, backend="reference"))
        for one, two in zip(*answers, strict=True):
            assert torch.equal(one, two)


# ---- ragged tables -------------------------------------------------------------------------------


def random_tables(count: int) -> Iterator[tuple[Tensor, Tensor, Tensor, int, int, int]]:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    for _ in range(count):
        segments, total_k, longest, rows = (int(n) for n in draw(0, 12, 4))
        dtype = torch.int32 if draw(0, 2, 1) else torch.int64
        offsets = draw(-3, 15, segments + 1).to(dtype)
        core, diverse = draw(-2, 14, segments).to(dtype), draw(-2, 14, segments).to(dtype)
        yield offsets, core, diverse, total_k, longest, rows


def every_other(x: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return torch.stack((x, x + 1), dim=-1)[..., 0]


def test_native_tables_and_those_of_tensors_agree_and_stay_inside() -> None:
    for offsets, core, diverse, total_k, longest, rows in random_tables(300):
        for k_core in (core, None):
            arguments = (offsets, k_core, diverse, total_k, longest, rows)
            table = ragged_table(*arguments)
            assert torch.equal(table, _table_of_tensors(*arguments))
            strided = [every_other(x) for x in (offsets, diverse)]
            k_core = None if k_core is None else every_other(k_core)
            again = ragged_table(strided[0], k_core, strided[1], total_k, longest, rows)
            assert torch.equal(table, again)
            assert table.shape == (len(core), 5)
            assert table.dtype == torch.int64
            assert (table >= 0).all()
            first, length, k_core_cut, k_diverse_cut, slot = table.unbind(1)
            assert (first + length <= rows).all()
            assert (length <= longest).all()
            assert (slot + k_core_cut + k_diverse_cut <= total_k).all()


def test_where_slots_run_out_diversity_gives_way_first() -> None:
    offsets, four = torch.tensor([0, 5, 10, 15]), torch.tensor([4, 4, 4])
    table = ragged_table(offsets, four, four, 14, 5, 15)
    assert table[:, 2:].tolist() == [[4, 4, 0], [4, 2, 8], [0, 0, 14]]
    many = torch.full((3,), 2**62)  # their sum is beyond 64 bits
    for fill in (ragged_table, _table_of_tensors):
        assert fill(offsets, many, four, 14, 5, 15)[:, 2:].tolist() == [
            [14, 0, 0],
            *[[0, 0, 14]] * 2,
        ]
        assert fill(offsets, four, many, 14, 5, 15)[:, 2:].tolist() == [
            [4, 10, 0],
            *[[0, 0, 14]] * 2,
        ]


def test_spans_are_clamped() -> None:
    prompt = torch.empty(4, 2)
    spans = torch.tensor([[0, 3], [-2, 99], [3, 1], [7, 9]], dtype=torch.int32)
    for values in (spans, spans.long(), every_other(spans)):
        for clamp in (prompt_spans, _spans_of_tensors):
            assert clamp(values, 4, prompt).tolist() == [[0, 3], [0, 4], [3, 3], [4, 4]]
    for clamp in (prompt_spans, _spans_of_tensors):
        assert clamp(None, 2, prompt).tolist() == [[0, 4], [0, 4]]


@pytest.mark.gpu
def test_cuda_gives_the_bits_of_the_cpu(require_backend: Callable[..., None]) -> None:
    require_backend("reference", device="cuda")
    visual = torch.randn(2, 60, 40, generator=torch.Generator().manual_seed(0))
    prompt = visual[:, :3] + 1.0
    for pooling in ("mean", "max", "none_mean", "none_max"):
        on_cpu, on_gpu = (
            zk.relevance_topk(v, p, 9, pooling=pooling, backend="reference")
            for v, p in ((visual, prompt), (visual.cuda(), prompt.cuda()))
        )
        assert all(torch.equal(a, b.cpu()) for a, b in zip(on_cpu, on_gpu, strict=True))
    assert select(visual.cuda(), prompt.cuda(), 5, 9) == select(visual, prompt, 5, 9)


@pytest.mark.gpu
def test_tables_on_the_device_need_no_sync(require_backend: Callable[..., None]) -> None:
    require_backend("reference", device="cuda")
    offsets, core, diverse, *sizes = next(random_tables(1))
    prompt = torch.empty(4, 2, device="cuda")
    on_gpu = [x.cuda() for x in (offsets, core, diverse)]
    spans = torch.tensor([[0, 3], [-2, 99]], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        table = ragged_table(*on_gpu, *sizes)
        clamped = [prompt_spans(s, 2, prompt) for s in (None, spans)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(table.cpu(), _table_of_tensors(offsets, core, diverse, *sizes))
    assert clamped[1].tolist() == [[0, 3], [0, 4]]
