# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels share: products, ordered sums, ordered keys, segments, launching.

Two rules keep a row's bits the same wherever the row stands and however its tensor is strided:

* a dot of two tiles goes through `pair_dots`: the matrix units (or, for float32, each thread) add
  along D in ascending steps of BLOCK_K for every pair alike, whatever way the tiles were loaded;
* a sum along one row goes through `ordered_sum`. `tl.sum` adds in the order of the register layout,
  which follows the width of the loads, which follows the alignment of the caller's strides.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zspa_kernels import _segments

from . import _compiled

# The interpreter is chosen when a kernel is decorated, which is when these modules are imported.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

INF = tl.constexpr(float("inf"))
LARGEST = tl.constexpr(3.4028234663852886e38)  # finite float32
TINY = tl.constexpr(2.0**-80)  # a smaller sum of squares has no direction
HUGE = tl.constexpr(2.0**80)  # a larger one, like NaN or Inf, counts as masked out
KEY_END = tl.constexpr(0x7F800000 << 32)  # the key of (+inf, 0): from here on nothing can be chosen

FIRST_ROW = tl.constexpr(_segments.FIRST_ROW)
LENGTH = tl.constexpr(_segments.LENGTH)
K_CORE = tl.constexpr(_segments.K_CORE)
K_DIVERSE = tl.constexpr(_segments.K_DIVERSE)
FIRST_SLOT = tl.constexpr(_segments.FIRST_SLOT)
COLUMNS = tl.constexpr(5)
COUNT = tl.constexpr(128)  # segments counted at a time

# How often a program asks whether all others have arrived, before it gives up: some 8 seconds if a
# question takes a microsecond. No phase should take a tenth of that; neither is measured yet.
# Programs of other processes may have the device in between.
POLLS = tl.constexpr(1 << 23)


@triton.jit
def program(programs, REVERSED: tl.constexpr):
    """(segment, which of its programs this one is). REVERSED: tests run the grid back to front."""
    pid = tl.program_id(0)
    if REVERSED:
        pid = tl.num_programs(0) - 1 - pid
    return pid // programs, pid % programs


@triton.jit
def segment(seg, table, N, stride_b, stride_n, k_core, k_diverse):
    """Where a segment's rows and output slots are.

    Returns (first row in scratch, first row in masks and weights, element offset of the first row,
    what to add to an index on output, length, k_core, k_diverse, first slot). A padded batch has no
    table: row b starts at b * N. The segments of a ragged batch of N = T tokens lie one after
    another in scratch, for offsets that fall may make them overlap in the tokens; what then goes
    beyond T rows of scratch is cut off.
    """
    if table is not None:
        before = tl.full([COUNT], 0, tl.int64)
        for s0 in range(0, seg, COUNT):
            s = s0 + tl.arange(0, COUNT)
            before += tl.load(table + s * COLUMNS + LENGTH, mask=s < seg, other=0)
        scratch = tl.minimum(tl.sum(before, 0), N)
        entry = table + seg * COLUMNS
        first = tl.load(entry + FIRST_ROW)
        length = tl.minimum(tl.load(entry + LENGTH), N - scratch).to(tl.int32)
        core = tl.load(entry + K_CORE).to(tl.int32)
        diverse = tl.load(entry + K_DIVERSE).to(tl.int32)
        slot = tl.load(entry + FIRST_SLOT)
        return scratch, first, first * stride_n, first, length, core, diverse, slot
    else:
        b = tl.cast(seg, tl.int64)
        slot = b * (k_core + k_diverse)
        return b * N, b * N, b * stride_b, b * 0, N, k_core, k_diverse, slot


@triton.jit
def only_if(condition, mask):
    """`mask`, a block, if the scalar `condition` holds, and nothing of it otherwise.

    In the interpreter `&` makes integers of a block and a scalar that was compared; that of Triton
    3.9 takes no mask of integers.
    """
    if INTERPRETED:
        return tl.where(condition, mask, False)
    else:
        return mask & condition


@triton.jit
def tile_dots(a, b, total):
    """`total` plus the dots of the rows of `a` [ROWS, K] with the rows of `b` [COLS, K].

    The one place where tiles are multiplied. float32 stays float32 ("ieee"): no TF32 anywhere; on
    sm_100 that takes fewer than 64 rows where dtypes differ (see relevance_topk_config). The
    interpreter multiplies the bit patterns of bfloat16 and its matrix product rounds by position,
    so there the products are added up openly.
    """
    if a.dtype != b.dtype or INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    if INTERPRETED:
        return total + tl.sum(a[:, None, :] * b[None, :, :], 2)
    else:
        return tl.dot(a, tl.trans(b), total, input_precision="ieee")


