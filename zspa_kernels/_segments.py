# SPDX-License-Identifier: Apache-2.0
"""The segment table: what every kernel of a ragged batch reads instead of the caller's tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _native

# Columns of the table, one row per segment.
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
        k_core: core tokens per segment `[S]`, or None for none.
        k_diverse: diversity tokens per segment `[S]`.
        total_k: number of output slots.
        max_seqlen: longest segment the caller allows.
        num_rows: number of packed tokens T.

    Returns:
        int64 `[S, 5]`, contiguous; no segment leaves the T tokens or the `total_k` slots.
    """
    S = k_diverse.shape[0]
    if not cu_seqlens.is_cpu or _native.reason() is not None:
        return _table_of_tensors(cu_seqlens, k_core, k_diverse, total_k, max_seqlen, num_rows)
    table = cu_seqlens.new_empty(S, 5, dtype=torch.int64)
    offsets, diverse = cu_seqlens.contiguous(), k_diverse.contiguous()
    core = None if k_core is None else k_core.contiguous()
    _native.module().ragged_table(
        *_integers(offsets),
        *_integers(core),
        *_integers(diverse),
        S,
        num_rows,
        max_seqlen,
        total_k,
        table.data_ptr(),
    )
    return table


def _table_of_tensors(
    cu_seqlens: Tensor,
    k_core: Tensor | None,
    k_diverse: Tensor,
    total_k: int,
    max_seqlen: int,
    num_rows: int,
) -> Tensor:
    """The same by tensor operations: no value is read on the host."""
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
    if prompt.is_cpu and _native.reason() is None:
        out = prompt.new_empty(num_segments, 2, dtype=torch.int64)
        spans = None if spans is None else spans.contiguous()
        _native.module().prompt_spans(
            *_integers(spans), num_segments, prompt.shape[0], out.data_ptr()
        )
        return out
    return _spans_of_tensors(spans, num_segments, prompt)


def _spans_of_tensors(spans: Tensor | None, num_segments: int, prompt: Tensor) -> Tensor:
    """The same by tensor operations: no value is read on the host."""
    if spans is None:
        # Filled by a kernel: a tensor made from a list would be copied to the device in a sync.
        spans = torch.zeros((num_segments, 2), dtype=torch.int64, device=prompt.device)
        spans[:, 1] = prompt.shape[0]
        return spans
    start, end = spans.long().clamp(0, prompt.shape[0]).unbind(1)
    return torch.stack((start, torch.maximum(start, end)), dim=1)


def _integers(values: Tensor | None) -> tuple[int, bool]:
    """(address, are they int64) of contiguous int32 or int64 values on the host; 0 for none."""
    if values is None:
        return 0, True
    return values.data_ptr(), values.dtype is torch.int64
