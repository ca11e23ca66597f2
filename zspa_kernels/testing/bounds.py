# SPDX-License-Identifier: Apache-2.0
"""How far a backend's float32 cosine may be from the exact one: the only tolerances of the tests.

The exact cosine is that of the values a backend was given, so the rounding of the tokens to
bfloat16 or float16 is no error. What remains is float32: the products, the sum of D of them, the
two sums of squares, the reciprocal roots and the final scaling.
"""

from __future__ import annotations

import math

_MATRIX_UNITS = ("triton",)
_VECTOR_UNITS = ("reference", "cpp")

#: Half the distance of 1.0 to the next float32, times two: one rounding and its neighbour.
FLOAT32_EPS = 2.0**-23


def bound(d: int, backend: str = "reference") -> float:
    """Largest error of one cosine of two rows of width `d`.

    Vector code keeps several partial sums and adds products one at a time or in pairs, so its error
    grows with the square root of the length of a chain: 1e-6 up to D = 4096. A matrix unit adds 8
    products a step (sm_80; later ones 16) into a float32 accumulator and cuts off what that has no
    bits for, which is linear in D / 8. A cosine is rounded a handful of times even at D = 1, so
    1e-6 is also the matrix units' floor.

    Args:
        d: Width of a token.
        backend: Name of the backend that computed the cosine.

    Returns:
        The bound, as an absolute difference of cosines.

    Raises:
        ValueError: For an unknown backend.
    """
    vector = 1e-6 * max(1.0, math.sqrt(d / 4096))
    if backend in _VECTOR_UNITS:
        return vector
    if backend in _MATRIX_UNITS:
        return max(vector, d / 8 * FLOAT32_EPS)
    raise ValueError(
        f"bound: backend must be one of {_VECTOR_UNITS + _MATRIX_UNITS}, got {backend!r}"
    )
