# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels beyond the contract: program order, shared blocks, addresses, host."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.overrides import TorchFunctionMode

from python_tests import triton_aot
from zspa_kernels._segments import ragged_table
from zspa_kernels.backends.triton import (
    _common,
    diversity,
    diversity_config,
    diversity_whole,
    dpp,
    facility_location,
    facility_location_matrix,
    min_sum,
    relevance_topk,
    relevance_topk_config,
    select,
    select_config,
    sensitivity,
    soft_suppress,
    suppress,
    suppress_config,
)
from zspa_kernels.testing.tokens import tokens

MODULES = (
    *(diversity, diversity_whole, dpp, facility_location, facility_location_matrix, min_sum),
    *(relevance_topk, select, soft_suppress, suppress),
)


@pytest.fixture(autouse=True)
def interpreted(require_backend: Callable[..., None]) -> None:
    require_backend("triton")


# --- building blocks ------------------------------------------------------------------------------


@triton.jit
def _pairs_kernel(x, y, out, D, ROWS: tl.constexpr, COLS: tl.constexpr, BLOCK_K: tl.constexpr):
    i, j = tl.arange(0, ROWS), tl.arange(0, COLS)
    dots = _common.pair_dots(
        x + (i * D)[:, None], i != 1, y + (j * D)[:, None], j != 2, D, ROWS, COLS, BLOCK_K
    )
    tl.store(out + i[:, None] * COLS + j[None, :], dots)


@pytest.mark.parametrize("types", [("bfloat16", "bfloat16"), ("bfloat16", "float32")])
def test_tiles_of_bfloat16_are_multiplied_by_value(types: tuple[str, str]) -> None:
    """The interpreter would multiply bit patterns; -3 ... 3 has exact products in any order."""
    x, y = (
        torch.randint(-3, 4, (rows, 40), generator=torch.Generator().manual_seed(rows)).float()
        for rows in (32, 16)
    )
    x[1], y[2] = torch.nan, torch.inf  # not ok: must not be read
    out = torch.empty(32, 16)
    a, b = x.to(getattr(torch, types[0])), y.to(getattr(torch, types[1]))
    _common.launch(_pairs_kernel, 1, out.device, a, b, out, 40, ROWS=32, COLS=16, BLOCK_K=16)
    x[1], y[2] = 0, 0
    assert torch.equal(out, x @ y.T)


