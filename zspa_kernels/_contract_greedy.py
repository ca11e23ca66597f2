# SPDX-License-Identifier: Apache-2.0
"""The rules about arguments of the greedy ops beside `diversity`; see `_contract`."""

from __future__ import annotations

from torch import Tensor

from ._contract import _FLOAT32, _INTS, Shape, _companion, _ragged, _visual, count


def dpp(
    visual: Tensor,
    k: int,
    weights: Tensor | None = None,
    visual_mask: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::dpp`."""
    batch, n = _visual("dpp", visual, visual_mask)
    count("dpp", k, n)
    if weights is not None:
        _companion("dpp", "weights", weights, visual, _FLOAT32, (*batch, n))
    return (*batch, k)


def dpp_varlen(
    visual: Tensor,
    cu_seqlens: Tensor,
    k: Tensor,
    total_k: int,
    max_seqlen: int,
    weights: Tensor | None = None,
) -> Shape:
    """Rules of `zspa::dpp_varlen`."""
    segments = _ragged("dpp_varlen", visual, cu_seqlens, total_k, max_seqlen)
    _companion("dpp_varlen", "k", k, visual, _INTS, (segments,))
    if weights is not None:
        _companion("dpp_varlen", "weights", weights, visual, _FLOAT32, (visual.shape[0],))
    return (total_k,)
