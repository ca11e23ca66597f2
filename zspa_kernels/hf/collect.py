# SPDX-License-Identifier: Apache-2.0
"""What methods want beside tokens and words: attention and keys of the vision tower, its output.

A model keeps its attention, and nothing is computed twice; see `attention`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import Target
from .attention import Layer, Packed, Placed, Rows, Separate, received, scale_of
from .encode import Encoded, Part
from .errors import UnsupportedMethodError, unwatched
from .order import along, in_blocks, in_squares


@dataclass(frozen=True)
class Tower:
    """How attention of a vision tower is watched.

    Attributes:
        layer: the kind of its layers.
        options: of the kind, but for the modules.
    """

    layer: type[Separate | Packed | Placed]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cls(self) -> bool:
        """Whether it has a [CLS] token, which becomes no visual token."""
        return bool(self.options.get("cls"))


_CLS: Any = {"cls": True}
_IDEFICS: Any = {"mask": "patch_attention_mask"}
#: By `model_type`.
_TOWERS: Mapping[str, Tower] = {
    "clip_vision_model": Tower(Separate, _CLS),
    "internvl_vision": Tower(Separate, _CLS),
    "siglip_vision_model": Tower(Separate),
    "siglip2_vision_model": Tower(Separate, {"mask": "pixel_attention_mask"}),
    "idefics3_vision": Tower(Separate, _IDEFICS),
    "smolvlm_vision": Tower(Separate, _IDEFICS),
    "ovis2_vision": Tower(Separate),
    "": Tower(Separate),  # Ovis2's before transformers 5.20
    "gemma4_vision": Tower(Placed),
    "pixtral": Tower(Packed, {"turn": "apply_rotary_pos_emb", "sizes": "image_sizes"}),
}
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
        pictures = [] if self.layer is None else list(self.layer.rows(noted))
        packed = target.arch.in_tiles and not part.modality.moves
        for kind in set(self.kinds.values()):
            if kind == "features":
                made[kind] = along(target, inputs, part, noted["features"])
                continue
            values = [self._values(kind, rows) for rows in pictures]
            if target.arch.squares and not packed:
                made[kind] = in_squares(target, inputs, part, values)
            elif target.arch.blocks:
                made[kind] = along(target, inputs, part, in_blocks(target, torch.cat(values)))
            else:
                rows = torch.stack(values)
                if target.arch.frames and part.modality.moves:  # their [CLS] is a token, no patch
                    rows = torch.cat((torch.full_like(rows[:, :1], torch.nan), rows), dim=1)
                made[kind] = along(target, inputs, part, rows)
        return made

    def _values(self, kind: str, rows: Rows) -> Tensor:
        """Attention `[P]` or keys `[P, d]` of the patches of a picture; NaN at padding."""
        layer: Any = self.layer
        first = int(layer.cls)
        if kind == "keys":
            values = rows.keys.mean(1)[first:]
        else:
            asked = rows.queries[:1] if layer.cls else rows.queries
            values = received(asked, rows.keys, scale_of(layer.module))[first:]
        if rows.real is None:
            return values
        padded = values.new_full((len(rows.real), *values.shape[1:]), torch.nan)
        padded[rows.real] = values
        return padded


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
    arch = target.arch
    if not target.towers():
        return "it has no vision tower"
    if kind == "features" and not arch.patches:
        return "its visual tokens may be made of several rows of the projector's input"
    if not (arch.patches or arch.squares or arch.blocks or arch.tile == "shrunk"):
        return "how its visual tokens are made of patches is not known here"
    if kind == "features":
        return None
    if arch.blocks:
        if not _attentions(target):
            return "no layer of its vision tower has attention"
        return "its vision tower has no [CLS] token" if kind == "cls attention" else None
    name = target.towers()[0].config.model_type
    tower = _TOWERS.get(name)
    strategy = _setting(target, inputs, "vision_feature_select_strategy") or arch.strategy
    if tower is None or tower.cls != (strategy == "default"):
        known = {
            how: ", ".join(repr(x) for x, one in _TOWERS.items() if x and one.cls == cls)
            for how, cls in (("default", True), ("full", False))
        }
        return (
            f"its vision tower is a {name!r} whose features are taken as {strategy!r}; known are, "
            f"as 'default', {known['default']} and, as 'full', {known['full']}"
        )
    if kind == "cls attention" and not tower.cls:
        return f"its vision tower, a {name!r}, has no [CLS] token"
    if _feature_layer(target, inputs) < 1:
        return "its features are of no layer: vision_feature_layer is 0, which is before the first"
    return None


def _setting(target: Target, inputs: Mapping[str, Any], *names: str) -> Any:
    """Of a call, or else of the configuration; None if there is none by any of the names."""
    given = (inputs.get(name) for name in names)
    own = (getattr(target.model.config, name, None) for name in names)
    return next((value for value in (*given, *own) if value is not None), None)


def _feature_layer(target: Target, inputs: Mapping[str, Any]) -> int:
    """Which hidden state the projector is given, the last one of several (VipLLaVA).

    State 0 is the embeddings', state i the output of layer i - 1. A model without a setting takes
    the last one.
    """
    given = _setting(target, inputs, "vision_feature_layer", "vision_feature_layers")
    states = len(_layers(target.towers()[0])) + 1
    several = given if isinstance(given, list | tuple) else [-1 if given is None else given]
    return max((layer % states for layer in several), default=0)


def _layer(target: Target, inputs: Mapping[str, Any]) -> Layer:
    """The attention of the layer whose output is the projector's input."""
    tower = target.towers()[0]
    if target.arch.blocks:
        attentions = _attentions(target)
        # Most of Qwen2.5-VL's layers see a window of the picture only, its last one all of it.
        whole = getattr(tower.config, "fullatt_block_indexes", [])
        last = max((i for i in whole if i < len(attentions)), default=-1)
        return Packed(attentions[last], tower)
    kind, number = _TOWERS[tower.config.model_type], _feature_layer(target, inputs) - 1
    attention, *others = (_attention(_layers(one)[number]) for one in target.towers())
    return kind.layer(attention, tower, *others, **kind.options)


def _attentions(target: Target) -> list[Any]:
    """Those of a tower whose layers need not have any (LFM3-VL)."""
    found = (_attention(layer) for layer in _layers(target.towers()[0]))
    return [one for one in found if one is not None]


def _layers(tower: nn.Module) -> Any:
    """The layers of a tower, the first list of modules that it has."""
    return next(part for part in tower.modules() if isinstance(part, nn.ModuleList))


def _attention(layer: nn.Module) -> Any:
    """The attention of a layer, if it has one."""
    names = ("attn", "attention", "self_attn")
    return next((getattr(layer, name) for name in names if hasattr(layer, name)), None)
