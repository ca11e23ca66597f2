# SPDX-License-Identifier: Apache-2.0
"""What methods want beside tokens and words: attention and keys of the vision tower, its output.

A model keeps its attention, and nothing is computed twice; see `attention`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import Target
from .attention import Fused, Layer, Separate, received
from .encode import Encoded, Part
from .errors import UnsupportedMethodError, unwatched
from .order import along, in_blocks, in_squares

#: Whether a vision tower, by its `model_type`, has a [CLS] token, which becomes no visual token.
_TOWERS = {"clip_vision_model": True, "internvl_vision": True, "siglip_vision_model": False}
#: Of models without a setting (Gemma 3, Cohere2 Vision, DeepSeek-VL).
_SETTINGS = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
_OF_A_LAYER = ("attention", "cls attention", "keys")
KINDS = (*_OF_A_LAYER, "features")


@dataclass
class Collected:
    """What a method is given.

    Attributes:
        kinds: what each argument of its `select` is; see `zspa_kernels.methods.Input.tensor`.
        layer: the attention of the vision tower's layer whose output is used; None: not wanted.
        noted: what the layer's hooks saw, and the projector's input; of pictures, and of videos.
    """

    kinds: dict[str, str]
    layer: Layer | None = None
    noted: list[dict[str, Tensor]] = field(default_factory=list)

    @contextlib.contextmanager
    def watching(self, target: Target) -> Iterator[None]:
        """Notes what is wanted of the pictures that the model encodes meanwhile."""
        handles = []
        thread = threading.get_ident()

        def note(name: str, value: Tensor) -> None:
            if threading.get_ident() != thread:  # hooks are called for the pictures of all threads
                return
            if not self.noted or name in self.noted[-1]:
                self.noted.append({})  # pictures, or videos behind them
            self.noted[-1][name] = value.detach()

        if self.layer is not None:
            handles += self.layer.watch(note)
        if "features" in self.kinds.values():
            projector = target.projector()
            handles.append(
                projector.register_forward_pre_hook(lambda _, args: note("features", args[0]))
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def tensors(
        self, target: Target, inputs: Mapping[str, Any], encoded: Encoded
    ) -> dict[str, Tensor]:
        """Every argument, one row a visual token `[T, ...]`; NaN where a token is no patch."""
        if not self.kinds:
            return {}
        names = set() if self.layer is None else set(self.layer.names)
        if len(self.noted) != len(encoded.parts) or any(names - set(one) for one in self.noted):
            raise unwatched("the vision tower" if names else target.arch.projector)
        parts = zip(encoded.parts, self.noted, strict=True)
        each = [self._of(target, inputs, part, noted) for part, noted in parts]
        made = {kind: encoded.in_prompts([one[kind] for one in each]) for kind in each[0]}
        return {name: made[kind] for name, kind in self.kinds.items()}

    def _of(
        self, target: Target, inputs: Mapping[str, Any], part: Part, noted: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """By kind, what is wanted of pictures or of videos, in the order of their tokens."""
        made: dict[str, Tensor] = {}
        heads = [] if self.layer is None else list(self.layer.heads(noted))
        for kind in set(self.kinds.values()):
            rows = (
                noted["features"] if kind == "features" else self._rows(kind, target, part, heads)
            )
            made[kind] = along(target, inputs, part, rows)
        return made

    def _rows(
        self, kind: str, target: Target, part: Part, heads: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Attention or keys of the rows that the projector makes tokens of."""
        layer: Any = self.layer
        first = int(layer.cls)
        if kind == "keys":
            values = [keys.mean(1)[first:] for _, keys in heads]
        else:
            asked = 1 if layer.cls else None
            values = [received(q[:asked], k, layer.scale)[first:] for q, k in heads]
        if target.arch.blocks:
            return in_blocks(target, torch.cat(values))
        rows = torch.stack(values)
        if target.arch.squares:
            rows = in_squares(part, rows)
        if target.arch.frames and part.modality.moves:  # their [CLS] is a token, but no patch
            rows = torch.cat((torch.full_like(rows[:, :1], torch.nan), rows), dim=1)
        return rows