@triton.jit
def pair_dots(x, x_ok, y, y_ok, D, ROWS: tl.constexpr, COLS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Dots of the rows at `x` [ROWS, 1] with the rows at `y` [COLS, 1], float32 [ROWS, COLS].

    Rows that are not ok are never read and count as zero.
    """
    k = tl.arange(0, BLOCK_K)
    total = tl.full([ROWS, COLS], 0.0, tl.float32)
    for k0 in range(0, D, BLOCK_K):
        at = (k0 + k)[None, :]  # [1, BLOCK_K]
        a = tl.load(x + at, mask=x_ok[:, None] & (at < D), other=0.0)  # [ROWS, BLOCK_K]
        b = tl.load(y + at, mask=y_ok[:, None] & (at < D), other=0.0)  # [COLS, BLOCK_K]
        total = tile_dots(a, b, total)
    return total


@triton.jit
def ordered_sum(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """[ROWS, WIDTH] -> [ROWS]: neighbours are added in pairs, level by level, in any layout."""
    for level in tl.static_range(12):
        if (WIDTH >> level) > 1:
            left, right = tl.split(tl.reshape(x, [ROWS, WIDTH >> (level + 1), 2]))
            x = left + right
    return tl.reshape(x, [ROWS])


@triton.jit
def row_sums(x, x_ok, t, D, ROWS: tl.constexpr, BLOCK_K: tl.constexpr):
    """(sum of squares, dot with the float32 vector `t`) of the rows at `x` [ROWS, 1], read once.

    Without `t` the second sum is the first. The fused multiply-adds are spelled out, so that the
    sum of squares has the same bits with and without `t`.
    """
    k = tl.arange(0, BLOCK_K)
    squares = tl.full([ROWS, BLOCK_K], 0.0, tl.float32)
    dots = tl.full([ROWS, BLOCK_K], 0.0, tl.float32)
    for k0 in range(0, D, BLOCK_K):
        at = (k0 + k)[None, :]  # [1, BLOCK_K]
        v = tl.load(x + at, mask=x_ok[:, None] & (at < D), other=0.0)  # [ROWS, BLOCK_K]
        v = v.to(tl.float32)
        squares = tl.fma(v, v, squares)
        if t is not None:
            u = tl.load(t + k0 + k, mask=k0 + k < D, other=0.0)  # [BLOCK_K]
            dots = tl.fma(v, tl.broadcast_to(u[None, :], [ROWS, BLOCK_K]), dots)
    q = ordered_sum(squares, ROWS, BLOCK_K)
    if t is not None:
        return q, ordered_sum(dots, ROWS, BLOCK_K)
    else:
        return q, q


@triton.jit
def unit_scale(q):
    """1/sqrt(q), or 0 where q is the sum of squares of a zero row."""
    directed = q >= TINY
    inv = tl.div_rn(tl.full(q.shape, 1.0, tl.float32), tl.sqrt_rn(tl.where(directed, q, 1.0)))
    return tl.where(directed, inv, 0.0)


@triton.jit
def inverse_norm(q, ok):
    """1/sqrt(q) of a row with a direction, 0 of a zero row, -1 of one that counts as masked out."""
    return tl.where(ok & (q <= HUGE), unit_scale(q), -1.0)  # q <= HUGE is False for NaN


@triton.jit
def block_norms(
    x, i, length, tokens, mask, weights, D, stride_n, ROWS: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Inverse norms of the rows `i` [ROWS] of a segment whose rows start at `x`.

    `tokens`: its first row in `mask` and `weights`. A row with a weight that is NaN, infinite or
    negative counts as masked out.
    """
    ok = i < length
    if mask is not None:
        ok = ok & (tl.load(mask + tokens + i, mask=ok, other=0) != 0)
    if weights is not None:
        w = tl.load(weights + tokens + i, mask=ok, other=0.0)
        ok = ok & (w >= 0.0) & (w < INF)
    q, _ = row_sums(x + (i.to(tl.int64) * stride_n)[:, None], ok, None, D, ROWS, BLOCK_K)
    return inverse_norm(q, ok)


@triton.jit
def order_bits(value):
    """float32 as int32 in the same order; -0.0 equals +0.0."""
    value = tl.where(value == 0.0, 0.0, value)
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def order_key(value, index):
    """(value, index) as one int64: smaller value first, then lower index; -0.0 equals +0.0."""
    return (order_bits(value).to(tl.int64) << 32) | index.to(tl.int64)


@triton.jit
def meet(arrivals, target, HIP: tl.constexpr):
    """Wait until the programs that share `arrivals` have come here `target` times in all.

    What they wrote before is then seen by all. An atomic is done by one thread and orders that
    thread's accesses, so the other threads wait for it on both sides. The counter only grows; it
    may overflow. A wait without end becomes an error on the device, not a hang.
    """
    if HIP:  # there the barrier of a program does not wait for its stores to global memory
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)\n v_mov_b32 $0, $1",
            "=v,v",
            [tl.arange(0, 1024)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    tl.debug_barrier()
    tl.atomic_add(arrivals, 1, sem="release", scope="gpu")
    polls = 0
    # The result is used: Triton turns an acquire without a use into a plain load.
    while tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu") - target < 0:
        polls += 1
        if polls == POLLS:
            give_up(polls, HIP)
    tl.debug_barrier()


@triton.jit
def give_up(polls, HIP: tl.constexpr):
    """Stop the launch with an error that the next synchronisation reports."""
    lanes = tl.arange(0, 32) + polls
    if INTERPRETED:
        tl.device_assert(polls < POLLS, "programs of a group did not meet")
    elif HIP:
        tl.inline_asm_elementwise(
            "s_trap 2\n v_mov_b32 $0, $1", "=v,v", [lanes], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        tl.inline_asm_elementwise(
            "trap; mov.u32 $0, $1;", "=r,r", [lanes], dtype=tl.int32, is_pure=False, pack=1
        )


@dataclass(frozen=True)
class Segments:
    """How a launch is cut into segments: a padded batch, or a ragged one with its table.

    Attributes:
        count: segments of the launch, B or S.
        rows: the most rows a segment can have: N, or T for a ragged batch.
        k_core: core slots of each segment of a padded batch.
        k_diverse: its other slots.
        table: int64 `[S, 5]` of a ragged batch, None for a padded one.
    """

    count: int
    rows: int
    k_core: int
    k_diverse: int
    table: Tensor | None = None


def row_strides(tensor: Tensor) -> tuple[int, int]:
    """Strides of the batch axis and of the row axis of `[B, N, D]` or (packed) `[T, D]`."""
    strides = tensor.stride()
    return (strides[0] if len(strides) == 3 else 0), strides[-2]


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; what is compiled ahead for a device that is not there gets an H200's 132."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 132


def compiler_options(together: bool) -> dict[str, Any]:
    """What every kernel is compiled with, besides its own options.

    A product and a sum may become one instruction: Triton's default, of which 3.9 warns, for 3.10
    is to have the other.
    """
    return {"enable_fp_fusion": True, "launch_cooperative_grid": together}


def launch(
    kernel: Any,
    programs: int,
    device: torch.device,
    *args: Any,
    together: bool = False,
    **options: Any,
) -> None:
    """Run `programs` programs of a kernel on `device`, which need not be the current one.

    Args:
        kernel: a Triton function.
        programs: how many; none is allowed.
        device: of the tensors.
        args: the kernel's arguments.
        together: the programs wait for one another, so the launch fails unless all are resident.
        options: constants of the kernel and compiler options.
    """
    if programs == 0:
        return
    if device.type != "cuda":
        import numpy as np

        # NaN, Inf and overflow are ordinary input: numpy, which interprets, must not warn of them.
        with np.errstate(all="ignore"):
            kernel[(programs,)](*args, **options)
        return
    current = torch.cuda.current_device()
    index = current if device.index is None else device.index
    if index == current:
        _launch(kernel, programs, index, args, together, options)
    else:
        with torch.cuda.device(index):
            _launch(kernel, programs, index, args, together, options)


def _launch(
    kernel: Any,
    programs: int,
    index: int,
    args: tuple[Any, ...],
    together: bool,
    options: dict[str, Any],
) -> None:
    """On the current device."""
    key, launched = _compiled.launch(kernel, programs, index, args, together, options)
    if launched:
        return
    options |= compiler_options(together)
    if torch.cuda.is_current_stream_capturing():
        compiled = _launch_in_capture(kernel, programs, args, options)
    else:
        compiled = kernel[(programs,)](*args, **options)
    _compiled.keep(key, kernel, compiled, index, args, options)


_capturing = threading.Lock()  # the hook below is one for all threads


def _launch_in_capture(
    kernel: Any, programs: int, args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """A kernel can be launched while a graph is captured, but not be compiled or loaded.

    Raises:
        RuntimeError: it would have to be.
    """
    thread = threading.get_ident()

    def refuse(*args: Any, **named: Any) -> Any:
        if threading.get_ident() != thread:  # it captures nothing
            return before(*args, **named) if before is not None else None
        raise RuntimeError(
            f"zspa_kernels: {kernel.__name__} must be compiled before a CUDA graph is captured: "
            "call zk.warmup(device, dtype, num_tokens=N, dim=D) first, or run the same call once"
        )

    knobs = triton.knobs.runtime
    with _capturing:
        before = knobs.jit_cache_hook  # called before a kernel is compiled or read from disk
        knobs.jit_cache_hook = refuse
        try:
            return kernel[(programs,)](*args, **options)
        finally:
            knobs.jit_cache_hook = before
