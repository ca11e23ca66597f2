# SPDX-License-Identifier: Apache-2.0
"""The segment table: what every kernel of a ragged batch reads instead of the caller's tensors."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

# Columns of the table, one row a segment.
FIRST_ROW, LENGTH, K_CORE, K_DIVERSE, FIRST_SLOT = range(5)


def ragged_table(
    cu_seqlens: Tensor,
    k_core: Tensor | None,
    k_diverse: Tensor,
    total_k: int,
    max_seqlen: int,
    num_rows: int,
) -> Tensor:
    """Clamp offsets and counts to what the buffers hold, on their device and without a sync.

    Segment s owns the tokens `[FIRST_ROW, FIRST_ROW + LENGTH)` and the output slots
    `[FIRST_SLOT, FIRST_SLOT + K_CORE + K_DIVERSE)`. Slots follow one another in segment order;
    where `total_k` runs out, diversity picks are given up before core picks.

    Args:
        cu_seqlens: offsets `[S + 1]`, int32 or int64, any values.
        k_core: core tokens a segment `[S]`, or None for none.
        k_diverse: diversity tokens a segment `[S]`.
        total_k: number of output slots.
        max_seqlen: longest segment the caller allows.
        num_rows: number of packed tokens T.

    Returns:
        int64 `[S, 5]`, contiguous; no segment leaves the T tokens or the `total_k` slots.
    """
    make = _table_on_host if cu_seqlens.is_cpu else _table_on_device
    return make(cu_seqlens, k_core, k_diverse, total_k, max_seqlen, num_rows)


def _table_on_host(
    cu_seqlens: Tensor,
    k_core: Tensor | None,
    k_diverse: Tensor,
    total_k: int,
    max_seqlen: int,
    num_rows: int,
) -> Tensor:
    """One segment at a time: for a few segments, less than the cost of two tensor operations."""
    offsets = [min(max(row, 0), num_rows) for row in cu_seqlens.tolist()]
    cores = [0] * len(k_diverse) if k_core is None else k_core.tolist()
    table = array("q")  # int64, and a buffer: torch.tensor would take a list item by item
    slot = 0
    for s, (core, diverse) in enumerate(zip(cores, k_diverse.tolist(), strict=True)):
        core = min(max(core, 0), total_k - slot)
        diverse = min(max(diverse, 0), total_k - slot - core)
        length = min(max(offsets[s + 1] - offsets[s], 0), max_seqlen)
        table.extend((offsets[s], length, core, diverse, slot))
        slot += core + diverse
    if not table:
        return torch.empty((0, 5), dtype=torch.int64, device=cu_seqlens.device)
    return torch.frombuffer(table, dtype=torch.int64).view(-1, 5)


def _table_on_device(
    cu_seqlens: Tensor,
    k_core: Tensor | None,
    k_diverse: Tensor,
    total_k: int,
    max_seqlen: int,
    num_rows: int,
) -> Tensor:
    """The same without reading a value on the host."""
    offsets = cu_seqlens.long().clamp(0, num_rows)
    diverse = k_diverse.long().clamp(0, total_k)
    core = torch.zeros_like(diverse) if k_core is None else k_core.long().clamp(0, total_k)
    ends = torch.stack((core, diverse), dim=1).flatten().cumsum(0)  # [2S]: core, diverse, core, ...
    edges = torch.nn.functional.pad(ends, (1, 0)).clamp_(max=total_k)
    counts = edges.diff()
    length = offsets.diff().clamp_(0, max_seqlen)
    return torch.stack((offsets[:-1], length, counts[::2], counts[1::2], edges[:-1:2]), dim=1)


def prompt_spans(spans: Tensor | None, num_segments: int, prompt: Tensor) -> Tensor:
    """Prompt tokens `[start, end)` of each segment: int64 `[S, 2]` with 0 <= start <= end <= P.

    Without spans every segment uses the whole prompt; a span that ends before it starts is empty.
    """
    if spans is None:
        # Filled by a kernel: a tensor made from a list would be copied to the device in a sync.
        spans = torch.zeros((num_segments, 2), dtype=torch.int64, device=prompt.device)
        spans[:, 1] = prompt.shape[0]
        return spans
    start, end = spans.long().clamp(0, prompt.shape[0]).unbind(1)
    return torch.stack((start, torch.maximum(start, end)), dim=1)
