# SPDX-License-Identifier: Apache-2.0
"""The CPU backend of sensitivity: instruction sets, bfloat16 products, zeros, memory."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor

from zspa_kernels import _native
from zspa_kernels._activations import ACTIVATIONS, NAMES
from zspa_kernels.testing.sensitivity import projector, published_sensitivity

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Products:
    """torch.mm that remembers what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inputs: list[Tensor] = []
        self.plain = torch.mm
        monkeypatch.setattr(torch, "mm", self)

    def __call__(self, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        self.inputs.append(a)
        return self.plain(a, b, out=out)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def native(require_backend):
    require_backend("cpp", "sensitivity")
    module = _native.module()
    yield module
    module.use_isa("auto")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("h", [1, 7, 16, 31, 255, 257, 530])
def test_every_instruction_set_gives_the_derivative(native, dtype: torch.dtype, h: int) -> None:
    """Widths around vectors and buffers; each unit alone through a factor that is the identity."""
    from zspa_kernels.backends.cpp.sensitivity import sensitivity_rms_hidden

    a = (draw(1, 2, h) * 4.0).to(dtype)
    weights = torch.arange(1, h + 1) / h
    for isa in native.isas():
        native.use_isa(isa)
        for name in NAMES:
            slope = ACTIVATIONS[name].slope(a.double())
            exact = (slope**2 * weights.double()).sum(-1).sqrt()
            by_diagonal = sensitivity_rms_hidden(a, torch.empty(0, h), name, weights)
            by_factor = sensitivity_rms_hidden(a, weights.sqrt().diag(), name, None)
            bound = 4e-7 * math.sqrt(h)
            assert float((by_diagonal - exact).abs().max()) < bound, (isa, name)
            assert float((by_factor - exact).abs().max()) < bound, (isa, name)


@pytest.mark.parametrize("h", [5, 16, 300])
def test_every_instruction_set_gives_the_quotient(native, h: int) -> None:
    from zspa_kernels.backends.cpp.sensitivity import sensitivity

    x, w1, b1 = draw(1, 3, 6), draw(h, 6, seed=1) / 2, draw(h, seed=2)
    w2, u = draw(9, h, seed=3) / math.sqrt(h), draw(3, 6, seed=4)
    u[1] *= 30.0  # steps beyond the series in one direction, not in the others
    for name in NAMES:
        double = (w1.double(), b1.double(), w2.double(), None, name)
        exact = published_sensitivity(x[0].double(), projector(*double), u.double(), 0.02)
        for isa in native.isas():
            native.use_isa(isa)
            scores = sensitivity(x, w1, b1, w2, name, u, 0.02)
            assert float(((scores[0] - exact) / exact).abs().max()) < 2e-6, (isa, name)


def test_bfloat16_products(native, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a CPU that multiplies bfloat16 itself, here through PyTorch's emulation."""
    from zspa_kernels.backends.cpp import sensitivity as backend

    x, w1, b1 = draw(1, 9, 40).bfloat16(), draw(200, 40, seed=1) / 6, draw(200, seed=2)
    w2, u = draw(90, 200, seed=3).bfloat16() / 14, draw(3, 40, seed=4) / 6
    w1 = w1.bfloat16()
    arguments = (x, w1, b1, w2, "gelu")
    form = (x, w1, b1, w2, "gelu", None)
    monkeypatch.setattr(backend, "multiplies_bfloat16", lambda device: False)
    full = backend.sensitivity(*arguments, u, 0.01), backend.sensitivity_rms(*form)
    products = Products(monkeypatch)
    monkeypatch.setattr(backend, "multiplies_bfloat16", lambda device: True)
    half = backend.sensitivity(*arguments, u, 0.01), backend.sensitivity_rms(*form)
    dtypes = [x.dtype for x in products.inputs]
    assert dtypes.count(torch.bfloat16) == 4  # W1 and the second matrix of both
    assert dtypes.count(torch.float32) == 1  # the directions, once a call
    for a, b in zip(half, full, strict=True):
        assert not torch.equal(a, b)
        assert torch.allclose(a, b, rtol=1e-2)


@pytest.mark.parametrize("wide", ["w1", "factor"])
def test_one_matrix_of_float32(native, wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products and buffers of two dtypes in one call; a float32 factor asks for float32 alone."""
    from zspa_kernels.backends.cpp import sensitivity as backend

    # Pre-activations of under 1 KB: malloc writes into memory of that size when it is freed.
    x, b1 = draw(1, 9, 40).bfloat16(), draw(24, seed=2)
    w1, factor = draw(24, 40, seed=1).bfloat16() / 6, draw(30, 24, seed=3).bfloat16() / 5
    exact = backend.sensitivity_rms(x.float(), w1.float(), b1, factor.float(), "gelu", None)
    products = Products(monkeypatch)
    monkeypatch.setattr(backend, "multiplies_bfloat16", lambda device: True)
    w1, factor = (w1.float(), factor) if wide == "w1" else (w1, factor.float())
    scores = backend.sensitivity_rms(x, w1, b1, factor, "gelu", None)
    assert torch.allclose(scores, exact, rtol=1e-2 if wide == "w1" else 1e-6)
    dtypes = [x.dtype for x in products.inputs]
    assert dtypes == [torch.float32, torch.bfloat16 if wide == "w1" else torch.float32]


def test_zeros_of_a_triangular_factor_are_not_multiplied(
    native, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zspa_kernels.backends.cpp import sensitivity as backend

    products = Products(monkeypatch)
    h, step = 1500, backend._WEIGHT_ROWS
    a = draw(1, 2, h)
    backend.sensitivity_rms_hidden(a, draw(h, h).triu(), "silu", None)
    assert [x.shape[1] for x in products.inputs] == [h, h - step, h - 2 * step]
    products.inputs.clear()
    backend.sensitivity_rms_hidden(a, draw(h, h), "silu", None)
    assert [x.shape[1] for x in products.inputs] == [h] * 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_leading_zeros(native, dtype: torch.dtype) -> None:
    """The first value at every column around the words in which they are looked for."""
    from zspa_kernels.backends.cpp.sensitivity import _described

    for width in (1, 31, 64, 65, 200):
        for column in range(width + 1):
            x = torch.zeros(3, width, dtype=dtype)
            x[1, column:] = 2.0**-14
            x[2, column + 5 :] = 1.0
            assert native.sensitivity_zeros(*_described(x)) == column
    x = torch.zeros(2, 90, dtype=dtype)
    x[0, 70] = -0.0
    assert native.sensitivity_zeros(*_described(x)) == 70  # at most as many as there are


def test_scratch_is_small(require_backend) -> None:
    """At LLaVA-1.5's 4096 hidden units: under 50 MB for a scratch that does not grow with N m."""
    require_backend("cpp", "sensitivity")
    script = textwrap.dedent(
        """
        import resource
        import torch
        import zspa_kernels

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        torch.set_num_threads(2)
        run = torch.ops.zspa.sensitivity
        x, u = torch.randn(100, 256).bfloat16(), torch.randn(64, 256)
        w1, w2 = torch.randn(4096, 256).bfloat16(), torch.randn(64, 4096).bfloat16()
        run(x[:4], w1, None, w2, "gelu", u[:2])  # the libraries' own memory is paid before
        before = peak()
        run(x, w1, None, w2, "gelu", u)
        print(peak() - before)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 50.0
