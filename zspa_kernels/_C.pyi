# SPDX-License-Identifier: Apache-2.0
"""The native module; its arguments were checked in Python.

Addresses are those of elements in memory, 0 where an argument is absent; sizes and strides count
elements.
"""

from typing import Any

def select(
    visual: int,
    dtype: int,
    S: int,
    N: int,
    D: int,
    batch_stride: int,
    row_stride: int,
    table: int,
    visual_mask: int,
    prompt: int,
    prompt_dtype: int,
    M: int,
    prompt_batch_stride: int,
    prompt_row_stride: int,
    spans: int,
    prompt_mask: int,
    pooling: int,
    k_core: int,
    k_diverse: int,
    total_slots: int,
    sorted: bool,
    threads: int,
    indices: int,
    stats: int,
    /,
) -> None: ...
def relevance_topk(
    visual: int,
    dtype: int,
    B: int,
    N: int,
    D: int,
    batch_stride: int,
    row_stride: int,
    visual_mask: int,
    prompt: int,
    prompt_dtype: int,
    M: int,
    prompt_batch_stride: int,
    prompt_row_stride: int,
    prompt_mask: int,
    pooling: int,
    k: int,
    threads: int,
    indices: int,
    scores: int,
    /,
) -> None: ...
def diversity(
    visual: int,
    dtype: int,
    S: int,
    N: int,
    D: int,
    batch_stride: int,
    row_stride: int,
    table: int,
    visual_mask: int,
    k: int,
    seeds: int,
    num_seeds: int,
    weights: int,
    total_slots: int,
    threads: int,
    indices: int,
    stats: int,
    /,
) -> None: ...
def dpp(
    visual: int,
    dtype: int,
    S: int,
    N: int,
    D: int,
    batch_stride: int,
    row_stride: int,
    table: int,
    visual_mask: int,
    k: int,
    weights: int,
    total_slots: int,
    threads: int,
    indices: int,
    stats: int,
    /,
) -> None: ...
def ragged_table(
    offsets: int,
    wide_offsets: bool,
    k_core: int,
    wide_core: bool,
    k_diverse: int,
    wide_diverse: bool,
    S: int,
    rows: int,
    longest: int,
    slots: int,
    table: int,
    /,
) -> None: ...
def prompt_spans(spans: int, wide: bool, S: int, rows: int, out: int, /) -> None: ...
def sensitivity_slopes(
    x: int,
    dtype: int,
    N: int,
    H: int,
    stride: int,
    bias: int,
    activation: int,
    diagonal: int,
    threads: int,
    out: int,
    out_dtype: int,
    out_stride: int,
    form: int,
    /,
) -> None: ...
def sensitivity_quotients(
    x: int,
    dtype: int,
    N: int,
    H: int,
    stride: int,
    bias: int,
    activation: int,
    shifts: int,
    m: int,
    radius: float,
    threads: int,
    out: int,
    out_dtype: int,
    /,
) -> None: ...
def sensitivity_squares(
    x: int, dtype: int, N: int, width: int, stride: int, threads: int, sums: int, /
) -> None: ...
def sensitivity_zeros(x: int, dtype: int, N: int, width: int, stride: int, /) -> int: ...
def build_info() -> dict[str, Any]: ...
def isas() -> list[str]: ...
def isa() -> str: ...
def use_isa(name: str, /) -> None: ...
