# SPDX-License-Identifier: Apache-2.0
"""How much of DivPrune's seed search bounds avoid on a GPU: `python -m bench.gpu_seed`.

Counts, no times, and no GPU: the rules of the Triton kernel, followed with all cosines at hand. The
tests hold the counts to those of the kernel itself.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.registry import SHAPES
from zspa_kernels.backends.triton.diversity_config import Config, config, grid, group
from zspa_kernels.testing import MODELS, tokens

MULTIPROCESSORS = 132


@dataclass
class Work:
    """What a search multiplies.

    Attributes:
        finishes: Passes that multiply columns with all rows.
        columns: Of all these passes.
        shift: Rows between similar tokens, as finished columns told; 0 if they did not agree.
    """

    finishes: int = 0
    columns: int = 0
    shift: int = 0


def search(cosines: Tensor, cfg: Config, programs: int) -> Work:
    """The work of the search among tokens that all have a direction.

    Args:
        cosines: `[N, N]` of all pairs.
        cfg: Of the kernel.
        programs: Of the group.
    """
    n = len(cosines)
    cosines = cosines.clone().fill_diagonal_(-torch.inf)
    bound, work, best = torch.full((n,), -1.0), Work(), torch.inf
    _near(cosines, bound, cfg.cols, 0)
    chosen = torch.tensor([], dtype=torch.int64)
    while True:
        edge = _edge(bound, cfg, programs)
        if len(chosen):
            final, nearest = cosines[:, chosen].max(0)
            best = min(best, float(final.min()))
            votes = Counter((nearest - chosen).abs().tolist())
            shift, count = _most({o: c for o, c in votes.items() if o >= cfg.block // 4})
            if work.shift == 0 and edge < best and count >= cfg.votes:
                work.shift, chosen = shift, chosen[:0]
                _near(cosines, bound, cfg.cols, shift)
                _near(cosines, bound, cfg.cols, -shift)
                continue
        chosen = (bound < min(edge, best)).nonzero()[:, 0]
        if not len(chosen):
            return work
        work.finishes += 1
        work.columns += len(chosen)
        bound = torch.maximum(bound, cosines[:, chosen].amax(1))
        bound[chosen] = torch.inf


def _near(cosines: Tensor, bound: Tensor, block: int, shift: int) -> None:
    """Every block of rows meets the block `shift` rows further on."""
    n = len(bound)
    for first in range(0, n, block):
        rows = slice(first, min(first + block, n))
        low, high = max(first + shift, 0), min(first + block + shift, n)
        if low < high:
            bound[rows] = torch.maximum(bound[rows], cosines[rows, low:high].amax(1))


def _edge(bound: Tensor, cfg: Config, programs: int) -> float:
    """The largest bound of what is not proposed that no more than a block of keys lie below."""
    width = group(cfg, programs).width
    rows = max(width, -(-len(bound) // programs))
    own = torch.full((rows * programs,), torch.inf)
    own[: len(bound)] = bound
    proposed = own.view(rows, programs).sort(0).values[:width]
    edges = proposed.amin(1)
    below = (proposed.flatten()[:, None] < edges).sum(0)
    return float(edges[below <= cfg.block].max())


def _most(votes: dict[int, int]) -> tuple[int, int]:
    """(offset, votes) with the most votes, the smallest offset of several."""
    return min(votes.items(), key=lambda item: (-item[1], item[0]), default=(0, 0))


def main() -> int:
    """Print a line for each size and token model."""
    print(f"{'N':>5} {'tokens':9} {'passes':>6} {'columns':>8} {'share of N':>10} {'shift':>6}")
    for name in ("llava15", "qwen25vl", "llavanext", "large"):
        n, d = SHAPES[name].n, SHAPES[name].d
        cfg = config(d, 2)
        programs = grid(cfg, n, 1, MULTIPROCESSORS)[1]
        for model in MODELS:
            unit = torch.nn.functional.normalize(tokens(model, n, d, 0, torch.bfloat16).float())
            work = search(unit @ unit.T, cfg, programs)
            print(
                f"{n:5} {model:9} {work.finishes:6} {work.columns:8} {work.columns / n:10.1%} "
                f"{work.shift:6}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
