# SPDX-License-Identifier: Apache-2.0
"""The published selection loops in plain PyTorch: what this package is measured against.

All have the signature `(visual [N, D], prompt [M, D] or None, k_core, k_diverse) -> indices [K]`
and return the core by falling relevance, then the diversity picks in order. They compute in the
dtype of the tokens: give float32 copies, since half-precision cosines choose other tokens. They
know no masks, and rows must be finite and not zero. Written for speed within PyTorch: what does not
change is computed once, and no pick allocates more than its own row.

Sources: DivPrune (arXiv 2503.02175), ZSPAPrune (arXiv 2510.17197); written from the formulas.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def divprune_loop(visual: Tensor, prompt: Tensor | None, k_core: int, k_diverse: int) -> Tensor:
    """DivPrune in its published shape: every pick reduces the distances to all picks so far again.

    The distance matrix is `1 - cosine`; the first pick has the largest second-smallest distance in
    its column (the smallest is its own); each next pick has the largest smallest distance. Picked
    tokens are masked, which the publication leaves to their distance being 0.

    Work: N^2 D for the matrix, K^2 N / 2 reads of it. Has no core: `k_core` must be 0.
    """
    if k_core:
        raise ValueError(f"divprune_loop: k_core must be 0, got {k_core}")
    unit = _unit(visual)
    distance = 1 - unit @ unit.T
    picks = torch.empty(k_diverse, dtype=torch.int64, device=visual.device)
    if not k_diverse:
        return picks
    if visual.shape[0] == 1:
        return picks.zero_()
    score = torch.topk(distance, 2, dim=0, largest=False).values[1]
    picks[0] = score.argmax()
    for t in range(1, k_diverse):
        score = distance.index_select(0, picks[:t]).amin(0)
        score[picks[:t]] = -torch.inf
        picks[t] = score.argmax()
    return picks


def zspaprune_loop(visual: Tensor, prompt: Tensor | None, k_core: int, k_diverse: int) -> Tensor:
    """ZSPAPrune read plainly: core by relevance, then reduce the similarities to all picks again.

    Equations 4 to 7 give the core, 8 and 9 the picks, with the selected set growing. Without core
    the first pick is DivPrune's.

    Work: N^2 D for the matrix, K^2 N / 2 reads of it.
    """
    unit = _unit(visual)
    similarity = unit @ unit.T
    picks = torch.empty(k_core + k_diverse, dtype=torch.int64, device=visual.device)
    start = _start(picks, unit, prompt, k_core, lambda: _isolated(similarity))
    for t in range(start, k_core + k_diverse):
        largest = similarity.index_select(0, picks[:t]).amax(0)
        largest[picks[:t]] = torch.inf
        picks[t] = largest.argmin()
    return picks


def incremental(visual: Tensor, prompt: Tensor | None, k_core: int, k_diverse: int) -> Tensor:
    """Running maximum, one matrix-vector product a pick: no N x N matrix with a core.

    Work: N K D, reading all tokens once per pick. Without core the first pick takes one blockwise
    N^2 D product.
    """
    unit = _unit(visual)
    picks = torch.empty(k_core + k_diverse, dtype=torch.int64, device=visual.device)
    start = _start(picks, unit, prompt, k_core, lambda: _isolated_blockwise(unit))
    if start < k_core + k_diverse:
        chosen = picks[:start]
        largest = (unit @ unit[chosen].T).amax(-1)
        largest[chosen] = torch.inf
        for t in range(start, k_core + k_diverse):
            pick = int(largest.argmin())
            picks[t] = pick
            torch.maximum(largest, unit @ unit[pick], out=largest)
            largest[pick] = torch.inf
    return picks


def gram_incremental(visual: Tensor, prompt: Tensor | None, k_core: int, k_diverse: int) -> Tensor:
    """All cosines once, then a running maximum: one large matrix product and K row passes.

    Work: N^2 D for the matrix, N K after it.
    """
    unit = _unit(visual)
    similarity = unit @ unit.T
    picks = torch.empty(k_core + k_diverse, dtype=torch.int64, device=visual.device)
    start = _start(picks, unit, prompt, k_core, lambda: _isolated(similarity))
    if start < k_core + k_diverse:
        chosen = picks[:start]
        largest = similarity.index_select(0, chosen).amax(0)
        largest[chosen] = torch.inf
        for t in range(start, k_core + k_diverse):
            pick = int(largest.argmin())
            picks[t] = pick
            torch.maximum(largest, similarity[pick], out=largest)
            largest[pick] = torch.inf
    return picks


def dpp_loop(visual: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """Greedy MAP of a determinantal point process, by Chen's algorithm on the full kernel.

    Chen, Zhang and Zhou (2018), algorithm 1, without a stopping rule: k must not exceed the rank.
    Each pick subtracts a product of the factor with one of its columns from a row of the kernel,
    which is faster than the same as separate vector updates.

    Work: N^2 D for the kernel, N k^2 / 2 multiply-adds after it.
    """
    unit = _unit(visual)
    if weights is not None:
        unit = unit * weights[:, None]
    kernel = unit @ unit.T
    # Not the computed diagonal, whose rounding would choose among equals.
    residual = kernel.new_ones(visual.shape[0]) if weights is None else weights.square()
    factor = kernel.new_empty(k, visual.shape[0])
    picks = torch.empty(k, dtype=torch.int64, device=visual.device)
    for t in range(k):
        pick = int(residual.argmax())
        picks[t] = pick
        row = kernel[pick] - factor[:t, pick] @ factor[:t]
        row /= residual[pick].sqrt()
        factor[t] = row
        residual -= row.square()
        residual[pick] = -torch.inf
    return picks


def facility_location_loop(cover: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """Greedy facility location in its published shape, on a given matrix.

    `cover[r, j]` says how well token j covers row r. Every pick adds up what each token would add
    to every row, over the whole matrix; what is covered starts at 0.

    Work: R N K, and R N of temporary memory.
    """
    best = cover.new_zeros(cover.shape[0])
    free = torch.ones(cover.shape[1], dtype=torch.bool, device=cover.device)
    picks = torch.empty(k, dtype=torch.int64, device=cover.device)
    for t in range(k):
        gain = (cover - best[:, None]).clamp_min_(0).sum(0)
        if weights is not None:
            gain *= weights
        pick = int(gain.masked_fill_(~free, -1).argmax())
        picks[t] = pick
        free[pick] = False
        torch.maximum(best, cover[:, pick], out=best)
    return picks


Baseline = Callable[[Tensor, Tensor | None, int, int], Tensor]

#: By name; `divprune_loop` only without core.
BASELINES: dict[str, Baseline] = {
    "divprune_loop": divprune_loop,
    "zspaprune_loop": zspaprune_loop,
    "incremental": incremental,
    "gram_incremental": gram_incremental,
}


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.square().sum(-1, keepdim=True).sqrt()


def _start(
    picks: Tensor, unit: Tensor, prompt: Tensor | None, k_core: int, first: Callable[[], Tensor]
) -> int:
    """Write the core, or DivPrune's first pick without one; returns how many were written."""
    if k_core:
        if prompt is None:
            raise ValueError("baselines: prompt must be given when k_core > 0, got None")
        relevance = unit @ _unit(prompt.to(unit.dtype).mean(0))
        # A stable sort, because the order of ties in torch.topk is not specified.
        picks[:k_core] = relevance.sort(descending=True, stable=True).indices[:k_core]
        return k_core
    if picks.shape[0]:
        picks[0] = first()
        return 1
    return 0


def _isolated(similarity: Tensor) -> Tensor:
    """The token whose largest similarity to any other is smallest; destroys the diagonal."""
    return similarity.fill_diagonal_(-torch.inf).amax(0).argmin()


def _isolated_blockwise(unit: Tensor, block: int = 1024) -> Tensor:
    n = unit.shape[0]
    largest = torch.empty(n, dtype=unit.dtype, device=unit.device)
    for start in range(0, n, block):
        similarity = unit[start : start + block] @ unit.T
        similarity.diagonal(start).fill_(-torch.inf)
        largest[start : start + block] = similarity.amax(-1)
    return largest.argmin()
