# SPDX-License-Identifier: Apache-2.0
"""`zk.warmup` launches every kernel that calls of its size can need: none is compiled later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

import zspa_kernels as zk
from zspa_kernels._ops import dispatch
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
    select,
    soft_suppress,
    suppress,
)
from zspa_kernels.backends.triton.diversity_config import whole

PARTS = (diversity_whole, facility_location_matrix, relevance_topk, select)  # without a greedy
MODULES = (diversity, dpp, facility_location, min_sum, soft_suppress, suppress, *PARTS)
N, D, K = 300, 64, 9


@pytest.fixture
def launched(require_backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """What is compiled by itself: a kernel, which arguments are left out, and its constants."""
    require_backend("triton")
    seen: set[Any] = set()

    def launch(kernel: Any, programs: int, device: Any, *args: Any, **options: Any) -> None:
        kinds = tuple(a if a is None else getattr(a, "dtype", type(a)) for a in args)
        seen.add((kernel.__name__, kinds, tuple(options.items())))

    def greedy(
        step: Any, _launch: Any, *args: Any, phases: Any = None, once: Any = None, **options: Any
    ) -> int:
        launch(step, *args, **options)
        return 0

    def on_a_gpu(cfg: Any, segments: Any, device: Any) -> tuple[int, int]:
        return diversity_config.grid(cfg, segments.rows, segments.count, 132)

    for module in MODULES:
        monkeypatch.setattr(module, "launch", launch)
        if module not in PARTS:
            monkeypatch.setattr(module, "greedy_in_steps", greedy)
            monkeypatch.setattr(module, "group_grid", on_a_gpu)

    def few_on_a_gpu(cfg: Any, segments: Any, device: Any) -> bool:
        return segments.table is None and whole(cfg, segments.rows, segments.count, 132)

    monkeypatch.setattr(diversity, "few_tokens", few_on_a_gpu)

    def choose(op: str, device: Any) -> Any:
        return dispatch.load("triton", op)

    monkeypatch.setattr(dispatch, "choose", choose)
    return seen


def _call_every_op() -> None:
    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    visual, words = zeros(3, N, D, dtype=torch.bfloat16), zeros(3, 5, D, dtype=torch.bfloat16)
    seeds, benefits = zeros(3, 4, dtype=torch.int64), zeros(3, 7, N)
    masks: list[dict[str, Any]] = [{}, {"visual_mask": zeros(3, N, dtype=torch.bool)}]
    for mask, weights in product(masks, ({}, {"weights": zeros(3, N)})):
        given: dict[str, Any] = {**mask, **weights}
        zk.diversity(visual, K, **given)
        more = {name: x[:1].expand(12, -1) for name, x in given.items()}
        zk.diversity(visual[:1].expand(12, -1, -1), K, **more)
        zk.dpp(visual, K, **given)
        for temperature, rows in product((0.0, 0.2), (None, benefits)):
            zk.facility_location(visual, K, benefits=rows, temperature=temperature, **given)
    for mask in masks:
        zk.diversity(visual, K, seeds=seeds, **mask)
        zk.min_sum(visual, K, **mask)
        zk.min_sum(visual, K, seeds=seeds, **mask)
        for kind in (torch.float32, torch.float64):
            rated, places = zeros(3, N, dtype=kind), zeros(3, N, 2, dtype=torch.int64)
            zk.suppress(visual, rated, K, threshold=0.3, **mask)
            for rule, where in product(("subtract", "scale"), (None, places)):
                given = {"rule": rule, "positions": where, **mask}
                zk.soft_suppress(visual, rated, K, sharpness=3.0, **given)
        zk.select(visual, words, k_core=3, k_diverse=5, **mask)
        zk.select(visual, k_core=0, k_diverse=5, **mask)
        zk.relevance_topk(visual, words, K, **mask)
    images = [visual[0, :100], visual[1]]
    zk.min_sum_varlen(images, [4, 9])
    for heavy in (None, [zeros(100), zeros(N)]):
        zk.dpp_varlen(images, [4, 9], weights=heavy)
        for temperature in (0.0, 0.2):
            zk.facility_location_varlen(images, 4, weights=heavy, temperature=temperature)


def _call_ragged(images: list[Tensor], weights: list[Tensor]) -> None:
    zk.select_varlen(images, images[0][:1], k_core=1, k_diverse=0)
    zk.min_sum_varlen(images, 1)
    for heavy in (None, weights):
        zk.diversity_varlen(images, 1, weights=heavy)
        zk.dpp_varlen(images, 1, weights=heavy)


def test_warmup_of_some_ops(launched: set[Any]) -> None:
    zk.warmup("cpu", torch.bfloat16, num_tokens=N, dim=D, ops=("select",))
    ready = set(launched)
    families = {name.lstrip("_").partition("_")[0] for name, *_ in ready}
    assert families == {"diversity", "relevance", "select"}
    for n, images in product((64, 300, 513, 1025), (1, 5, 40)):
        visual = torch.zeros(1, 1, D, dtype=torch.bfloat16).expand(images, n, -1)
        for mask in ({}, {"visual_mask": torch.ones(images, n, dtype=torch.bool)}):
            zk.select(visual, visual[:, :1], k_core=1, k_diverse=3, **mask)
            zk.select(visual, k_core=0, k_diverse=3, **mask)
        zk.select_varlen(list(visual), visual[0, :1], k_core=1, k_diverse=1)
    assert launched == ready


def test_warmup_leaves_nothing_to_compile(launched: set[Any]) -> None:
    zk.warmup("cpu", torch.bfloat16, num_tokens=N, dim=D)
    ready = set(launched)
    _call_every_op()
    assert {name for name, *_ in launched - ready} == set()
    assert len(ready) > 40


@pytest.mark.parametrize("num_tokens", [2, 16, 2880])
def test_warmup_serves_images_of_other_sizes(launched: set[Any], num_tokens: int) -> None:
    zk.warmup("cpu", torch.bfloat16, num_tokens=num_tokens, dim=D)
    ready = set(launched)
    for n, images in product((1, 64, 256, 300, 513, 1024, 1025, 16384), (1, 2, 5, 8, 40, 200)):
        visual = torch.zeros(1, 1, D, dtype=torch.bfloat16).expand(images, n, -1)
        weights, seeds = torch.zeros(1, 1).expand(images, n), torch.zeros(images, 1).long()
        for given in ({}, {"weights": weights}):
            zk.diversity(visual, 1, **given)
            zk.dpp(visual, 1, **given)
        zk.diversity(visual, 1, seeds=seeds)
        zk.min_sum(visual, 1, seeds=seeds)
        zk.min_sum(visual, 1)
        zk.select(visual, visual[:, :1], k_core=1, k_diverse=0)
        if n < 16384:
            _call_ragged(list(visual), list(weights))
        assert {name for name, *_ in launched - ready} == set(), (n, images)


@pytest.mark.parametrize("before", [None, lambda: "skipped"])
def test_only_the_thread_that_captures_is_refused(
    before: Callable[[], str] | None,
    require_backend: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What other threads compile meanwhile is up to the hook they had, which is as it was."""
    require_backend("triton")
    knobs = triton.knobs.runtime
    monkeypatch.setattr(knobs, "jit_cache_hook", before)
    found: list[Any] = []

    class Cold:
        __name__ = "cold"

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return self.compile

        def compile(self) -> None:
            other = threading.Thread(target=lambda: found.append(knobs.jit_cache_hook()))
            other.start()
            other.join()
            knobs.jit_cache_hook()

    with pytest.raises(RuntimeError, match=r"cold must be compiled.*zk\.warmup"):
        _common._launch_in_capture(Cold(), 1, (), {})
    assert found == [before and before()]
    assert knobs.jit_cache_hook is before
