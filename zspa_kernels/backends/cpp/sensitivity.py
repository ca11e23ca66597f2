# SPDX-License-Identifier: Apache-2.0
"""Perturbation sensitivity on CPU: products by BLAS, everything between them native.

The rows are taken in chunks, so that no tensor of all tokens' hidden units exists. A product runs
in float32; in bfloat16 where both sides are and the CPU multiplies bfloat16 itself, which is more
than twice as fast. Elementwise work is in csrc/cpu/sensitivity.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._activations import NAMES
from ..._native import module
from .._blas import full_float32, multiplies_bfloat16
from ._arguments import DTYPES, address

# csrc/cpu/kernels.h
ACTIVATIONS = {name: number for number, name in enumerate(NAMES)}

# Rows of a product: enough that the weights, read once a product, cost nothing beside it. A buffer
# of them is 12 MB of float32 at H = 4096; a call needs two at most.
_ROWS = 768
# Rows of a weight matrix that are used at a time: the granularity at which zeros of a triangular
# factor are skipped, and all that exists of a converted copy of the weights.
_WEIGHT_ROWS = 512

_CPU = torch.device("cpu")
_HUGE = 2.0**80  # a squared length beyond it, like NaN, makes a token invalid


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
        shifts = _product(directions.float(), w1)
    return _mean_response(features, w1, b1, w2, activation, shifts, radius)


def sensitivity_hidden(
    preactivation: Tensor, w2: Tensor, activation: str, shifts: Tensor, radius: float
) -> Tensor:
    """Scores float32 `[B, N]` of pre-activations `[B, N, H]`."""
    shifts = shifts.float().contiguous()
    return _mean_response(preactivation, None, None, w2, activation, shifts, radius)


def sensitivity_rms(
    features: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    factor: Tensor,
    activation: str,
    diagonal: Tensor | None,
) -> Tensor:
    """Scores float32 `[B, N]` of `[B, N, D]`."""
    return _root_of_form(features, w1, b1, factor, activation, diagonal)


def sensitivity_rms_hidden(
    preactivation: Tensor, factor: Tensor, activation: str, diagonal: Tensor | None
) -> Tensor:
    """Scores float32 `[B, N]` of pre-activations `[B, N, H]`."""
    return _root_of_form(preactivation, None, None, factor, activation, diagonal)


def _mean_response(
    tokens: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor,
    activation: str,
    shifts: Tensor,
    radius: float,
) -> Tensor:
    rows = tokens.flatten(0, 1)
    lengths = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
    bias = None if b1 is None else b1.float()
    dtype = _product_dtype(tokens.dtype, w2.dtype)
    m = len(shifts)
    together = max(1, _ROWS // m)  # tokens whose directions share a product
    buffer = _empty(rows, min(_ROWS, len(rows) * m), shifts.shape[1], dtype)
    squared_lengths = _SquaredLengths(w2, len(buffer), dtype)
    with full_float32(rows.device):
        for part, total in zip(rows.split(_ROWS), lengths.split(_ROWS), strict=True):
            hidden = _hidden(part, w1, dtype).split(together)
            for a, out in zip(hidden, total.split(together), strict=True):
                for some in shifts.split(_ROWS):
                    responses = buffer[: len(a) * len(some)]
                    _quotients(a, bias, activation, some, radius, responses)
                    squares = squared_lengths(responses)
                    out += squares.sqrt_().view(len(a), len(some)).sum(1)
    return _checked(tokens, rows, lengths.div_(m))


def _root_of_form(
    tokens: Tensor,
    w1: Tensor | None,
    b1: Tensor | None,
    factor: Tensor,
    activation: str,
    diagonal: Tensor | None,
) -> Tensor:
    rows = tokens.flatten(0, 1)
    forms = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
    bias = None if b1 is None else b1.float()
    diagonal = None if diagonal is None else diagonal.float()
    dtype = _product_dtype(tokens.dtype, factor.dtype)
    buffer = _empty(rows, min(_ROWS, len(rows)), factor.shape[1], dtype)
    squared_lengths = _SquaredLengths(factor, len(buffer), dtype)
    with full_float32(rows.device):
        for part, form in zip(rows.split(_ROWS), forms.split(_ROWS), strict=True):
            slopes = buffer[: len(part)]
            hidden = _hidden(part, w1, dtype, slopes)
            _slopes(hidden, bias, activation, diagonal, slopes, form)
            form += squared_lengths(slopes)
    return _checked(tokens, rows, forms.sqrt_())


def _hidden(
    rows: Tensor, w1: Tensor | None, dtype: torch.dtype, buffer: Tensor | None = None
) -> Tensor:
    """`W1 x` of rows `[n, D]`, without the bias; the rows themselves where they are that already.

    `dtype` is that of the product that follows: where it is float32, this one is as well. `buffer`
    is written to if it has the right dtype.
    """
    if w1 is None:
        return rows
    if dtype != w1.dtype:
        dtype = torch.float32
    if buffer is not None and buffer.dtype != dtype:
        buffer = None
    return _product(rows.to(dtype), w1, buffer)


def _product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """`x @ weight.T` in the dtype of `x`."""
    if out is None:
        out = _empty(x, len(x), len(weight), x.dtype)
    columns = out.split(_WEIGHT_ROWS, dim=1)
    for part, some in zip(weight.split(_WEIGHT_ROWS), columns, strict=True):
        torch.mm(x, part.to(x.dtype).T, out=some)
    return out


class _SquaredLengths:
    """Squared length of `weight @ row` for each row of a `[rows, H]`, in buffers used again."""

    def __init__(self, weight: Tensor, rows: int, dtype: torch.dtype) -> None:
        self.parts = weight.split(_WEIGHT_ROWS)
        height = len(self.parts[0])
        self.zeros = [module().sensitivity_zeros(*_described(part)) for part in self.parts]
        self.product = _empty(weight, rows, height, dtype)
        self.converted = None
        if weight.dtype != dtype:
            self.converted = _empty(weight, height, weight.shape[1], dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 `[n]` of `[n, H]`."""
        sums = torch.zeros(len(x), dtype=torch.float32, device=x.device)
        for part, zeros in zip(self.parts, self.zeros, strict=True):
            rows = part
            if self.converted is not None:
                rows = self.converted[: len(part)].copy_(part)
            product = self.product[: len(x), : len(part)]
            torch.mm(x[:, zeros:], rows[:, zeros:].T, out=product)
            _add_squares(product, sums)
        return sums


