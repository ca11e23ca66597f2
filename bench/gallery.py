# SPDX-License-Identifier: Apache-2.0
"""What methods keep of photographs seen by CLIP: `python -m bench.gallery` draws docs/methods.jpg.

Tokens and attention are those of a real tower (`bench.towers`), before any projector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.figure import Figure
from torch import Tensor

import zspa_kernels as zk
from bench import photographs
from bench.environment import ROOT
from zspa_kernels.types import Selection
from zspa_kernels.visualize import light

TOWER = "clip"
SHOWN = ("astronaut", "coffee", "motorcycle")
#: Name of a method -> what stands above its column.
COLUMNS = {
    "fastervlm": "FasterVLM\nattention from [CLS]",
    "visionzip": "VisionZip\nattention, every n-th of the rest",
    "vispruner": "VisPruner\nattention, least alike of the rest",
    "scope": "SCOPE\nattention times coverage",
    "divprune": "DivPrune\ndiversity",
    "zspaprune": "ZSPAPrune\nlike the middle, then diversity",
}
SIDE, KEPT = 24, 58
PIXELS = SIDE * 16  # of a panel


def choose(method: str, photograph: str) -> Selection:
    """What a method keeps of a photograph, of all that the tower has to give."""
    n = SIDE * SIDE
    seen = photographs.seen(f"{TOWER}:{photograph}", n)
    given: dict[str, Tensor] = {
        "prompt": seen.tokens[photographs.region(n)],
        "attention": seen.attention,
        "scores": seen.attention,
    }
    wanted = {item.name for item in zk.methods.about(method).inputs}
    inputs = {name: value for name, value in given.items() if name in wanted}
    return zk.methods.get(method, keep=KEPT).select(seen.tokens, **inputs)


def draw() -> Figure:
    """A row a photograph, a column a method."""
    figure = Figure(figsize=(3 * len(COLUMNS), 3.05 * len(SHOWN) + 0.5), dpi=100)
    grid = figure.subplots(len(SHOWN), len(COLUMNS), squeeze=False)
    for photograph, row in zip(SHOWN, grid, strict=True):
        pixels = photographs.resized(photographs.square(photograph), PIXELS)
        image = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
        for (method, title), axes in zip(COLUMNS.items(), row, strict=True):
            lit = light(np.ascontiguousarray(image), choose(method, photograph), (SIDE, SIDE))
            axes.imshow(lit, interpolation="none")
            axes.set_axis_off()
            if photograph == SHOWN[0]:
                axes.set_title(title, fontsize=11)
    figure.subplots_adjust(
        left=0.005, right=0.995, bottom=0.005, top=0.93, wspace=0.02, hspace=0.02
    )
    return figure


def main(
    out: Annotated[Path, typer.Option(help="The picture.")] = ROOT / "docs" / "methods.jpg",
) -> None:
    """Draw what methods keep; downloads the tower once (90 MB)."""
    draw().savefig(out, pil_kwargs={"quality": 88} if out.suffix == ".jpg" else None)


if __name__ == "__main__":
    typer.run(main)
