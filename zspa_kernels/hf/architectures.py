# SPDX-License-Identifier: Apache-2.0
"""The supported architectures, as data, and the parts of a model that pruning touches."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .errors import UnsupportedModelError

#: What pictures, and videos, come as. Video-LLaVA has a name of its own, and from 5.23 on both.
PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos")


@dataclass(frozen=True)
class Architecture:
    """What differs between models.

    Attributes:
        name: as people call it.
        image: what counts as one image: an `"entry"` of what the encoder returns, or a `"run"` of
            placeholders that nothing interrupts (InternVL returns tiles, SmolVLM whole samples).
        tile: likewise; `"anyres"`: LLaVA-NeXT's base picture and the tiles of its larger one;
            `"shrunk"`: LLaVA-OneVision's, whose larger one is made smaller once it is encoded.
        size: the input that says how many rows and columns of tokens an image has, if it is not
            square: `"grid_thw"`, in patches, with times; `"image_sizes"`, in pixels;
            `"spatial_shapes"`, in patches; `"position_ids"`, with the column and row of each patch,
            -1 at padding.
        marks: text that the processor writes inside images. `"rows"`: a token behind each row of
            one (Mistral 3, Pixtral). `"crops"`: two in front of each crop, one behind the last.
            `"times"`: the time of each frame of a video (Qwen3-VL). `"clocks"`: likewise, all as
            long (Gemma 4). `"names"`: one token between two tiles of a picture (LFM2-VL,
            Aya Vision, Cohere2 Vision).
        projector: path of the module between vision tower and language model.
        mrope: positions have three axes (time, row, column).
        videos: it takes videos beside pictures. Where it does not, their frames are pictures.
        frames: an entry of a video is a frame, which may begin with [CLS] (Video-LLaVA).
        patches: a visual token is one patch of the vision tower, in its order.
        blocks: a visual token is a square of patches, which follow one another in the tower.
        squares: likewise, or one patch, but the tower has those of each picture or frame row by
            row, and pictures are not put together of tiles.
        strategy: where no setting says so, `"default"`: the first row of the tower becomes no
            visual token; `"full"`: all do.
        states: layers of the language model keep a state instead of keys and values.
        since: the oldest transformers that computes what a pruned prompt needs. Before 5.13 states
            are forgotten when a call goes on with several tokens; in 4.57 positions of GLM-V have
            no fourth axis, and Ovis2's marks are a second result; before 5.17 Gemma 4 does not say
            how large each layer's cache is; before 5.21 Qwen2.5-Omni has no part that reads text.
    """

    name: str
    image: str = "entry"
    tile: str = "entry"
    size: str = ""
    marks: str = ""
    projector: str = "multi_modal_projector"
    mrope: bool = False
    videos: bool = False
    frames: bool = False
    patches: bool = False
    blocks: bool = False
    squares: bool = False
    strategy: str = "full"
    states: bool = False
    since: tuple[int, int] = (4, 57)

    @property
    def in_tiles(self) -> bool:
        """Whether large pictures are cut into tiles and put together again; see `tiles`."""
        return self.tile in ("anyres", "shrunk")

    @property
    def timed(self) -> bool:
        """Whether its processor writes the time of each frame of a video."""
        return self.marks in ("times", "clocks")

    def check_version(self) -> None:
        """Raises where the transformers that is imported is older than `since`."""
        version = transformers_version()
        if tuple(int(part) for part in version.split(".")[:2]) < self.since:
            raise UnsupportedModelError(
                f"prune: transformers must be {'.'.join(map(str, self.since))} or newer for "
                f"{self.name}, got {version}, with which it cannot be pruned rightly"
            )


_GRID: Any = {"size": "grid_thw", "projector": "visual.merger", "blocks": True}
_QWEN: Any = {**_GRID, "mrope": True, "videos": True}
_GEMMA: Any = {"size": "position_ids", "videos": True, "marks": "clocks", "since": (5, 17)}
_HYBRID: Any = {**_QWEN, "marks": "times", "states": True, "since": (5, 13)}
_GLM: Any = {**_GRID, "mrope": True, "since": (5, 0)}
_PIXTRAL: Any = {"size": "image_sizes", "marks": "rows", "squares": True}
_IDEFICS: Any = {
    "image": "run",
    "tile": "run",
    "marks": "crops",
    "projector": "connector.modality_projection",
    "squares": True,
}
# By `config.model_type`.
ARCHITECTURES: Mapping[str, Architecture] = {
    "llava": Architecture("LLaVA-1.5", patches=True),
    "llava_next": Architecture("LLaVA-NeXT", tile="anyres", patches=True),
    "llava_next_video": Architecture("LLaVA-NeXT-Video", tile="anyres", videos=True, squares=True),
    "llava_onevision": Architecture("LLaVA-OneVision", tile="shrunk", videos=True),
    "video_llava": Architecture("Video-LLaVA", videos=True, frames=True, patches=True),
    "vipllava": Architecture("VipLLaVA", patches=True, strategy="default"),
    "mistral3": Architecture("Mistral 3", **_PIXTRAL),
    "qwen2_vl": Architecture("Qwen2-VL", **_QWEN),
    "qwen2_5_vl": Architecture("Qwen2.5-VL", **_QWEN),
    "qwen3_vl": Architecture("Qwen3-VL", **_QWEN, marks="times"),
    "qwen3_vl_moe": Architecture("Qwen3-VL", **_QWEN, marks="times"),
    "qwen3_5": Architecture("Qwen3.5", **_HYBRID),
    "qwen3_5_moe": Architecture("Qwen3.5", **_HYBRID),
    "qwen2_5_omni_thinker": Architecture("Qwen2.5-Omni", **_QWEN, since=(5, 21)),
    "internvl": Architecture("InternVL", image="run", squares=True),
    "gemma3": Architecture("Gemma 3", squares=True),
    "gemma4": Architecture("Gemma 4", **_GEMMA, projector="embed_vision", squares=True),
    "gemma4_unified": Architecture(
        "Gemma 4", **_GEMMA, projector="embed_vision.multimodal_embedder"
    ),
    "aya_vision": Architecture("Aya Vision", marks="names", squares=True),
    "cohere2_vision": Architecture("Cohere2 Vision", marks="names", squares=True),
    "lfm2_vl": Architecture(
        "LFM2-VL",
        size="spatial_shapes",
        marks="names",
        squares=True,
        states=True,
        since=(5, 13),
    ),
    "lfm3_vl": Architecture(
        "LFM3-VL", size="grid_thw", marks="times", videos=True, blocks=True, states=True
    ),
    "ovis2": Architecture("Ovis2", projector="visual_embeddings_table", squares=True, since=(5, 0)),
    "deepseek_vl": Architecture("DeepSeek-VL", projector="aligner", squares=True),
    "glm4v": Architecture("GLM-V", **_GLM),
    "glm4v_moe": Architecture("GLM-V", **_GLM),
    "glm46v": Architecture("GLM-V", **_GLM),
    "idefics3": Architecture("Idefics3", **_IDEFICS),
    "smolvlm": Architecture("SmolVLM", **_IDEFICS),
}
# By the vision tower's, where a `model_type` has several.
_BY_TOWER: Mapping[tuple[Any, Any], Architecture] = {
    ("llava", "pixtral"): Architecture("Pixtral", **_PIXTRAL, patches=True),
}


@dataclass(frozen=True)
class Modality:
    """Pictures or videos.

    Attributes:
        name: `"image"` or `"video"`, as transformers calls its encoder and what that returns.
        pixels: names of the processor's output that the encoder reads, of which one is given.
        token: id of the placeholder.
    """

    name: str
    pixels: tuple[str, ...]
    token: int

    @property
    def moves(self) -> bool:
        """Whether these are videos."""
        return self.name == "video"

    def values(self, inputs: Mapping[str, Any]) -> Any:
        """The processor's output that the encoder reads, if there is one."""
        return next((inputs[name] for name in self.pixels if inputs.get(name) is not None), None)

    @property
    def grid(self) -> str:
        """Name of their sizes in patches (Qwen)."""
        return f"{self.name}_grid_thw"

    @property
    def places(self) -> str:
        """Name of the places of their patches (Gemma 4)."""
        return f"{self.name}_position_ids"

    @property
    def encoder(self) -> str:
        """Name of the inner model's method."""
        return f"get_{self.name}_features"


