# SPDX-License-Identifier: Apache-2.0
"""The whole selection: a core by relevance, then diversity picks that start from the core.

ZSPAPrune (arXiv 2510.17197), equations 4 to 9; DivPrune (arXiv 2503.02175) when the core is empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._segments import FIRST_ROW, FIRST_SLOT, K_CORE, K_DIVERSE, LENGTH
from ._common import Rows, optional_row, write
from .diversity import greedy
from .relevance_topk import most_relevant, relevance


def select(
    visual: Tensor,
    prompt: Tensor | None,
    k_core: int,
    k_diverse: int,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
    pooling: str,
    sorted: bool,
) -> Tensor:
    """Indices int64 `[B, k_core + k_diverse]`."""
    batch = visual.shape[0]
    indices = torch.empty((batch, k_core + k_diverse), dtype=torch.int64, device=visual.device)
    for b in range(batch):
        rows = Rows.of(visual[b], optional_row(visual_mask, b))
        texts = None
        if prompt is not None:
            texts = Rows.of(prompt[b], optional_row(prompt_mask, b))
        write(indices[b], pick(rows, texts, k_core, k_diverse, pooling, sorted))
    return indices


def select_varlen(
    visual: Tensor,
    table: Tensor,
    prompt: Tensor | None,
    prompt_spans: Tensor | None,
    total_k: int,
    pooling: str,
    sorted: bool,
) -> Tensor:
    """Indices int64 `[total_k]` into the packed tokens."""
    indices = torch.full((total_k,), -1, dtype=torch.int64, device=visual.device)
    for s, segment in enumerate(table.tolist()):
        first, k_core, k_diverse = segment[FIRST_ROW], segment[K_CORE], segment[K_DIVERSE]
        rows = Rows.of(visual[first : first + segment[LENGTH]], None)
        texts = None
        if prompt is not None and prompt_spans is not None:
            start, end = prompt_spans[s].tolist()
            texts = Rows.of(prompt[start:end], None)
        slot = segment[FIRST_SLOT]
        picks = pick(rows, texts, k_core, k_diverse, pooling, sorted)
        write(indices[slot : slot + k_core + k_diverse], [first + i for i in picks])
    return indices


def pick(
    rows: Rows, texts: Rows | None, k_core: int, k_diverse: int, pooling: str, sorted: bool
) -> list[int]:
    """The selection of one segment; without a valid prompt token all of it is by diversity."""
    if texts is not None and texts.valid.any():
        core = most_relevant(rows, relevance(rows, texts, pooling), k_core)
        picks = core + greedy(rows, k_diverse, core, None)
    else:
        picks = greedy(rows, k_core + k_diverse, [], None)
    if sorted:
        picks.sort()
    return picks
