# SPDX-License-Identifier: Apache-2.0
"""What is computed once for a projector, so that its sensitivity is cheap for every image.

Around a token x the projector P(x) = W2 act(W1 x + b1) + b2 is linear, P(x + u) - P(x) = J u with
J = W2 diag(g) W1 and g = act'(W1 x + b1). The mean of ||J u||^2 over all unit directions u is
||J||_F^2 / D = g' M g with M = (W2' W2) o (W1 W1') / D ("o" multiplies element by element), over m
given directions g' M g with M = (W2' W2) o (S' S) / m, S = U W1'. M does not depend on the token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._contract import sensitivity as _rules
from ._contract import values as _values
from ._ops.call import call
from .backends._blas import multiplies_bfloat16

_OP = "SensitivityPlan"
# Of the factor analysis: columns beyond the rank; rounds; iterations of the subspace in each.
_OVERSAMPLING = 16
_ROUNDS = 4
_ITERATIONS = 3


class SensitivityPlan:
    """The quadratic form of a projector's sensitivity, factored once.

    Calling a plan gives the root mean square response `sqrt(g' M g)` of each token, over all unit
    directions (the closed form, `||J||_F / sqrt(D)`) or over given ones. A call costs one product
    with the factor, however many directions there are.

    With a `rank` the factor has that many rows, and the diagonal of what it leaves out is kept as
    well, which costs nothing. So the trace of M is exact, and all that is lost is off the diagonal.

    Args:
        w1: first layer `[H, D]`, float32, float16 or bfloat16.
        b1: its bias `[H]`, or None.
        w2: second layer `[O, H]`.
        activation: the one between the layers: `"gelu"` (exact), `"gelu_tanh"`, `"quick_gelu"`,
            `"silu"`, `"relu"` or `"identity"`.
        rank: rows of the factor, at least 0; None: exact. With 0 only the diagonal is kept.
        directions: `[m, D]`, used as given: the root mean square is over these. None: over all unit
            directions.
        dtype: dtype of the factor. None: bfloat16 if the weights are 16 bits wide and the device
            has instructions for bfloat16, float32 otherwise.

    Attributes:
        factor: `[R, H]`. Exact: upper triangular where M is positive definite, R <= H otherwise.
        diagonal: float32 `[H]`, what is added to `factor' factor`; None for an exact plan.
        rank: R.
        discarded: share of the trace of M that is not in `factor' factor` (it is in the diagonal).
        residual: Frobenius norm of what is in neither, relative to that of M.

    Raises:
        TypeError: weights are not float tensors, the rank is not an int, or the factor cannot have
            the dtype.
        ValueError: shapes or devices do not fit, the activation is unknown, weights are not finite
            or too large for the factor's dtype, the rank is negative, or there are no directions.

    Complexity: O(H^2 (O + D + H)) in float64, once: some seconds on two CPU cores at H = 4096. A
    call: N R H multiply-adds, and N H D for the pre-activation if it is not given.

    Source: the limit of ZOO-Prune's estimate (arXiv 2509.24837) for many directions, as a root
    mean square instead of a mean.

    Example:
        >>> import torch
        >>> w1, w2 = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(2)
        >>> plan = SensitivityPlan(w1, None, w2, "relu")
        >>> plan(torch.tensor([[3.0, 3.0], [3.0, -3.0]]))  # sqrt(1 + 4), sqrt(1), over sqrt(2)
        tensor([1.5811, 0.7071])
    """

    def __init__(
        self,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor,
        activation: str,
        rank: int | None = None,
        *,
        directions: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        d, hidden = _rules.projector(_OP, w1, b1, w2, activation)
        if rank is not None:
            rank = _values.integer_at_least(_OP, "rank", rank, 0)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in _values.FLOATS):
            rule = "None, torch.float32, torch.float16 or torch.bfloat16"
            raise TypeError(f"{_OP}: dtype must be {rule}, got {dtype!r:.60}")
        if directions is not None:
            _rules.directions(_OP, directions, w1)
        named = {"w1": w1, "b1": b1, "w2": w2, "directions": directions}
        for name, x in named.items():
            if x is not None:
                _rules.finite(_OP, name, x)

        self.w1 = w1.detach()
        self.b1 = None if b1 is None else b1.detach()
        self.activation = activation
        with torch.no_grad():
            if directions is None:
                form = _form(w1.double().T, w2) / d
            else:
                form = _form(directions.double() @ w1.double().T, w2) / len(directions)
            if rank is None or rank >= hidden:
                factor, rest = _exact_factor(form), None
            else:
                factor, rest = _leading_factor(form, rank)
            self.rank = len(factor)
            self.discarded, self.residual = _losses(form, factor, rest)
        self.factor = factor.to(dtype or product_dtype(w1)).contiguous()
        self.diagonal = None if rest is None else rest.float()
        for name, x in (("factor", self.factor), ("diagonal", self.diagonal)):
            if x is not None:
                _rules.finite(_OP, f"{name} in {x.dtype}", x)

    @_values.naming(_OP)
    def __call__(
        self,
        features: Tensor | None = None,
        *,
        preactivation: Tensor | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """Sensitivity of every token.

        Args:
            features: input of the first layer, `[B, N, D]` or `[N, D]`.
            preactivation: instead, what the first layer made of it, `[B, N, H]` or `[N, H]`: the
                projector's own forward pass has it.
            backend: see `select`.

        Returns:
            float32 `[B, N]` or `[N]`; NaN for tokens with NaN, Inf or a length beyond 2**40.
        """
        if (features is None) == (preactivation is None):
            error = TypeError if features is None else ValueError
            given = "neither" if features is None else "both"
            raise error(f"{_OP}: features must be given, or preactivation, got {given}")
        form = (self.factor, self.activation, self.diagonal)
        scores: Tensor
        if preactivation is None:
            self._width("features", features, self.w1.shape[1])
            scores = call("sensitivity_rms", backend, (features, self.w1, self.b1, *form))
        else:
            self._width("preactivation", preactivation, self.w1.shape[0])
            scores = call("sensitivity_rms_hidden", backend, (preactivation, *form))
        return scores

    @staticmethod
    def _width(name: str, x: Tensor | None, width: int) -> None:
        """The last axis of `x` must be `width`; the op has the other rules."""
        _values.tensor(_OP, name, x)
        shape = [] if x is None else list(x.shape)
        if shape[-1:] != [width]:
            raise ValueError(f"{_OP}: {name} must have {width} channels, got {shape}")

    def __repr__(self) -> str:
        H, D = self.w1.shape
        rank = f"rank={self.rank}, discarded={self.discarded:.3g}, residual={self.residual:.3g}"
        return f"SensitivityPlan(D={D}, H={H}, activation={self.activation!r}, {rank})"


def compact_output(w2: Tensor) -> Tensor:
    """R of `w2 = Q R` `[min(O, H), H]`, for w2 `[O, H]`: responses as long, half the work.

    `||R y|| = ||w2 y||` for every y, and R is upper triangular, whose zeros the CPU backend skips.
    Its dtype is that of a factor; see `SensitivityPlan`.
    """
    with torch.no_grad():
        wide = w2.double()
        # Three times as fast as a QR decomposition; without full rank it fails, and that remains.
        lower, failed = torch.linalg.cholesky_ex(wide.T @ wide)
        short = w2.shape[0] < w2.shape[1] or int(failed) != 0
        r: Tensor = torch.linalg.qr(wide, mode="r").R if short else lower.T
    return r.to(product_dtype(w2)).contiguous()


def unit_directions(m: int, d: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Random unit vectors, the same for a seed on every device.

    Args:
        m: how many, at least 1.
        d: channels, at least 1.
        seed: of a generator of their own; the global one is not touched.
        device: where the result is.

    Returns:
        float32 `[m, d]`, rows uniform on the sphere.

    Raises:
        TypeError: `m`, `d` or `seed` is not an int, or `device` no device.
        ValueError: `m` or `d` is less than 1, or there is no such device.

    Example:
        >>> unit_directions(64, 1024).shape
        torch.Size([64, 1024])
    """
    op = "unit_directions"
    for name, value in (("m", m), ("d", d)):
        _values.integer_at_least(op, name, value, 1)
    place = _values.place(op, "device", device)
    generator = torch.Generator(device="cpu").manual_seed(_values.integer(op, "seed", seed))
    x = torch.randn((m, d), dtype=torch.float64, device="cpu", generator=generator)
    return torch.nn.functional.normalize(x, dim=1).float().to(place)


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which products with what is made of `weight` run best."""
    half = weight.dtype != torch.float32 and multiplies_bfloat16(weight.device)
    return torch.bfloat16 if half else torch.float32


def _form(inner: Tensor, w2: Tensor) -> Tensor:
    """(W2' W2) o (inner' inner), float64 `[H, H]`."""
    outer = w2.double()
    return (outer.T @ outer).mul_(inner.T @ inner)


def _exact_factor(form: Tensor) -> Tensor:
    """F with F'F = `form`: Cholesky's, or from the eigenvalues where some are 0."""
    alive = form.diagonal() > 0.0
    units = alive.nonzero().squeeze(1)
    part = form if len(units) == len(form) else form[units][:, units]
    factor: Tensor
    lower, failed = torch.linalg.cholesky_ex(part)
    if int(failed) == 0:
        factor = lower.T
    else:
        values, vectors = torch.linalg.eigh(part)
        kept = values > values[-1] * len(part) * torch.finfo(values.dtype).eps
        factor = values[kept].sqrt()[:, None] * vectors.T[kept]
    if part is form:
        return factor
    wide = torch.zeros((len(factor), len(form)), dtype=form.dtype, device=form.device)
    return wide.index_copy_(1, units, factor)


def _leading_factor(form: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(F `[R, H]`, d `[H]`), R <= rank: `F'F + diag(d)` near `form`, with its diagonal.

    A factor analysis: the eigenvectors of `form` alone would spend the rank on its diagonal, which
    d has for nothing. So F is made of the largest eigenvalues of `form - diag(d)`, found by
    subspace iteration, d of what F leaves of the diagonal, in turn.
    """
    size = min(len(form), rank + _OVERSAMPLING)
    generator = torch.Generator(device="cpu").manual_seed(0)
    start = torch.randn((len(form), size), dtype=form.dtype, device="cpu", generator=generator)
    basis = start.to(form.device)
    diagonal = form.diagonal()
    factor = form[:0]
    for _ in range(_ROUNDS if rank else 0):
        # form - diag(d) has eigenvalues from -max(d) on: shifted, the largest are those wanted.
        shift = diagonal.max() - diagonal
        for _ in range(_ITERATIONS):
            basis = _orthonormal(form @ basis + shift[:, None] * basis)
        inside = basis.T @ (form @ basis - diagonal[:, None] * basis)
        values, vectors = torch.linalg.eigh(inside)
        factor = (values[-rank:].clamp(min=0.0).sqrt() * (basis @ vectors[:, -rank:])).T
        # What exceeds the diagonal is scaled back: d is not negative and the trace stays exact.
        own = factor.square().sum(0)
        factor = factor * (form.diagonal() / own.clamp(min=1e-300)).sqrt().clamp(max=1.0)
        diagonal = (form.diagonal() - factor.square().sum(0)).clamp(min=0.0)
    return factor, diagonal


def _orthonormal(x: Tensor) -> Tensor:
    """An orthonormal basis of the columns of `x`, by products where its condition allows it."""
    basis = x
    for _ in range(2):  # the second time removes what the first rounded
        lower, failed = torch.linalg.cholesky_ex(basis.T @ basis)
        if int(failed) != 0:
            q: Tensor = torch.linalg.qr(x).Q
            return q
        basis = torch.linalg.solve_triangular(lower, basis.T, upper=False).T
    return basis


def _losses(form: Tensor, factor: Tensor, diagonal: Tensor | None) -> tuple[float, float]:
    """(share of the trace outside the factor, relative norm of what is in neither)."""
    trace = float(form.trace())
    size = float(form.norm())
    if trace == 0.0 or diagonal is None:
        return 0.0, 0.0
    rest = form - factor.T @ factor
    discarded = max(0.0, float(rest.trace()) / trace)
    rest.diagonal().sub_(diagonal)
    return discarded, float(rest.norm()) / size