@triton.jit
def _sums_kernel(x, t, squares, dots, D, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    i = tl.arange(0, ROWS)
    q, s = _common.row_sums(x + (i * D)[:, None], i >= 0, t, D, ROWS, BLOCK_K)
    alone, _ = _common.row_sums(x + (i * D)[:, None], i >= 0, None, D, ROWS, BLOCK_K)
    tl.store(squares + i, tl.where(q == alone, q, -1.0))
    tl.store(dots + i, s)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_summed_in_one_order(dtype: torch.dtype) -> None:
    """Steps of BLOCK_K added up place by place, then neighbours in pairs; for any row the same."""
    d, block = 43, 16
    # Products are exact: whether `tl.fma` rounds them depends on the version of the interpreter.
    x = tokens("iid", 8, d, dtype=torch.bfloat16).to(dtype)
    t = tokens("iid", 1, d, dtype=torch.bfloat16, seed=1)[0].float()
    x[5], (squares, dots) = x[2], torch.empty(2, 8)
    _common.launch(_sums_kernel, 1, x.device, x, t, squares, dots, d, ROWS=8, BLOCK_K=block)
    padded = (torch.nn.functional.pad(v.float(), (0, 48 - d)) for v in (x, t))
    wide, other = (v.unflatten(-1, (3, block)) for v in padded)
    for product, got in ((wide * wide, squares), (wide * other, dots)):
        level = (product[:, 0] + product[:, 1]) + product[:, 2]
        while level.shape[1] > 1:
            level = level[:, ::2] + level[:, 1::2]
        assert torch.equal(got, level[:, 0])
    assert squares[5] == squares[2]


@triton.jit
def _keys_kernel(value, index, key, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(key + i, _common.order_key(tl.load(value + i), tl.load(index + i)))


def test_keys_order_by_value_then_index() -> None:
    inf, tiny = float("inf"), 1e-45
    values = [-inf, -2.0, -1.0, -tiny, -0.0, 0.0, -0.0, tiny, 1.0, 1.0, 3.4e38, inf]
    index = [9, 8, 2**31 - 1, 4, 0, 1, 2, 5, 3, 4, 7, 0]
    pad = [inf] * 4
    key = torch.empty(16, dtype=torch.int64)
    arguments = (torch.tensor(values + pad), torch.tensor(index + [7] * 4, dtype=torch.int32), key)
    _common.launch(_keys_kernel, 1, key.device, *arguments, SIZE=16)
    assert key[:12].tolist() == sorted(set(key[:12].tolist()))
    assert (key & 0xFFFFFFFF)[:12].tolist() == index
    assert (key[:11] < _common.KEY_END.value).all()  # what can be chosen
    assert (key[11:] >= _common.KEY_END.value).all()


@triton.jit
def _places_kernel(
    out, first, table, N, stride_b, stride_n, k_core, k_diverse, PLACES: tl.constexpr
):
    seg = first + tl.program_id(0)
    scratch, row, origin, base, length, core, diverse, slot = _common.segment(
        seg, table, N, stride_b, stride_n, k_core, k_diverse
    )
    out += tl.program_id(0) * PLACES
    tl.store(out, scratch)
    tl.store(out + 1, row)
    tl.store(out + 2, origin)
    tl.store(out + 3, base)
    tl.store(out + 4, tl.cast(length, tl.int64))
    tl.store(out + 5, tl.cast(core, tl.int64))
    tl.store(out + 6, tl.cast(diverse, tl.int64))
    tl.store(out + 7, slot)


def _places(segments: range, *arguments: Any) -> list[list[int]]:
    count = len(segments)
    out = torch.empty(count, 8, dtype=torch.int64)
    _common.launch(_places_kernel, count, out.device, out, segments.start, *arguments, PLACES=8)
    return out.tolist()


def test_places_of_a_padded_batch_do_not_overflow() -> None:
    n, stride_b, stride_n = 70_000, 70_000 * 5000, 5000
    (row,) = _places(range(39_999, 40_000), None, n, stride_b, stride_n, 60_000, 7)
    b = 39_999
    assert row == [b * n, b * n, b * stride_b, 0, n, 60_000, 7, b * 60_007]


def test_places_of_a_ragged_batch() -> None:
    lengths = torch.arange(300) % 7
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    counts = torch.full((300,), 2)
    table = ragged_table(starts, counts, counts + 1, 1500, 7, int(starts[-1]))
    last = range(250, 300)
    rows = _places(last, table, int(starts[-1]), 0, 2**30, 0, 0)
    for s, row in zip(last, rows, strict=True):
        first = int(starts[s])
        assert row == [first, first, first * 2**30, first, int(lengths[s]), 2, 3, 5 * s]


def test_falling_offsets_do_not_make_segments_share_scratch() -> None:
    counts = torch.full((5,), 3)
    table = ragged_table(torch.tensor([4, 10, 2, 12, 0, 9]), counts, counts, 30, 12, 12)
    rows = _places(range(5), table, 12, 0, 1, 0, 0)
    taken: list[int] = []
    for scratch, row, *_, length, _, _, _ in rows:
        taken += range(scratch, scratch + length)
        assert 0 <= row <= row + length <= 12
    assert taken == list(range(12))
    assert [row[4] for row in rows] == [6, 0, 6, 0, 0]  # the last one no longer fits


# --- program order --------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool, int], list[int]]:
    """Blocks so small that each launch has several programs; returns their numbers."""
    launched: list[int] = []
    plain = _common.launch

    def launch(kernel: Any, programs: int, *rest: Any, **options: Any) -> None:
        launched.append(programs)
        plain(kernel, programs, *rest, **options)

    def change(reverse: bool, programs: int) -> list[int]:
        fields: dict[Any, dict[str, Any]] = {
            diversity: {
                "norm_block_n": 8,
                "norm_programs": programs,
                "least_rows": 2,
                "block": 16,
                "rows": 16,
                "cols": 16,
                "update_rows": 16,
                "update_own": 4,
                "block_k": 16,
                "chunk": 32,
                "finished": 2,
                "votes": 4,
                "whole_rows": 0,
                "groups": (diversity_config.Group(min(programs, 4), 8, 16, True),),
            },
            relevance_topk: {
                "block_n": 8,
                "max_block_n": 16,
                "max_block_m": 16,
                "pool_block_d": 16,
                "rank_rows": 16,
                "rank_columns": 16,
            },
            select: {"slots": 4, "columns": 8},
        }
        configs = {
            diversity: diversity_config.config,
            relevance_topk: relevance_topk_config.config,
            select: select_config.config,
        }
        for module, config in configs.items():
            new = {**fields[module], "reverse": reverse}
            if module is not diversity:
                new["programs"] = programs
            monkeypatch.setattr(
                module,
                "config",
                lambda *a, c=config, f=new, **k: dataclasses.replace(c(*a, **k), **f),
            )
            monkeypatch.setattr(module, "launch", launch)
        monkeypatch.setattr(diversity, "INTERPRETED_PROGRAMS", 3)
        launched.clear()
        return launched

    return change


Change = Callable[[bool, int], list[int]]


def _batch(n: int = 34, d: int = 36) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    visual = torch.stack([tokens("vlm", n, d, seed) for seed in range(3)])
    visual[0, 5], visual[1, 7], visual[2, 9] = 0, torch.nan, visual[2, 30]
    prompt = torch.stack([tokens("iid", 5, d, seed) for seed in (7, 8, 9)])
    mask = torch.rand(3, n, generator=torch.Generator().manual_seed(0)) < 0.9
    prompt_mask = torch.tensor([[True, True, False, True, True]] * 2 + [[False] * 5])
    return visual, prompt, mask, prompt_mask


def _padded(pooling: str) -> list[Tensor]:
    visual, prompt, mask, prompt_mask = _batch()
    picks = select.select(visual, prompt, 6, 6, mask, prompt_mask, pooling, True)
    scores = relevance_topk.relevance_topk(visual, prompt, 6, mask, prompt_mask, pooling)
    return [picks, *scores]


def _ragged() -> list[Tensor]:
    visual, prompt, _, _ = _batch()
    packed, words = visual.flatten(0, 1), prompt.flatten(0, 1).repeat(2, 1)
    starts = torch.tensor([0, 34, 35, 58, 100])
    counts = torch.tensor([6, 2, 5, 4])
    table = ragged_table(starts, counts, counts + 1, 40, 42, 102)
    spans = torch.tensor([[0, 5], [3, 9], [4, 4], [2, 29]])
    weights = torch.rand(102, generator=torch.Generator().manual_seed(1))
    alone = ragged_table(starts, None, counts, 17, 42, 102)
    return [
        select.select_varlen(packed, table, words, spans, 40, "mean", True),
        diversity.diversity_varlen(packed, alone, 17, weights),
    ]


@pytest.mark.parametrize(
    "run",
    [lambda: _padded("mean"), lambda: _padded("none_max"), _ragged],
    ids=["mean", "max", "ragged"],
)
def test_program_order_changes_no_bit(
    run: Callable[[], list[Tensor]], small_blocks: Change
) -> None:
    """Fresh memory is poisoned in every test, so nothing may be read before it is written."""
    assert torch.empty(3).isnan().all()
    launched = small_blocks(False, 12)
    forward = run()
    assert launched
    assert min(launched) >= 3
    small_blocks(True, 12)
    reverse = run()
    few = small_blocks(True, 1)  # one program a segment does all blocks
    alone = run()
    assert max(few) <= 12
    for a, b, c in zip(forward, reverse, alone, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("few", [True, False])
def test_seeds_and_picks_have_the_same_cosines(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kernels compute them; picks continued from seeds must not differ in a bit."""
    monkeypatch.setattr(diversity, "few_tokens", lambda *_: few)
    visual = torch.stack([tokens("clusters", 60, 70, seed) for seed in range(2)])
    whole = diversity.diversity(visual, 12, None, None, None)
    rest = diversity.diversity(visual, 8, whole[:, :4].contiguous(), None, None)
    assert torch.equal(rest, whole[:, 4:])


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.raw_memory
def test_rows_beyond_two_to_the_31_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows, 2**30 elements apart: only the touched pages of the buffer become memory."""
    d, stride = 16, 2**30
    buffer = torch.empty(3 * stride + d, dtype=torch.bfloat16)
    visual = buffer.as_strided((4, d), (stride, 1))
    visual.copy_(tokens("iid", 4, d, dtype=torch.bfloat16))
    near = visual.clone()
    for x in (visual[None], visual[:, None]):
        batch, n, _ = x.shape
        prompt = tokens("iid", batch * 2, d, seed=1).view(batch, 2, d)
        dense = near.view(batch, n, d)
        for pooling in ("mean", "none_max"):
            far = relevance_topk.relevance_topk(x, prompt, 1, None, None, pooling)
            want = relevance_topk.relevance_topk(dense, prompt, 1, None, None, pooling)
            assert all(torch.equal(a, b) for a, b in zip(far, want, strict=True))
        for few in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(diversity, "few_tokens", lambda *_, few=few: few)
                picks = diversity.diversity(x, n, None, None, None)
                assert torch.equal(picks, diversity.diversity(dense, n, None, None, None))
        assert torch.equal(dpp.dpp(x, n, None, None), dpp.dpp(dense, n, None, None))
        covers = facility_location.facility_location
        given = (n, None, None, None, 0.0, 1.0)
        assert torch.equal(covers(x, *given), covers(dense, *given))
        rated = (dense[..., 0], n, 0.0, True, None)
        for slack in (suppress_config.slack, lambda *_: 2.0):  # of all pairs: float64 decides
            with monkeypatch.context() as patch:
                patch.setattr(suppress, "slack", slack)
                assert torch.equal(suppress.suppress(x, *rated), suppress.suppress(dense, *rated))
        assert torch.equal(min_sum.min_sum(x, n, None, None), min_sum.min_sum(dense, n, None, None))
        soft, everywhere = soft_suppress.soft_suppress, (None, torch.inf, torch.inf, None)
        weak = (dense[..., 0], n, 9.0, "subtract", *everywhere)
        assert torch.equal(soft(x, *weak), soft(dense, *weak))
    counts = torch.tensor([1, 1])
    table = ragged_table(torch.tensor([0, 2, 4]), counts, counts, 4, 2, 4)
    words, spans = tokens("iid", 3, d, seed=2), torch.tensor([[0, 2], [1, 3]])
    picks = select.select_varlen(visual, table, words, spans, 4, "mean", False)
    assert torch.equal(picks, select.select_varlen(near, table, words, spans, 4, "mean", False))
    shifts = tokens("iid", 3, d, seed=3)
    forms = sensitivity.sensitivity_rms_hidden
    assert torch.equal(forms(x, visual, "gelu", None), forms(dense, near, "gelu", None))
    responses = sensitivity.sensitivity_hidden
    away, close = (responses(*both, "gelu", shifts, 0.01) for both in ((x, visual), (dense, near)))
    assert torch.equal(away, close)


# --- host -----------------------------------------------------------------------------------------


def test_launchers_read_no_value_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors have no values: an .item() or a boolean index would raise."""
    launched: list[str] = []

    def launch(kernel: Any, programs: int, device: torch.device, *a: Any, **k: Any) -> None:
        assert device.type == "meta"
        launched.append(kernel.__name__)

    for module in MODULES:
        monkeypatch.setattr(module, "launch", launch)
    triton_aot.call_selection(torch.bfloat16, full=True)
    stem = re.compile(
        r"_(relevance_topk|diversity|dpp|facility_location|min_sum|select|(soft_)?suppress)"
        r"_\w+_kernel"
    )
    stems = {stem.match(name) for name in launched}
    assert None not in stems


@pytest.mark.parametrize("sorted_", [True, False])
def test_one_allocation_beside_the_output(sorted_: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made by torch is recorded; the interpreter's own bookkeeping is not part of it."""
    visual, prompt, _, _ = _batch()
    made: list[tuple[int, ...]] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if func in (torch.empty, torch.full, torch.zeros, torch.empty_like, torch.full_like):
                made.append(tuple(result.shape))
            return result

    for module in MODULES:
        monkeypatch.setattr(module, "launch", lambda *a, **k: None)
    for module in (diversity, dpp, facility_location, soft_suppress, suppress):
        monkeypatch.setattr(module, "greedy_in_steps", lambda *a, **k: 0)
    with Recorder():
        select.select(visual, prompt, 3, 4, None, None, "mean", sorted_)
        dpp.dpp(visual, 7, None, None)
        facility_location.facility_location(visual, 7, None, None, None, 0.2, 1.0)
        suppress.suppress(visual, visual[..., 0], 7, 0.5, True, None)
        near = (visual[..., :2], 1.0, 2.0, None)
        soft_suppress.soft_suppress(visual, visual[..., 0], 7, 9.0, "scale", *near)
    assert len(made) == 10
    assert made[::2] == [(3, 7)] * 5


def test_order_of_sums_depends_on_channels_and_dtype_only() -> None:
    """Block sizes that decide bits come from these two; nothing else is asked."""
    for d in (1, 15, 16, 17, 100, 128, 4096, 5000):
        for itemsize in (2, 4):
            a = diversity_config.config(d, itemsize)
            b = relevance_topk_config.config(d, itemsize)
            assert a.norm_block_k == b.block_k  # an inverse norm is the same whoever makes it
            for block in (a.norm_block_k, a.block_k, b.max_block_k):
                assert block >= 16  # the least depth of a tile product
                assert block & (block - 1) == 0
            assert a.chunk % a.block_k == 0


def test_each_block_has_a_program_or_shares_one() -> None:
    cfg = relevance_topk_config.config(64, 2)
    assert [relevance_topk_config.programs(cfg, n, 4, 16) for n in (0, 33)] == [1, 3]
    for segments, most in ((4, cfg.programs // 4), (10**6, 1)):
        assert relevance_topk_config.programs(cfg, 10**6, segments, 16) == most
    stream = relevance_topk_config.stream_programs
    assert (stream(cfg, 3168, 1), stream(cfg, 3169, 1)) == (792, 199)
    norms = diversity_config.config(64, 2)
    assert [diversity_config.norm_programs(norms, n, 4) for n in (0, 33)] == [1, 9]
    assert diversity_config.norm_programs(norms, 10**6, 4) == norms.norm_programs // 4
    assert select_config.programs(select_config.config(), 65, 2) == 9


def test_no_host_synchronisation_in_the_source() -> None:
    banned = re.compile(
        r"\.item\(|\.tolist\(|\.cpu\(|nonzero|synchronize|\bassert\b|make_block_ptr"
    )
    for path in Path(_common.__file__).parent.glob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not banned.search(line), f"{path.name}:{number}: {line.strip()}"
