# SPDX-License-Identifier: Apache-2.0
"""How matrix units add products in half precision: not as float32 arithmetic does.

A step brings the accumulator and some products to the exponent of the largest of them, cuts off
what lies more than a bit or two below float32's last place, and adds; what the sum then has too
many bits of is cut off as well (Fasi et al. 2021; Khattak and Mikaitis 2025, arXiv 2512.07004).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: By target: products a step, and bits below float32's last place.
UNITS = {"sm_80": (8, 1), "sm_90": (16, 2)}


def unit_dots(x: Tensor, y: Tensor, target: str, chunk: int) -> Tensor:
    """Dots of rows `[P, D]` as float64 `[P]`; each chunk of channels has its own accumulator."""
    products, bits = UNITS[target]
    terms = functional.pad(x.double() * y.double(), (0, -x.shape[1] % products))
    total = torch.zeros(len(x))
    for part in terms.split(chunk, 1):
        accumulator = torch.zeros(len(x), 1, dtype=torch.float64)
        for step in part.split(products, 1):
            accumulator = _step(torch.cat((accumulator, step), 1), 23 + bits)
        total += accumulator[:, 0].float()
    return total.double()


def _step(terms: Tensor, bits: int) -> Tensor:
    """The sum `[P, 1]` of `[P, T]`."""
    largest = terms.abs().amax(1, keepdim=True).frexp()[1] - 1
    unit = torch.exp2((largest - bits).double())
    return _cut_off(((terms / unit).trunc() * unit).sum(1, keepdim=True))


def _cut_off(x: Tensor) -> Tensor:
    """float64 values rounded toward 0 to float32."""
    near = x.float()
    return torch.where(near.double().abs() > x.abs(), near.nextafter(0 * near), near).double()