def _product_dtype(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    half = a == b == torch.bfloat16 and multiplies_bfloat16(_CPU)
    return torch.bfloat16 if half else torch.float32


def _checked(tokens: Tensor, rows: Tensor, scores: Tensor) -> Tensor:
    """NaN for tokens that are not finite or huge, and for scores beyond float32."""
    squares = torch.zeros_like(scores)
    _add_squares(rows, squares)
    invalid = ~((squares <= _HUGE) & scores.isfinite())
    return scores.masked_fill_(invalid, torch.nan).view(tokens.shape[:2])


# ---- native parts, csrc/cpu/sensitivity.h: tensors, as an address does not keep one alive --------


def _slopes(
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    diagonal: Tensor | None,
    out: Tensor,
    form: Tensor,
) -> None:
    module().sensitivity_slopes(
        *_described(x),
        address(bias),
        ACTIVATIONS[activation],
        address(diagonal),
        torch.get_num_threads(),
        out.data_ptr(),
        DTYPES[out.dtype],
        out.stride(0),
        form.data_ptr(),
    )


def _quotients(
    x: Tensor, bias: Tensor | None, activation: str, shifts: Tensor, radius: float, out: Tensor
) -> None:
    module().sensitivity_quotients(
        *_described(x),
        address(bias),
        ACTIVATIONS[activation],
        shifts.data_ptr(),
        len(shifts),
        radius,
        torch.get_num_threads(),
        out.data_ptr(),
        DTYPES[out.dtype],
    )


def _add_squares(x: Tensor, sums: Tensor) -> None:
    module().sensitivity_squares(*_described(x), torch.get_num_threads(), sums.data_ptr())


def _described(x: Tensor) -> tuple[int, int, int, int, int]:
    """(address, dtype, rows, columns, row stride) of `[rows, columns]`."""
    return x.data_ptr(), DTYPES[x.dtype], len(x), x.shape[1], x.stride(0)


def _empty(like: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((rows, columns), dtype=dtype, device=like.device)
