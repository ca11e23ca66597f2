# SPDX-License-Identifier: Apache-2.0
"""What methods want beside tokens and words: attention and keys of the vision tower, its output.

Nothing in the model is switched to another attention and nothing is computed twice: hooks on two
projections of one layer note queries and keys, and the attention of the few rows that are wanted is
their softmax. A tower may go on with SDPA or FlashAttention.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import Target
from .errors import UnsupportedMethodError, unwatched
from .tiles import along_tokens

#: Whether a vision tower, by its `model_type`, has a [CLS] token, which becomes no visual token.
_TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}
_PROJECTIONS = ("q_proj", "k_proj")
_OF_A_LAYER = ("attention", "cls attention", "keys")
KINDS = (*_OF_A_LAYER, "features")


@dataclass
class Collected:
    """What a method is given.

    Attributes:
        kinds: what each argument of its `select` is; see `zspa_kernels.methods.Input.tensor`.
        layer: the attention of the vision tower's layer whose output is used; None: not wanted.
        cls: the tower has a [CLS] token.
        noted: outputs of that layer's projections, and the projector's input, of one picture batch.
    """

    kinds: dict[str, str]
    layer: nn.Module | None = None
    cls: bool = False
    noted: dict[str, Tensor] = field(default_factory=dict)

    @contextlib.contextmanager
    def watching(self, target: Target) -> Iterator[None]:
        """Notes what is wanted of the pictures that the model encodes meanwhile."""
        handles = []
        thread = threading.get_ident()

        def note(name: str, module: nn.Module, args: Any, output: Any = None) -> None:
            if threading.get_ident() == thread:  # hooks are called for the pictures of all threads
                self.noted[name] = (args[0] if output is None else output).detach()

        if self.layer is not None:
            for name in _PROJECTIONS:
                part = self.layer.get_submodule(name)
                handles.append(part.register_forward_hook(functools.partial(note, name)))
        if "features" in self.kinds.values():
            before = functools.partial(note, "features")
            handles.append(target.projector().register_forward_pre_hook(before))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def tensors(self, target: Target, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Every argument, one row a visual token `[T, ...]`; NaN where a token is a newline."""
        if self.layer is not None and not {*_PROJECTIONS} <= set(self.noted):
            raise unwatched("the vision tower")
        made: dict[str, Tensor] = {}
        for kind in set(self.kinds.values()):
            value = self._of(kind)
            made[kind] = along_tokens(target, inputs, value)
        return {name: made[kind] for name, kind in self.kinds.items()}

    def _of(self, kind: str) -> Tensor:
        """One kind, `[images, N]` or `[images, N, C]`."""
        if kind == "features":
            return self.noted["features"]
        layer: Any = self.layer
        queries, keys = (self.noted[name] for name in _PROJECTIONS)
        heads = (*keys.shape[:2], layer.num_heads, -1)  # [images, patches, heads, channels]
        if kind == "keys":
            return keys.view(heads).float().mean(2)[:, int(self.cls) :]
        rated = [
            _received(q[: 1 if self.cls else None], k, layer.scale)
            for q, k in zip(queries.view(heads).float(), keys.view(heads).float(), strict=True)
        ]
        return torch.stack(rated)[:, int(self.cls) :]


def _received(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Attention `[n]` that each key `[n, heads, d]` gets, mean over queries `[m, heads, d]`."""
    logits = torch.einsum("mhd,nhd->hmn", queries, keys) * scale
    return logits.softmax(-1).mean((0, 1))


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
        found.cls = _TOWERS[_tower(target).config.model_type]
        found.layer = _attention(target, inputs or {})
    return found


def _why_not(kind: str, target: Target, inputs: Mapping[str, Any]) -> str | None:
    """Why a kind of tensor cannot be had; None if it can."""
    if kind not in KINDS:
        return "this is not collected from a model; `select` can be given it"
    if not target.arch.patches:
        return (
            "its visual tokens may be made of several patches each; this is collected where they "
            "are patches, in LLaVA-1.5 and LLaVA-NeXT"
        )
    if kind == "features":
        return None
    name = _tower(target).config.model_type
    strategy = _setting(target, inputs, "vision_feature_select_strategy")
    if name not in _TOWERS or _TOWERS[name] != (strategy == "default"):
        return (
            f"its vision tower is a {name!r} whose features are taken as {strategy!r}; known are "
            f"'clip_vision_model' with 'default' and 'siglip_vision_model' with 'full'"
        )
    if kind == "cls attention" and not _TOWERS[name]:
        return f"its vision tower, a {name!r}, has no [CLS] token"
    layer = _setting(target, inputs, "vision_feature_layer")
    if not isinstance(layer, int) or layer == 0:
        return f"its features are of no single layer: vision_feature_layer is {layer!r}"
    return None


def _setting(target: Target, inputs: Mapping[str, Any], name: str) -> Any:
    given = inputs.get(name)
    return getattr(target.model.config, name) if given is None else given


def _tower(target: Target) -> Any:
    return target.inner.vision_tower


def _attention(target: Target, inputs: Mapping[str, Any]) -> nn.Module:
    """The attention of the layer whose output is the projector's input."""
    layer = _setting(target, inputs, "vision_feature_layer")
    parts = dict(_tower(target).named_modules())
    layers: Any = next(part for name, part in parts.items() if name.endswith("encoder.layers"))
    # Hidden state 0 is the embeddings', so state i is the output of layer i - 1.
    attention: nn.Module = layers[layer if layer < 0 else layer - 1].self_attn
    return attention
