# SPDX-License-Identifier: Apache-2.0
"""Classical descriptors of patches: the demo's stand-in for a vision encoder's tokens."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from skimage import color, feature

from zspa_kernels.demo.picture import Patches

BINS = 8
ORIENTATIONS = 9
# CIELAB channels with the range their histograms cover; real pictures rarely leave it.
LAB_RANGES = ((0.0, 100.0), (-40.0, 60.0), (-40.0, 60.0))

Floats = npt.NDArray[np.float64]


def describe(patches: Patches) -> torch.Tensor:
    """One token a patch: colour histograms and histograms of oriented gradients.

    Three groups of features, each standardised (zero mean and unit variance over the picture) so
    that a cosine of 0 means "as alike as two patches usually are", and weighted to count equally:

    * Lab colour histogram of the patch, 3 x 8 bins;
    * the same over its 3 x 3 neighbourhood, since a token of a real encoder sees context too;
    * HOG over the 3 x 3 neighbourhood, 81 values.

    Returns:
        float32 `[rows * columns, 129]`; all zeros when every patch looks the same.
    """
    rows, columns = patches.grid
    colours = _colour_histograms(patches)
    around = np.pad(colours, ((1, 1), (1, 1), (0, 0)), mode="edge")
    context = sum(
        (around[i : i + rows, j : j + columns] for i in range(3) for j in range(3)),
        start=np.zeros_like(colours),
    )
    groups = (colours, context / 9, _gradients(patches))
    tokens = np.concatenate([_standardise(group) for group in groups], axis=-1)
    return torch.from_numpy(tokens.reshape(rows * columns, -1).astype(np.float32))


def _colour_histograms(patches: Patches) -> Floats:
    """Soft histograms of L, a and b for every patch: `[rows, columns, 3 * BINS]`."""
    rows, columns = patches.grid
    lab = color.rgb2lab(patches.pixels)
    pixels = lab.reshape(rows, patches.patch, columns, patches.patch, 3).swapaxes(1, 2)
    histograms = []
    for channel, (low, high) in enumerate(LAB_RANGES):
        position = np.clip((pixels[..., channel] - low) / (high - low), 0, 1) * (BINS - 1)
        # A pixel is shared by the two nearest bins, so a small change of light moves a little mass.
        shares = [np.clip(1 - abs(position - b), 0, None).mean((-1, -2)) for b in range(BINS)]
        histograms.append(np.stack(shares, axis=-1))
    return np.concatenate(histograms, axis=-1)


def _gradients(patches: Patches) -> Floats:
    """HOG of the 3 x 3 patches around each patch: `[rows, columns, 81]`."""
    rows, columns = patches.grid
    grey = np.pad(color.rgb2gray(patches.pixels), patches.patch, mode="symmetric")
    blocks = feature.hog(
        grey,
        orientations=ORIENTATIONS,
        pixels_per_cell=(patches.patch, patches.patch),
        cells_per_block=(3, 3),
        feature_vector=False,
    )
    return np.asarray(blocks, dtype=np.float64).reshape(rows, columns, -1)


def _standardise(group: Floats) -> Floats:
    """Zero mean and unit variance a feature, then scaled so that every group counts the same."""
    spread = group.std((0, 1))
    centred = group - group.mean((0, 1))
    # A feature that is constant over the picture says nothing; dividing would amplify rounding.
    scaled: Floats = np.where(spread > 1e-6, centred / np.maximum(spread, 1e-6), 0.0)
    return scaled / math.sqrt(group.shape[-1])
