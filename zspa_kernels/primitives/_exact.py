# SPDX-License-Identifier: Apache-2.0
"""One image's valid tokens: cosines in bulk in float32, and in float64 where these cannot decide.

A matrix product gives equal rows unequal values and depends on how many rows it is given. So no
decision rests on its last bits: where two candidates are closer than its error, their cosines are
computed again, row by row in float64, where equal rows are equal. What is chosen is therefore what
a float64 reading of the rule gives, ties to the lowest index, alone or in a batch.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..backends.reference._common import on_grid, row_sum

SHORTEST = 2.0**-40  # of a row that has a direction
LONGEST = 2.0**40  # of a valid row
#: Rows of a temporary: it stays in cache, where a large one costs more in page faults than in work.
ROWS = 128
_CHUNK = 2**19  # elements of a float64 temporary


def lengths(x: Tensor) -> Tensor:
    """float32 `[..., N]`: lengths of rows, infinite or NaN for those that have none."""
    if x.dtype is torch.float32:
        whole: Tensor = torch.linalg.vector_norm(x, dim=-1)
        return whole
    rows = x.reshape(-1, x.shape[-1]).split(ROWS)
    parts = [torch.linalg.vector_norm(part.float(), dim=-1) for part in rows]
    return torch.cat(parts).reshape(x.shape[:-1])


def twins(tokens: Tensor) -> Tensor:
    """int64 `[V]`: the lowest index of a row of `tokens` `[V, D]` with the same bits."""
    size = tokens.element_size()
    bits = tokens.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    # Odd factors, sums modulo 2**64: equal rows have equal keys, and others nearly never.
    generator = torch.Generator(device="cpu").manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (bits.shape[-1],), generator=generator, device="cpu")
    factors = (2 * factors + 1).to(bits.device)
    keys = [(part.long() * factors).sum(-1) for part in bits.split(1 + _CHUNK // len(factors))]
    here = torch.arange(len(tokens), device=bits.device)
    if not keys:
        return here
    _, group = torch.cat(keys).unique(return_inverse=True)
    first = torch.full_like(here, len(tokens)).scatter_reduce(0, group, here, "amin")[group]
    return torch.where((bits == bits[first]).all(-1), first, here)


class Image:
    """Valid tokens of one image.

    Attributes:
        index: int64 `[V]`, where each stood among all tokens; all else counts from 0 to V.
        tokens: `[V, D]`, as given.
        directed: bool `[V]`, False for zero rows.
        inverse: float32 `[V]`, one over the length, 0 for zero rows.
        slack: how far a float32 cosine may be from the exact one.
    """

    def __init__(self, tokens: Tensor, mask: Tensor | None = None, limit: float = LONGEST) -> None:
        length = lengths(tokens)
        valid = length <= limit  # False for NaN
        if mask is not None:
            valid = valid & mask
        self.index = valid.nonzero()[:, 0]
        if len(self.index) < len(tokens):
            tokens, length = tokens[self.index], length[self.index]
        self.tokens = tokens
        self.directed = length >= SHORTEST
        self.inverse = torch.where(self.directed, 1.0 / length, 0.0)
        self.slack = 4e-6 * max(1.0, math.sqrt(tokens.shape[-1] / 4096))

    def __len__(self) -> int:
        return len(self.index)

    def unit(self, rows: Tensor) -> Tensor:
        """float32 `[R, D]`: directions of the tokens `rows`, zero for zero rows."""
        return self.tokens[rows].float().mul_(self.inverse[rows, None])

    def exact(self, i: Tensor, j: Tensor) -> Tensor:
        """float64 `[P]`: cosines of the pairs `(i, j)` on a grid of 2**-40; 0 with a zero row.

        The grid is coarser than the error of float64, so pairs of equal cosine are equal.
        """
        step = max(1, _CHUNK // self.tokens.shape[-1])
        parts = [
            row_sum(self.exact_unit(a) * self.exact_unit(b))
            for a, b in zip(i.split(step), j.split(step), strict=True)
        ]
        return on_grid(torch.cat(parts)) if parts else self.inverse.new_empty(0).double()

    def exact_unit(self, i: Tensor) -> Tensor:
        """float64 `[P, D]`: directions of the tokens `i`."""
        rows = self.tokens[i].double()
        length = row_sum(rows * rows).sqrt()
        return rows / torch.where(self.directed[i], length, torch.inf)[:, None]

    @functools.cached_property
    def twin(self) -> Tensor:
        """int64 `[V]`: the lowest index of a row with the same bits."""
        return twins(self.tokens)

    def nearest(self, queries: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """For each of `queries` `[Q]` the place in `targets` `[T]` of the most similar one.

        At a tie the first place wins. Zero rows are similar to nothing: as queries they get the
        first target, as targets they are taken only where there is no other.

        Returns:
            int64 `[Q]`, and float32 `[Q]` cosines, -1 with a zero row.
        """
        cosines = self.unit(queries) @ self.unit(targets).T
        if not bool(self.directed.all()):
            cosines[:, ~self.directed[targets]] = -2.0
            cosines[~self.directed[queries]] = -2.0
        best, place = cosines.max(dim=-1)
        floor = best - 2 * self.slack
        second = cosines.scatter_(1, place[:, None], -3.0).amax(-1)
        rivals = (second >= floor).nonzero()[:, 0]
        if len(rivals):
            cosines.scatter_(1, place[:, None], best[:, None])
            near = cosines[rivals] >= floor[rivals, None]
            place[rivals] = self._first_best(queries[rivals], targets, near)
        return place, best.clamp_min(-1.0)

    def _first_best(self, queries: Tensor, targets: Tensor, near: Tensor) -> Tensor:
        """The exact most similar target of each query among those that are `near` `[Q, T]`."""
        twin = self.twin[targets]
        _, group = twin.unique(return_inverse=True)
        places = torch.arange(len(targets), device=targets.device)
        first = torch.full_like(places, len(targets)).scatter_reduce(0, group, places, "amin")
        near = near & (first[group] == places)  # equal targets: only the first can win
        q, t = near.nonzero(as_tuple=True)
        exact = self.exact(queries[q], targets[t])
        best = exact.new_full(queries.shape, -torch.inf).scatter_reduce(0, q, exact, "amax")
        winners = torch.where(exact == best[q], t, len(targets))
        return torch.full_like(queries, len(targets)).scatter_reduce(0, q, winners, "amin")


def images(visual: Tensor, mask: Tensor | None) -> list[Image]:
    """The images of a batch, or the one of unbatched tokens."""
    if visual.ndim == 2:
        return [Image(visual, mask)]
    return [Image(row, None if mask is None else mask[b]) for b, row in enumerate(visual)]


def padded(picks: list[Tensor], k: int, like: Tensor) -> Tensor:
    """int64 `[B, k]` or `[k]`: the picks of each image, then -1."""
    out = torch.full((len(picks), k), -1, dtype=torch.int64, device=like.device)
    for row, chosen in zip(out, picks, strict=True):
        row[: len(chosen)] = chosen
    return out if like.ndim == 3 else out[0]
