# SPDX-License-Identifier: Apache-2.0
"""Inputs that decide about corner cases of the contract, by name.

Every factory takes (n, d, seed) and returns float32 tokens with an optional mask. Rounding them to
a half precision moves rows over the limits of that type (2**-41 is zero and 2**40 infinite in
float16); the oracle judges the values after rounding, so the same cases serve every dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .tokens import tokens


class Special(NamedTuple):
    """Tokens `[N, D]` float32 and their mask `[N]` (True = real token), or None."""

    visual: Tensor
    mask: Tensor | None


def special(name: str, n: int, d: int, seed: int = 0) -> Special:
    """Make the input `name` of `SPECIAL` with `n` tokens of width `d`."""
    if name not in SPECIAL:
        raise ValueError(f"special: name must be one of {tuple(SPECIAL)}, got {name!r}")
    return SPECIAL[name](n, d, seed)


def _draw(seed: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(77_000 + seed)


def _shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=_draw(seed), device="cpu")


def _with_norm(rows: Tensor, norm: float) -> Tensor:
    length = rows.double().square().sum(-1, keepdim=True).sqrt()
    return (rows.double() / length * norm).float()


def _constant(n: int, d: int, seed: int) -> Special:
    """All rows equal: every value ties, so the picks are 0, 1, 2, ..."""
    return Special(tokens("iid", 1, d, seed).expand(n, d).contiguous(), None)


def _duplicates(n: int, d: int, seed: int) -> Special:
    """About n / 3 different rows, each three times, shuffled."""
    different = tokens("iid", (n + 2) // 3, d, seed)
    return Special(different.repeat(3, 1)[:n][_shuffled(n, seed)], None)


def _antipodal(n: int, d: int, seed: int) -> Special:
    """Rows and their negatives: cosines of -1, where the running maximum starts."""
    half = tokens("iid", (n + 1) // 2, d, seed)
    return Special(torch.cat([half, -half])[:n][_shuffled(n, seed)], None)


def _rescaled(n: int, d: int, seed: int) -> Special:
    """Rows of very different lengths: only directions may count."""
    exponent = torch.randint(-20, 21, (n, 1), generator=_draw(seed), device="cpu")
    return Special(tokens("vlm", n, d, seed) * torch.exp2(exponent.float()), None)


def _narrow(n: int, d: int, seed: int) -> Special:
    """A narrow cone: similarities differ by about 1e-3, so TF32 products choose other tokens."""
    noise = tokens("iid", n, d, seed)
    axis = tokens("iid", 1, d, seed + 1)
    return Special(axis + 0.03 * noise, None)


def _zero_rows(n: int, d: int, seed: int) -> Special:
    """Every third row is zero, some of them with negative zeros."""
    visual = tokens("smooth", n, d, seed)
    visual[::3] = 0.0
    visual[::6] = -0.0
    return Special(visual, None)


def _all_zero(n: int, d: int, seed: int) -> Special:
    """Nothing has a direction: the picks are 0, 1, 2, ..."""
    return Special(torch.zeros(n, d, dtype=torch.float32, device="cpu"), None)


def _tiny_rows(n: int, d: int, seed: int) -> Special:
    """Norms of 2**-39 (a direction) and 2**-41 (a zero row) among ordinary rows."""
    visual = tokens("iid", n, d, seed)
    visual[::3] = _with_norm(visual[::3], 2.0**-39)
    visual[1::3] = _with_norm(visual[1::3], 2.0**-41)
    return Special(visual, None)


def _huge_rows(n: int, d: int, seed: int) -> Special:
    """Norms of 2**39 (a direction) and 2**41 (masked out) among ordinary rows."""
    visual = tokens("iid", n, d, seed)
    visual[::3] = _with_norm(visual[::3], 2.0**39)
    visual[1::3] = _with_norm(visual[1::3], 2.0**41)
    return Special(visual, None)


def _thresholds(n: int, d: int, seed: int) -> Special:
    """Rows of one entry whose square is exactly 2**-80 or 2**80 (both count) or one step beyond."""
    limits = torch.tensor([2.0**-40, 2.0**40], dtype=torch.float32, device="cpu")
    beyond = torch.tensor([0.0, torch.inf], dtype=torch.float32, device="cpu")
    sizes = torch.cat([limits, torch.nextafter(limits, beyond)])
    visual = torch.zeros(n, d, dtype=torch.float32, device="cpu")
    row = torch.arange(n, device="cpu")
    visual[row, row % d] = sizes[row % 4] * torch.where(row % 3 == 0, -1.0, 1.0)
    return Special(visual, None)


def _nonfinite_rows(n: int, d: int, seed: int) -> Special:
    """Rows with one NaN, +Inf or -Inf, rows full of NaN, and rows whose square overflows."""
    visual = tokens("vlm", n, d, seed)
    column = torch.randint(d, (n,), generator=_draw(seed), device="cpu")
    for start, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        rows = torch.arange(n, device="cpu")[start::7]
        visual[rows, column[rows]] = value
    visual[4::11] = torch.nan
    visual[5::13] = 3.0e38
    return Special(visual, None)


def _all_nonfinite(n: int, d: int, seed: int) -> Special:
    """Nothing is valid: every output is -1."""
    return Special(torch.full((n, d), torch.nan, dtype=torch.float32, device="cpu"), None)


def _masked(n: int, d: int, seed: int) -> Special:
    """Half of the tokens are masked, a third of those with values that must not be looked at."""
    visual = tokens("vlm", n, d, seed)
    mask = torch.rand(n, generator=_draw(seed), device="cpu") < 0.5
    hidden = (~mask).nonzero()[:, 0]
    visual[hidden[::3]] = torch.nan
    return Special(visual, mask)


def _all_masked(n: int, d: int, seed: int) -> Special:
    """Nothing is valid: every output is -1."""
    return Special(tokens("iid", n, d, seed), torch.zeros(n, dtype=torch.bool, device="cpu"))


def _one_valid(n: int, d: int, seed: int) -> Special:
    """One token is left."""
    mask = torch.zeros(n, dtype=torch.bool, device="cpu")
    mask[n // 2] = True
    return Special(tokens("iid", n, d, seed), mask)


def _masked_exact(n: int, d: int, seed: int) -> Special:
    """`exact` tokens of which a quarter is masked and an eighth is zero: ties of every kind."""
    visual = tokens("exact", n, d, seed)
    mask = torch.rand(n, generator=_draw(seed), device="cpu") < 0.75
    visual[::8] = 0.0
    return Special(visual, mask)


SPECIAL: dict[str, Callable[[int, int, int], Special]] = {
    "constant": _constant,
    "duplicates": _duplicates,
    "antipodal": _antipodal,
    "rescaled": _rescaled,
    "narrow": _narrow,
    "zero_rows": _zero_rows,
    "all_zero": _all_zero,
    "tiny_rows": _tiny_rows,
    "huge_rows": _huge_rows,
    "thresholds": _thresholds,
    "nonfinite_rows": _nonfinite_rows,
    "all_nonfinite": _all_nonfinite,
    "masked": _masked,
    "all_masked": _all_masked,
    "one_valid": _one_valid,
    "masked_exact": _masked_exact,
}


class TwoTextures(NamedTuple):
    """A picture of two textures as tokens: what a prompt about one of them must find."""

    visual: Tensor  # [N, D] float32: amplitude spectra of patches, raster order
    prompt: Tensor  # [M, D] float32: spectra of other patches of the prompted texture
    region: Tensor  # [N] bool: patches of the prompted texture


def two_textures(patches: int = 12, patch: int = 8, seed: int = 0) -> TwoTextures:
    """A picture whose lower right quarter is striped and the rest chequered, with noise.

    A patch is described by the amplitudes of its two-dimensional spectrum without the constant
    term, which do not depend on where in the pattern the patch was cut.

    Args:
        patches: Patches a side.
        patch: Pixels a side of a patch.
        seed: Seed of the noise.

    Returns:
        Tokens, a prompt about the stripes, and where the stripes are.
    """
    draw = _draw(seed)
    side = patches * patch
    y, x = torch.meshgrid(
        torch.arange(side, device="cpu"), torch.arange(side, device="cpu"), indexing="ij"
    )
    stripes = ((x + y) % 4 < 2).float()
    chequers = ((x // 2 + y // 2) % 2).float()
    inside = (x >= side // 2) & (y >= side // 2)
    picture = torch.where(inside, stripes, chequers)
    noise = 0.4 * torch.randn(side, side, generator=draw, dtype=torch.float32, device="cpu")
    sample = stripes[: 2 * patch] + noise.flip(0, 1)[: 2 * patch]
    region = _patches(inside.float(), patch).mean(-1) > 0.5
    return TwoTextures(_spectra(picture + noise, patch), _spectra(sample, patch), region)


def _patches(picture: Tensor, patch: int) -> Tensor:
    height, width = picture.shape
    cut = picture.reshape(height // patch, patch, width // patch, patch).transpose(1, 2)
    return cut.reshape(-1, patch * patch)


def _spectra(picture: Tensor, patch: int) -> Tensor:
    spectrum: Tensor = torch.fft.rfft2(_patches(picture, patch).reshape(-1, patch, patch))
    return spectrum.abs().flatten(1)[:, 1:].contiguous()