@dataclass(frozen=True, eq=False)
class Target:
    """A model and its parts.

    Attributes:
        arch: what it is.
        model: the `...ForConditionalGeneration`, without a PEFT wrapper.
        inner: its `.model`, which encodes the pictures and merges them into the prompt.
        modalities: pictures, and videos where it takes them.
        takes_features: its forward takes encoded pictures, `mm_encoder_outputs`.
    """

    arch: Architecture
    model: Any
    inner: Any
    modalities: tuple[Modality, ...]
    takes_features: bool

    @classmethod
    def of(cls, model: Any) -> Target:
        """The parts of `model`, which PEFT and torch.compile may wrap; or UnsupportedModelError."""
        base = getattr(model, "_orig_mod", model)
        if hasattr(base, "get_base_model"):
            _refuse_virtual_tokens(base)
            base = base.get_base_model()
        base = getattr(base, "_orig_mod", base)  # either may wrap the other
        config = getattr(base, "config", None)
        kind = getattr(config, "model_type", None)
        tower = getattr(getattr(config, "vision_config", None), "model_type", None)
        arch = _BY_TOWER.get((kind, tower)) or ARCHITECTURES.get(kind or "")
        inner = getattr(base, "model", None)
        inner = getattr(inner, "_orig_mod", inner)
        made = "transformers" in sys.modules and hasattr(base, "generate")
        if arch is None or not made or not isinstance(inner, nn.Module):
            known = ", ".join(sorted(ARCHITECTURES))
            raise UnsupportedModelError(
                f"prune: model must be transformers' ...ForConditionalGeneration of {known}, no "
                f"part and no parallel wrapper of one, got {type(model).__name__} "
                f"(model_type {kind!r})"
            )
        arch.check_version()
        token = getattr(base.config, "image_token_id", None)
        if token is None:
            token = base.config.image_token_index
        found = [Modality("image", PIXELS[:2], int(token))]
        takes = "mm_encoder_outputs" in inspect.signature(type(base).forward).parameters
        # Older ones add LLaVA-OneVision's newline behind what the encoder returns, may call
        # LLaVA-NeXT-Video's frames what pictures are called, and take Gemma 4's videos as one
        # tensor with an axis for each.
        if arch.videos and (takes or not (arch.in_tiles or arch.size == "position_ids")):
            found.append(Modality("video", PIXELS[2:], int(base.config.video_token_id)))
        return cls(arch, base, inner, tuple(found), takes)

    def given(self, inputs: Mapping[str, Any]) -> list[Modality]:
        """What `inputs` hold of pictures and videos."""
        return [one for one in self.modalities if one.values(inputs) is not None]

    def visual(self, ids: Tensor) -> Tensor:
        """True where `ids` are placeholders."""
        found = ids == self.modalities[0].token
        for one in self.modalities[1:]:
            found = found | (ids == one.token)
        return found

    def encoder_arguments(self, *modalities: Modality) -> list[str]:
        """Names of the processor's outputs that the encoders read, of all or of the given ones."""
        names: list[str] = []
        for one in modalities or self.modalities:
            names += inspect.signature(getattr(type(self.inner), one.encoder)).parameters
        if self.arch.size == "image_sizes" and self.arch.size not in names:
            names.append(self.arch.size)  # LLaVA's of 4.57 has it among its `kwargs`
        return [name for name in names if name not in ("self", "kwargs")]

    def consumed(self) -> set[str]:
        """Names of what a model is not given once pictures are encoded and positions are known."""
        return {*self.encoder_arguments(), *PIXELS, "position_ids", "second_per_grid_ts"}

    def slices_features(self) -> bool:
        """Whether chunked prefill gives every chunk its own part of the pictures."""
        utils = sys.modules.get("transformers.generation.utils")
        return self.takes_features and hasattr(utils, "_slice_mm_encoder_output")

    def cache_name(self) -> str:
        """What a forward call names its cache: `past_key_values` before 5.24."""
        names = inspect.signature(type(self.model).forward).parameters
        return "cache" if "cache" in names else "past_key_values"

    def towers(self) -> list[Any]:
        """The vision tower, and that of videos where there are two; Gemma 4 may have none."""
        names = ("vision_tower", "image_tower", "vision_model", "visual", "video_tower")
        return [getattr(self.inner, name) for name in names if hasattr(self.inner, name)]

    def projector(self) -> nn.Module:
        """The module between vision tower and language model."""
        module: nn.Module = self.inner.get_submodule(self.arch.projector)
        return module

    def module_attribute(self, name: str) -> Any:
        """A function that stands beside the model's class."""
        return getattr(sys.modules[type(self.inner).__module__], name, None)


def _refuse_virtual_tokens(model: Any) -> None:
    """Raise for a PEFT model that learnt tokens, in front of which it takes no positions."""
    learnt: Any = getattr(model, "active_peft_config", None)
    if getattr(learnt, "is_prompt_learning", False):
        raise UnsupportedModelError(
            f"prune: model must have adapters of weights, such as LoRA's, got one with virtual "
            f"tokens ({learnt.peft_type.value}), for which PEFT ignores the positions of a prompt"
        )


def transformers_version() -> str:
    """Version of the transformers that made the model; it is imported if there is a model."""
    version: str = sys.modules["transformers"].__version__
    return version
