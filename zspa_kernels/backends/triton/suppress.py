# SPDX-License-Identifier: Apache-2.0
"""suppress: tokens by falling score, without those too similar to one taken before.

Algorithm   : a scan of the order in blocks. Per block:
              1. compare it with all tokens taken, and with itself; a cosine that float32 cannot
                 tell from the threshold is computed in float64;
              2. take from it one token after the other, as far as none taken suppresses it.
              It ends with the k-th token (GreedyPrune, arXiv 2506.13166).
Inputs      : visual [B, N, D], float32/float16/bfloat16, any row strides; scores [B, N], any
              floating dtype; mask bool [B, N]
Outputs     : int64 indices in the order of taking, [B, k]; slots that get no token stay -1
Work        : at most N k dots, 128 rows per pass; N^2 comparisons of scores; 2 launches, a copy and
              2 fills, 0 syncs; scratch of 16 bytes per token, 8 per slot, 64 KiB per group and 16
              KiB per program (no N x N matrix)
Mapping     : as diversity: one cooperative launch of groups of programs, one group per segment.
              The tiles of block by tokens taken are shared by a group; one program takes tokens
Numerics    : float32; within its error of the threshold float64 decides, on a grid of 2^-40
Deterministic: yes: picks are those of the formula in float64
Limits      : N < 2^31 - 2^20 (block numbers are int32); N * D may exceed 2^31 (int64 addresses)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _scratch
from . import suppress_phases as phases
from ._common import Segments, launch, meet, program, row_strides, segment
from ._exact import halves
from ._group import ARRIVED, CONTROL
from ._steps import greedy_in_steps
from .diversity import group_grid, norms
from .diversity_config import registers
from .suppress_config import Config, config, slack
from .suppress_steps import PHASES, suppress_step


@triton.jit(do_not_specialize=["segments", "N", "k", "fill", "limit_high", "limit_low", "programs"])
def _suppress_greedy_kernel(
    visual,
    inv_norm,
    scores,
    indices,
    order,
    hits,
    above,
    near,
    control,
    segments,
    N,
    D,
    stride_b,
    stride_n,
    k,
    fill,
    over,
    under,
    limit_high,
    limit_low,
    programs,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK_ROWS: tl.constexpr,
    RANK_COLS: tl.constexpr,
    PAIRS: tl.constexpr,
    WIDE: tl.constexpr,
    HIP: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """All phases in one launch: a group of programs does its segments one after another."""
    group, me = program(programs, REVERSED)
    hits, above, near, control = phases.group_memory(
        group, me, programs, hits, above, near, control, k, BLOCK, ROWS, COLS
    )
    arrivals = control + ARRIVED
    meetings = 0
    for seg in range(group, segments, tl.num_programs(0) // programs):
        first, _, origin, _, length, _, slots, slot = segment(
            seg, None, N, stride_b, stride_n, 0, k
        )
        x, inv, own_order, out = visual + origin, inv_norm + first, order + first, indices + slot
        phases.rank(
            scores + first, inv, own_order, control, length, me, programs, RANK_ROWS, RANK_COLS
        )
        meetings += 1
        meet(arrivals, meetings * programs, HIP)  # the order is there
        pos = 0
        done = 0
        more = slots > 0
        while more:
            count = phases.compare(
                x, inv, own_order, out, hits, above, near, pos, done, length, D, stride_n,
                over, under, limit_high, limit_low, me, programs,
                BLOCK, ROWS, COLS, BLOCK_K, CHUNK, PAIRS, WIDE,
            )  # fmt: skip
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # all comparisons are there
            if me == 0:
                phases.take(
                    own_order, out, hits, above, control, pos, count, done, slots, length, fill,
                    BLOCK, COLS,
                )  # fmt: skip
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # what was taken is there
            pos, done, more = phases.onward(control, pos, count, slots, length, BLOCK)
        if seg + tl.num_programs(0) // programs < segments:
            meetings += 1
            meet(arrivals, meetings * programs, HIP)  # the group's memory is free again


def suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    threshold: float,
    fill: bool,
    visual_mask: Tensor | None,
) -> Tensor:
    """See `zspa_kernels.suppress`."""
    batch, n, dim = visual.shape
    device = visual.device
    indices = torch.full((batch, k), -1, dtype=torch.int64, device=device)
    if indices.numel() == 0:
        return indices
    segments = Segments(batch, n, 0, k)
    cfg = config(dim, visual.element_size(), hip=torch.version.hip is not None)
    groups, programs = group_grid(cfg, segments, device)
    scratch = _scratch.allocate(device, _plan(cfg, visual, k, groups, programs))
    scratch["scores"].copy_(scores)
    scratch["control"].zero_()
    norms(cfg, visual, segments, visual_mask, None, scratch["inv_norm"])
    open_ = slack(dim, cfg.chunk) + 2.0**-22  # the sums below are rounded to float32
    arguments = (
        *(visual, scratch["inv_norm"], scratch["scores"], indices),
        *(scratch[name] for name in ("order", "hits", "above", "near", "control")),
        *(batch, n, dim, *row_strides(visual), k, int(fill)),
        *(threshold + open_, threshold - open_, *halves(threshold * 2.0**40), programs),
    )
    options = {
        "BLOCK": cfg.block,
        "ROWS": cfg.rows,
        "COLS": cfg.cols,
        "BLOCK_K": cfg.block_k,
        "CHUNK": cfg.chunk,
        "RANK_ROWS": cfg.rank_rows,
        "RANK_COLS": cfg.rank_cols,
        "PAIRS": cfg.pairs,
        "WIDE": cfg.wide,
        "HIP": cfg.hip,
        "REVERSED": cfg.reverse,
        "num_warps": cfg.warps,
        "num_stages": cfg.stages,
        **registers(cfg.hip),
    }
    if device.type == "cpu":
        greedy_in_steps(
            suppress_step, launch, groups * programs, device, *arguments, phases=PHASES, **options
        )
    else:
        kernel = _suppress_greedy_kernel
        launch(kernel, groups * programs, device, *arguments, together=True, **options)
    return indices


def _plan(cfg: Config, visual: Tensor, k: int, groups: int, programs: int) -> _scratch.Plan:
    """The scratch memory."""
    block = cfg.block
    return {
        "inv_norm": (torch.float32, visual.shape[:-1]),
        "scores": (torch.float64, visual.shape[:-1]),
        "order": (torch.int32, visual.shape[:-1]),
        "hits": (torch.int32, (groups * -(-k // cfg.cols) * block,)),
        "above": (torch.int32, (groups * block * block,)),
        "near": (torch.int32, (groups * programs * cfg.rows * cfg.cols,)),
        "control": (torch.int32, (groups * CONTROL.value,)),
    }
