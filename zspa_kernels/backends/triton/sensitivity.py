# SPDX-License-Identifier: Apache-2.0
"""Perturbation sensitivity: how far a projector's output moves when its input does.

Algorithm   : a = W1 x + b1 by BLAS, where it is not given. Form: g = act'(a) in registers, product
              with the factor, squares of the product summed. Responses (ZOO-Prune, arXiv
              2509.24837): rows are pairs (token, direction), (act(a + h s) - act(a - h s)) / (2 h)
              in registers, product with W2, squares summed. Then roots, mean over directions, NaN
              for invalid tokens.
Inputs      : tokens [B, N, D] or pre-activations [B, N, H], float32/float16/bfloat16, any row
              strides; w1 [H, D], b1 [H], w2 [O, H], factor [R, H], diagonal [H], shifts s [m, H]
Outputs     : scores float32 [B, N]
Work        : 2 N H R flops, or 2 N m H O; one read of the pre-activations per 128 rows of the
              factor; 2 launches, 0 syncs, scratch 4 N (R / 128) or 4 N m (O / 128) bytes;
              pre-activations that are not given exist for 2048 tokens at a time
Mapping     : program <-> block of rows x block of the factor's or W2's rows
Numerics    : derivatives and quotients in float32; product in the dtype of the factor or W2 with
              float32 sums ("ieee": no TF32); squares in float32. The quotient is a series in the
              odd powers of the step (first term act', second act''' / 6): nothing cancels, radius 0
              is its limit. A block with a step beyond 1/16 takes the difference for that step.
Deterministic: yes: no atomics; partial sums are added in one order
Limits      : N < 2^31; N * H may exceed 2^31 (int64 addresses); |a| is cut at 80, where every
              derivative has reached 0 or 1
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._blas import full_float32
from ._activations import odd_part, quotient
from ._common import HUGE, INF, launch, only_if, program, row_sums, tile_dots
from .sensitivity_config import Config, config


@triton.jit
def hidden_tile(hidden, bias, n, ok, h, H, stride_n):
    """Pre-activations of the tokens `n` and units `h`, float32; 0 outside."""
    inside = h < H
    row = hidden + (n.to(tl.int64) * stride_n)[:, None]
    a = tl.load(row + h[None, :], mask=ok[:, None] & inside[None, :], other=0.0).to(tl.float32)
    if bias is not None:
        a += tl.load(bias + h, mask=inside, other=0.0)[None, :]
    return a


@triton.jit(do_not_specialize=["N", "blocks"])
def _sensitivity_form_kernel(
    hidden,
    bias,
    factor,
    diagonal,
    parts,
    N,
    H,
    R,
    stride_n,
    stride_r,
    blocks,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """parts[b, n] = squared length of block b of factor @ act'(hidden n); 0 has the diagonal."""
    nb, rb = program(blocks, REVERSED)
    n = nb * BLOCK_N + tl.arange(0, BLOCK_N)
    r = rb * BLOCK_R + tl.arange(0, BLOCK_R)
    ok = n < N
    row = factor + (r.to(tl.int64) * stride_r)[:, None]
    total = tl.full([BLOCK_N, BLOCK_R], 0.0, tl.float32)
    form = tl.full([BLOCK_N], 0.0, tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H)
        inside = (h < H)[None, :]
        a = hidden_tile(hidden, bias, n, ok, h, H, stride_n)
        g, _ = odd_part(a, ACTIVATION)
        # Outside, weights and factor are 0 anyway; but without this the kernel for sm_80 spills.
        g = tl.where(ok[:, None] & inside, g, 0.0)  # [BLOCK_N, BLOCK_H]
        if diagonal is not None:
            weight = tl.load(diagonal + h, mask=only_if(rb == 0, h < H), other=0.0)
            form += tl.sum(weight[None, :] * g * g, 1)
        f = tl.load(row + h[None, :], mask=(r < R)[:, None] & inside, other=0.0)
        total = tile_dots(g.to(f.dtype), f, total)
    form += tl.sum(total * total, 1)
    tl.store(parts + rb.to(tl.int64) * N + n, form, mask=ok)


