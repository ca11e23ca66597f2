# SPDX-License-Identifier: Apache-2.0
"""Rows by index, with -1 as padding."""

from __future__ import annotations

import torch
from torch import Tensor

from ._contract import selection as _rules


def gather(x: Tensor, indices: Tensor) -> Tensor:
    """Take the rows a selection points at; zeros where it points at none.

    A plain `gather` fails on the -1 that pads a selection. This is the way to use indices, and the
    way gradients flow: the selection itself has no derivative, the kept rows do.

    Args:
        x: what to take rows of, `[B, N, ...]`, or `[N, ...]` for unbatched indices; any dtype:
            tokens, position ids, masks, scores.
        indices: int64 `[B, K]` or `[K]`. -1, and any other value outside `[0, N)`, gives zeros.

    Returns:
        `[B, K, ...]` or `[K, ...]`, dtype and device of `x`; differentiable in `x`.

    Raises:
        TypeError: `indices` is not an int64 tensor, or `x` is not a tensor.
        ValueError: ranks, batch sizes or devices do not fit.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> gather(x, torch.tensor([1, -1]))
        tensor([[3., 4.],
                [0., 0.]])
    """
    _rules.gather(x, indices)
    batch = indices.ndim - 1
    n = x.shape[batch]
    if n == 0:
        return x.new_zeros((*indices.shape, *x.shape[batch + 1 :]))
    inside = (indices >= 0) & (indices < n)
    rows = torch.where(inside, indices, 0)
    # Indexing, not torch.gather: its backward has a deterministic implementation on every device.
    if batch:
        rows = x[torch.arange(x.shape[0], device=x.device)[:, None], rows]
    else:
        rows = x[rows]
    return rows.masked_fill(~inside.reshape(*inside.shape, *[1] * (rows.ndim - inside.ndim)), 0)
