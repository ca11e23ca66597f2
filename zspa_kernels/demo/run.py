# SPDX-License-Identifier: Apache-2.0
"""The demo from picture to PNG.

The photo is cut into patches. Classical descriptors of the patches stand in for a vision encoder's
tokens, and those of the patches in a region stand in for the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from zspa_kernels import num_keep, split_core
from zspa_kernels._doctor import chosen
from zspa_kernels.demo.choices import Choice, choose
from zspa_kernels.demo.errors import UsageError
from zspa_kernels.demo.features import describe
from zspa_kernels.demo.picture import Box, Patches, cut, parse_region, read, replacing
from zspa_kernels.testing import baselines
from zspa_kernels.visualize import Panel, compare

# In scikit-image's astronaut (Eileen Collins, NASA), 512 x 512 pixels.
FACE: Box = (176, 80, 272, 192)


@dataclass(frozen=True)
class Report:
    """What a run of the demo did.

    Attributes:
        picture: name of the picture.
        region: (x0, y0, x1, y1) in pixels of the picture.
        region_name: what that region is, in words.
        patches: the picture as it was cut.
        dim: length of a token.
        prompt_tokens: number of patches in the region.
        backend: which backend the op used.
        threads: how many threads it may use.
        choices: ZSPAPrune, DivPrune, all-in-relevance.
        out: the PNG.
    """

    picture: str
    region: Box
    region_name: str
    patches: Patches
    dim: int
    prompt_tokens: int
    backend: str
    threads: int
    choices: tuple[Choice, Choice, Choice]
    out: Path


def run(
    image: Path | None = None,
    region: str | None = None,
    keep: float = 0.1,
    core_ratio: float = 0.4,
    patch: int = 16,
    out: Path = Path("kept.png"),
) -> Report:
    """Selects patches of a picture in three ways and writes one PNG that shows them.

    Args:
        image: a picture file; None for the astronaut photograph that comes with scikit-image.
        region: `x0,y0,x1,y1` in pixels of the picture; None for the face (astronaut) or the middle
            third each way (any other picture).
        keep: share of patches to keep, or their number; see `num_keep`.
        core_ratio: share of those taken for relevance, in [0, 1].
        patch: side of a patch in pixels.
        out: PNG to write; replaced only when everything has worked.

    Raises:
        UsageError: an argument makes no sense.
        TypeError, ValueError: `keep` is neither a share nor a count.
        DemoError: the picture cannot be read or used, or the PNG cannot be written.
    """
    if not 0.0 <= core_ratio <= 1.0:
        raise UsageError(f"--core-ratio must be in [0, 1], got {core_ratio}")
    if image is None:
        from skimage.data import astronaut

        name, pixels = "astronaut (scikit-image)", np.asarray(astronaut(), dtype=np.uint8)
    else:
        name, pixels = image.name, read(image)
    patches = cut(pixels, patch)
    box, box_name = _region(region, image is None, patches)
    inside = torch.from_numpy(patches.inside(box))

    with replacing(out, never=image) as temporary:
        visual = describe(patches)
        prompt = visual[inside]
        kept = num_keep(len(patches), keep)
        k_core = split_core(kept, core_ratio)
        plain, divprune = baselines.zspaprune_loop, baselines.divprune_loop
        choices = (
            choose("ZSPAPrune", visual, prompt, k_core, kept - k_core, inside, plain),
            choose("DivPrune", visual, None, 0, kept, inside, divprune),
            choose("All in relevance", visual, prompt, kept, 0, inside, plain),
        )
        figure = compare(
            patches.pixels,
            [Panel(c.selection, c.name, _subtitle(c)) for c in choices],
            patches.grid,
            heading=f"{kept} of {len(patches)} visual tokens, kept in three ways",
            note=f"Tokens: colour and gradient (HOG) histograms of {patch}-pixel patches, "
            "classical features and not a VLM's. Selected by torch.ops.zspa.select.",
            region=patches.scaled(box),
        )
        figure.savefig(temporary, format="png")
    return Report(
        picture=name,
        region=box,
        region_name=box_name,
        patches=patches,
        dim=visual.shape[1],
        prompt_tokens=int(inside.sum()),
        backend=chosen("select", visual.device) or "none",
        threads=torch.get_num_threads(),
        choices=choices,
        out=out,
    )


def _region(text: str | None, is_default: bool, patches: Patches) -> tuple[Box, str]:
    width, height = patches.original
    if text is not None:
        return parse_region(text, width, height), "the region"
    if is_default:
        return FACE, "the face"
    return (width // 3, height // 3, width - width // 3, height - height // 3), "the middle"


def _subtitle(choice: Choice) -> str:
    parts = []
    if choice.k_core:
        parts.append(f"{choice.k_core} core ({choice.core_inside} in the box)")
    if choice.k_diverse:
        parts.append(f"{choice.k_diverse} diversity")
    text = " + ".join(parts)
    if choice.mean_cosine is not None:
        text += f"\nmean pairwise cosine {choice.mean_cosine:.2f}"
    return text
