# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of sensitivity beyond the contract: program order, blocks, mixed dtypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zspa_kernels.testing.sensitivity import projector, published_sensitivity

Require = Callable[..., None]
N, D, H, O, M = 6, 8, 40, 36, 5  # noqa: E741 - the names of the axes

BLOCKS = {
    "form_n": 4,
    "form_r": 16,
    "form_h": 32,
    "response_n": 2,
    "response_m": 4,
    "response_o": 16,
    "response_h": 32,
    "score_n": 4,
    "score_m": 4,
}


@pytest.fixture
def kernels(require_backend: Require, monkeypatch: pytest.MonkeyPatch):
    """The launchers, and a way to change their configuration."""
    require_backend("triton", "sensitivity")
    from zspa_kernels.backends.triton import sensitivity, sensitivity_config

    plain = sensitivity_config.config

    def change(**fields: int) -> None:
        monkeypatch.setattr(
            sensitivity, "config", lambda *a: dataclasses.replace(plain(*a), **fields)
        )

    # Blocks so small that everything takes several of them.
    change(**BLOCKS)
    return sensitivity, change


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(n: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, w1, b1 = draw(1, n, D), draw(H, D, seed=1) / D**0.5, draw(H, seed=2)
    return x, w1, b1, draw(O, H, seed=3) / H**0.5, draw(M, D, seed=4) / D**0.5


def both(sensitivity, x, w1, b1, w2, u) -> tuple[Tensor, Tensor]:
    """A tile of steps beyond the series and one within, several blocks of everything."""
    diagonal = torch.rand(H, generator=torch.Generator().manual_seed(0))
    return (
        sensitivity.sensitivity(x, w1, b1, w2, "gelu", u, 0.05),
        sensitivity.sensitivity_rms(x, w1, b1, w2, "silu", diagonal),
    )


def test_the_order_of_programs_changes_no_bit(kernels) -> None:
    sensitivity, change = kernels
    forward = both(sensitivity, *inputs())
    change(**BLOCKS, reverse=True)
    backward = both(sensitivity, *inputs())
    for a, b in zip(forward, backward, strict=True):
        assert torch.equal(a, b)


def test_tokens_do_not_depend_on_their_neighbours(kernels) -> None:
    sensitivity, _ = kernels
    x, *weights = inputs()
    together = both(sensitivity, x, *weights)
    for i in (0, 3, 5):
        alone = both(sensitivity, x[:, i : i + 1], *weights)
        for a, b in zip(alone, together, strict=True):
            assert torch.allclose(a, b[:, i : i + 1], rtol=1e-6)


def test_large_and_small_steps_in_one_tile(kernels) -> None:
    """Steps of one direction are beyond the series, those of the next are not."""
    sensitivity, _ = kernels
    x, w1, b1, w2, u = inputs(3)
    u = torch.stack([u[0] * 100.0, u[1] * 1e-3, u[2]])
    exact = published_sensitivity(
        x[0].double(),
        projector(w1.double(), b1.double(), w2.double(), None, "gelu_tanh"),
        u.double(),
        0.05,
    )
    scores = sensitivity.sensitivity(x, w1, b1, w2, "gelu_tanh", u, 0.05)
    assert torch.allclose(scores[0].double(), exact, rtol=1e-5)


@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights_with_float32_tokens(kernels, weight: torch.dtype) -> None:
    """The product runs in the dtype of the factor, whatever the tokens are."""
    sensitivity, _ = kernels
    x, w1, b1, w2, u = inputs(2)
    full = both(sensitivity, x, w1, b1, w2.to(weight).float(), u)
    half = both(sensitivity, x, w1, b1, w2.to(weight), u)
    for a, b in zip(half, full, strict=True):
        assert torch.allclose(a, b, rtol=5e-3)
        assert not torch.equal(a, b)