def wanted(method: Any, target: Target, inputs: Mapping[str, Any] | None = None) -> Collected:
    """What `method` has to be given by `target`.

    Args:
        method: its `model_inputs` say what it wants, if it has them.
        target: the model.
        inputs: of a call, which may name another layer than the configuration.

    Raises:
        UnsupportedMethodError: the method requires what this model cannot give.
    """
    kinds: dict[str, str] = {}
    missing: list[str] = []
    for one in getattr(method, "model_inputs", ()):
        if one.name in ("visual", "prompt"):
            continue
        why = _why_not(one.tensor, target, inputs or {})
        if why is None:
            kinds[one.name] = one.tensor
        elif one.required:
            missing.append(f"{one.name} {one.shape} ({one.source}): {why}")
    if missing:
        raise UnsupportedMethodError(
            f"prune: method must not need what {target.arch.name} cannot give, got {method!r}, "
            f"which needs {'; and '.join(missing)}"
        )
    found = Collected(kinds)
    if any(kind in _OF_A_LAYER for kind in kinds.values()):
        found.layer = _layer(target, inputs or {})
    return found


def _why_not(kind: str, target: Target, inputs: Mapping[str, Any]) -> str | None:
    """Why a kind of tensor cannot be had; None if it can."""
    if kind not in KINDS:
        return "this is not collected from a model; `select` can be given it"
    if kind == "features" and not target.arch.patches:
        return "its visual tokens may be made of several rows of the projector's input"
    if target.arch.blocks:
        return "its vision tower has no [CLS] token" if kind == "cls attention" else None
    if not (target.arch.patches or target.arch.squares or target.arch.tile == "shrunk"):
        return (
            "how its visual tokens are made of patches is not known here; this is collected in "
            "LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, Video-LLaVA, InternVL, Gemma 3, Cohere2 "
            "Vision, Aya Vision, DeepSeek-VL, Qwen-VL and GLM-V"
        )
    if kind == "features":
        return None
    name = _tower(target).config.model_type
    strategy = _setting(target, inputs, "vision_feature_select_strategy")
    if name not in _TOWERS or _TOWERS[name] != (strategy == "default"):
        return (
            f"its vision tower is a {name!r} whose features are taken as {strategy!r}; known are "
            f"'clip_vision_model' and 'internvl_vision' with 'default', 'siglip_vision_model' with "
            f"'full'"
        )
    if kind == "cls attention" and not _TOWERS[name]:
        return f"its vision tower, a {name!r}, has no [CLS] token"
    layer = _setting(target, inputs, "vision_feature_layer")
    if not isinstance(layer, int) or layer == 0:
        return f"its features are of no single layer: vision_feature_layer is {layer!r}"
    return None


def _setting(target: Target, inputs: Mapping[str, Any], name: str) -> Any:
    given = inputs.get(name)
    return getattr(target.model.config, name, _SETTINGS[name]) if given is None else given


def _tower(target: Target) -> Any:
    names = ("vision_tower", "image_tower", "vision_model")
    return next(getattr(target.inner, name) for name in names if hasattr(target.inner, name))


def _layer(target: Target, inputs: Mapping[str, Any]) -> Layer:
    """The attention of the layer whose output is the projector's input."""
    if target.arch.blocks:
        visual = target.inner.visual
        # Most of Qwen2.5-VL's layers see a window of the picture only, its last one all of it.
        whole = getattr(visual.config, "fullatt_block_indexes", [])
        last = max((i for i in whole if i < len(visual.blocks)), default=-1)
        return Fused(visual.blocks[last].attn)
    layer = _setting(target, inputs, "vision_feature_layer")
    towers = [_tower(target)]
    if target.arch.frames:
        towers.append(target.inner.video_tower)
    attention = [_in_tower(tower, layer) for tower in towers]
    return Separate(attention[0], _TOWERS[towers[0].config.model_type], *attention[1:])


def _in_tower(tower: nn.Module, layer: int) -> Any:
    """The attention of the layer that makes a hidden state."""
    parts = dict(tower.named_modules())
    found = (
        part for name, part in parts.items() if name.endswith(("encoder.layers", "encoder.layer"))
    )
    layers: Any = next(found)
    # Hidden state 0 is the embeddings', so state i is the output of layer i - 1.
    chosen = layers[layer if layer < 0 else layer - 1]
    return chosen.attention if hasattr(chosen, "attention") else chosen.self_attn
