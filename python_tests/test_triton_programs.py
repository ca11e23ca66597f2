# SPDX-License-Identifier: Apache-2.0
"""Launches whose programs do not wait for each other: none touches what another one writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from python_tests.triton_small import SMALL, apart, shrunk, with_fault
from python_tests.triton_together import RaceError, Together
from zspa_kernels.backends.triton import (
    _scratch,
    diversity,
    diversity_whole,
    facility_location,
    facility_location_matrix,
    relevance_topk,
    select,
    sensitivity,
)
from zspa_kernels.testing import tokens

TILES = SMALL | {"norm_block_n": 4, "block": 8, "rows": 8, "cols": 8}
TILES |= {"whole_rows": 1024, "whole_tiles": 99}
RELEVANCE = {"block_n": 4, "max_block_n": 8, "max_block_m": 2, "pool_block_d": 16, "rank_rows": 4}
COVERAGE = {"list_block": 8, "soft_rows": 4, "soft_cols": 4, "programs": 6}
FORM = {"form_n": 2, "form_r": 4, "response_n": 2, "response_m": 2, "response_o": 4, "score_n": 2}
CONFIGS: dict[Any, dict[str, Any]] = {
    diversity: TILES,
    facility_location: TILES | COVERAGE,
    relevance_topk: RELEVANCE,
    select: {"slots": 4, "columns": 4},
    sensitivity: FORM,
}


@pytest.fixture
def launched(
    require_backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> dict[str, int]:
    """The kernels of all plain launches, with the fewest programs they had."""
    require_backend("triton")
    together, seen = Together(monkeypatch, seed=1), dict[str, int]()

    def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **o: Any) -> None:
        seen[kernel.__name__] = min(programs, seen.get(kernel.__name__, programs))
        together.launch(kernel, programs, device, *args, **o)

    monkeypatch.setattr(_scratch, "allocate", apart)
    for module, fields in CONFIGS.items():
        monkeypatch.setattr(module, "config", _small(module.config, fields))
    for module in (*CONFIGS, diversity_whole, facility_location_matrix):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(facility_location, "greedy_in_steps", lambda *args, **options: 0)
    return seen


def _small(config: Callable[..., Any], fields: dict[str, Any]) -> Callable[..., Any]:
    return lambda *args, **options: shrunk(config(*args, **options), fields)


def test_programs_share_nothing(launched: dict[str, int]) -> None:
    visual = torch.stack([tokens(model, 14, 24, seed=6) for model in ("iid", "exact")])
    visual[0, 3], visual[1, 5] = 0.0, torch.nan
    words = tokens("iid", 6, 24, seed=5).view(2, 3, 24)
    heard = torch.tensor([[True, False, True], [False] * 3])  # the second image has no core
    select.select(visual, words, 6, 5, None, heard, "mean", True)
    relevance_topk.relevance_topk(visual, words, 6, None, heard, "none_max")
    facility_location.facility_location(visual, 2, None, None, None, 0.2, 1.0)
    w1, w2, u = (tokens("iid", *shape) for shape in ((20, 24), (9, 20), (5, 24)))
    sensitivity.sensitivity(visual, w1, None, w2, "gelu", u, 0.05)
    sensitivity.sensitivity_rms(visual, w1, None, w2, "silu", torch.ones(20))
    assert len(launched) == 15
    assert min(launched.values()) >= 2, launched


def test_rows_that_two_programs_divide_are_found(
    launched: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mutant = with_fault(facility_location_matrix, ("programs * ROWS)", "ROWS)"), tmp_path)
    monkeypatch.setattr(mutant, "launch", vars(facility_location_matrix)["launch"])
    monkeypatch.setattr(facility_location, "matrices", mutant)
    with pytest.raises(RaceError, match="not ordered after"):
        facility_location.facility_location(tokens("iid", 20, 24)[None], 2, None, None, None, 1, 1)