@triton.jit(do_not_specialize=["N", "radius", "blocks_m", "blocks_o"])
def _sensitivity_response_kernel(
    hidden,
    bias,
    shifts,
    w2,
    parts,
    N,
    M,
    H,
    O,  # noqa: E741 - the name of the axis
    radius,
    stride_n,
    stride_o,
    blocks_m,
    blocks_o,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_H: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """parts[b, n, j] = squared length of block b of the response of token n to direction j."""
    nb, rest = program(blocks_m * blocks_o, REVERSED)
    mb, ob = rest // blocks_o, rest % blocks_o
    n = nb * BLOCK_N + tl.arange(0, BLOCK_N)
    j = mb * BLOCK_M + tl.arange(0, BLOCK_M)
    o = ob * BLOCK_O + tl.arange(0, BLOCK_O)
    row = w2 + (o.to(tl.int64) * stride_o)[:, None]
    total = tl.full([BLOCK_N * BLOCK_M, BLOCK_O], 0.0, tl.float32)
    for h0 in range(0, H, BLOCK_H):
        h = h0 + tl.arange(0, BLOCK_H)
        inside = (h < H)[None, :]
        a = hidden_tile(hidden, bias, n, n < N, h, H, stride_n)  # [BLOCK_N, BLOCK_H]
        first, third = odd_part(a, ACTIVATION)
        at = shifts + (j.to(tl.int64) * H)[:, None] + h[None, :]
        s = tl.load(at, mask=(j < M)[:, None] & inside, other=0.0)  # [BLOCK_M, BLOCK_H]
        q = quotient(
            a[:, None, :], first[:, None, :], third[:, None, :], s[None, :, :], radius, ACTIVATION
        )
        w = tl.load(row + h[None, :], mask=(o < O)[:, None] & inside, other=0.0)
        q = tl.reshape(q, [BLOCK_N * BLOCK_M, BLOCK_H])
        total = tile_dots(q.to(w.dtype), w, total)
    pair = tl.arange(0, BLOCK_N * BLOCK_M)
    n = nb * BLOCK_N + pair // BLOCK_M
    j = mb * BLOCK_M + pair % BLOCK_M
    at = parts + (ob.to(tl.int64) * N + n) * M + j
    tl.store(at, tl.sum(total * total, 1), mask=(n < N) & (j < M))


@triton.jit(do_not_specialize=["N", "M", "blocks"])
def _sensitivity_score_kernel(
    tokens,
    parts,
    scores,
    N,
    M,
    D,
    stride_n,
    blocks,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    REVERSED: tl.constexpr,
):
    """scores[n] = mean over j of sqrt(sum over b of parts[b, n, j]); NaN for an invalid token."""
    nb, _ = program(1, REVERSED)
    n = nb * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = n < N
    q, _ = row_sums(tokens + (n.to(tl.int64) * stride_n)[:, None], ok, None, D, BLOCK_N, BLOCK_K)
    total = tl.full([BLOCK_N], 0.0, tl.float32)
    for j0 in range(0, M, BLOCK_M):
        j = j0 + tl.arange(0, BLOCK_M)
        there = ok[:, None] & (j < M)[None, :]
        square = tl.full([BLOCK_N, BLOCK_M], 0.0, tl.float32)
        at = parts + n.to(tl.int64)[:, None] * M + j[None, :]
        for b in range(blocks):
            square += tl.load(at + tl.cast(b, tl.int64) * N * M, mask=there, other=0.0)
        total += tl.sum(tl.sqrt_rn(square), 1)
    score = total / M
    valid = (q <= HUGE) & (score < INF)  # False for NaN
    tl.store(scores + n, tl.where(valid, score, float("nan")), mask=ok)


def sensitivity(
    features: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    activation: str,
    directions: Tensor,
    radius: float,
) -> Tensor:
    """Scores float32 `[B, N]` of `[B, N, D]`."""
    with full_float32(features.device):
        shifts = directions.float() @ w1.float().T
    return _responses(features, w1, b1, w2, activation, shifts, radius)


def sensitivity_hidden(
    preactivation: Tensor, w2: Tensor, activation: str, shifts: Tensor, radius: float
) -> Tensor:
    """Scores float32 `[B, N]` of pre-activations `[B, N, H]`."""
    shifts = shifts.float().contiguous()
    return _responses(preactivation, None, None, w2, activation, shifts, radius)


def sensitivity_rms(
    features: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    factor: Tensor,
    activation: str,
    diagonal: Tensor | None,
) -> Tensor:
    """Scores float32 `[B, N]` of `[B, N, D]`."""
    return _forms(features, w1, b1, factor, activation, diagonal)


def sensitivity_rms_hidden(
    preactivation: Tensor, factor: Tensor, activation: str, diagonal: Tensor | None
) -> Tensor:
    """Scores float32 `[B, N]` of pre-activations `[B, N, H]`."""
    return _forms(preactivation, None, None, factor, activation, diagonal)


def _forms(
    tokens: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    factor: Tensor,
    activation: str,
    diagonal: Tensor | None,
) -> Tensor:
    rows = tokens.flatten(0, 1)
    R, H = factor.shape
    cfg = _config(rows, w1, 1, factor)
    blocks = max(1, triton.cdiv(R, cfg.form_r))
    scores = _floats(rows, len(rows))
    for part, out in zip(rows.split(cfg.rows), scores.split(cfg.rows), strict=True):
        hidden = _hidden(part, w1)
        parts = _floats(rows, blocks, len(part))
        launch(
            _sensitivity_form_kernel,
            triton.cdiv(len(part), cfg.form_n) * blocks,
            rows.device,
            *(hidden, b1, factor, diagonal, parts),
            *(len(part), H, R, hidden.stride(0), factor.stride(0), blocks),
            ACTIVATION=activation,
            BLOCK_N=cfg.form_n,
            BLOCK_R=cfg.form_r,
            BLOCK_H=cfg.form_h,
            REVERSED=cfg.reverse,
            num_warps=cfg.form_warps,
            num_stages=cfg.form_stages,
        )
        _score(part, parts, 1, out, cfg)
    return scores.view(tokens.shape[:2])


def _responses(
    tokens: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    activation: str,
    shifts: Tensor,
    radius: float,
) -> Tensor:
    rows = tokens.flatten(0, 1)
    (m, H), O = shifts.shape, len(w2)  # noqa: E741
    cfg = _config(rows, w1, m, w2)
    blocks_m, blocks_o = triton.cdiv(m, cfg.response_m), triton.cdiv(O, cfg.response_o)
    scores = _floats(rows, len(rows))
    for part, out in zip(rows.split(cfg.rows), scores.split(cfg.rows), strict=True):
        hidden = _hidden(part, w1)
        parts = _floats(rows, blocks_o, len(part), m)
        launch(
            _sensitivity_response_kernel,
            triton.cdiv(len(part), cfg.response_n) * blocks_m * blocks_o,
            rows.device,
            *(hidden, b1, shifts, w2, parts),
            *(len(part), m, H, O, radius, hidden.stride(0), w2.stride(0), blocks_m, blocks_o),
            ACTIVATION=activation,
            BLOCK_N=cfg.response_n,
            BLOCK_M=cfg.response_m,
            BLOCK_O=cfg.response_o,
            BLOCK_H=cfg.response_h,
            REVERSED=cfg.reverse,
            num_warps=cfg.response_warps,
            num_stages=cfg.response_stages,
        )
        _score(part, parts, m, out, cfg)
    return scores.view(tokens.shape[:2])


def _score(rows: Tensor, parts: Tensor, m: int, scores: Tensor, cfg: Config) -> None:
    launch(
        _sensitivity_score_kernel,
        triton.cdiv(len(rows), cfg.score_n),
        rows.device,
        *(rows, parts, scores, len(rows), m, rows.shape[1], rows.stride(0), len(parts)),
        BLOCK_N=cfg.score_n,
        BLOCK_M=cfg.score_m,
        BLOCK_K=cfg.score_k,
        REVERSED=cfg.reverse,
        num_warps=cfg.score_warps,
    )


def _hidden(rows: Tensor, w1: Tensor | None) -> Tensor:
    """`W1 x` of rows `[n, D]`, without the bias; the rows where they are that already."""
    if w1 is None:
        return rows
    with full_float32(rows.device):
        if rows.is_cuda and rows.dtype == w1.dtype != torch.float32:
            return torch.mm(rows, w1.T, out_dtype=torch.float32)
        return rows.float() @ w1.float().T


def _config(rows: Tensor, w1: Tensor | None, m: int, weight: Tensor) -> Config:
    # What `_hidden` makes is float32.
    hidden_itemsize = rows.element_size() if w1 is None else 4
    h, d, itemsize = weight.shape[1], rows.shape[1], weight.element_size()
    return config(h, d, m, itemsize, hidden_itemsize, torch.version.hip is not None)


def _floats(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)
