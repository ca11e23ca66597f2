# SPDX-License-Identifier: Apache-2.0
"""Pictures and videos to visual tokens, by the model's own encoders, in any transformers.

`get_image_features` and `get_video_features` return an object with `pooler_output` (5.x), or that
alone (4.57): a list with one tensor an entry, or one tensor; Qwen3-VL adds features for deeper
layers (DeepStack). Here all become one `[T, D]`, in the order in which they fill the placeholders
of the prompts.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .architectures import Modality, Target
from .errors import PlaceholderMismatchError, unwatched


@dataclass(frozen=True, eq=False)
class Part:
    """What an encoder made of the pictures, or of the videos, of a batch.

    Attributes:
        modality: which.
        sizes: tokens of each entry the encoder returned.
        raw: what it returned.
        features: what the projector was given, where that was asked for.
    """

    modality: Modality
    sizes: list[int]
    raw: Any
    features: Tensor | None


@dataclass(frozen=True, eq=False)
class Encoded:
    """The visual tokens of a batch.

    Attributes:
        tokens: `[T, D]`, what the language model is given, in the order of the prompts.
        deep: the same tokens for deeper layers, `[T, D]` each (DeepStack).
        parts: pictures and videos, those that there are.
        part: int64 `[T]` on the host: which of the parts a token is of.
    """

    tokens: Tensor
    deep: list[Tensor]
    parts: list[Part]
    part: Tensor

    @property
    def sizes(self) -> dict[str, list[int]]:
        """Tokens of each entry, by the name of the modality."""
        return {one.modality.name: one.sizes for one in self.parts}

    def in_prompts(self, values: Sequence[Tensor]) -> Tensor:
        """Values of each part's tokens, `[t, ...]`, in the order of the prompts, `[T, ...]`."""
        return in_prompts(values, self.part)


def encode(target: Target, inputs: Mapping[str, Any], need_features: bool) -> Encoded:
    """Run the model's encoders on the pictures and videos among `inputs`."""
    parts, tokens, deep = [], [], []
    for modality in target.given(inputs):
        part, made = _encode(target, modality, inputs, need_features)
        parts.append(part)
        tokens.append(made[0])
        deep.append(made[1:])
    if len(parts) == 1:
        label = torch.zeros(len(tokens[0]), dtype=torch.long, device="cpu")
    else:
        ids = inputs["input_ids"].cpu()
        kind = torch.full_like(ids, -1)
        for number, part in enumerate(parts):
            kind[ids == part.modality.token] = number
        label = kind[kind >= 0]
        for number, (part, own) in enumerate(zip(parts, tokens, strict=True)):
            _matches(part.modality, int((label == number).sum()), len(own))
    layers = [in_prompts(layer, label) for layer in zip(*deep, strict=True)]
    return Encoded(in_prompts(tokens, label), layers, parts, label)


def in_prompts(values: Sequence[Tensor], part: Tensor) -> Tensor:
    """Values of the tokens of each part in the order of the prompts; see `Encoded.part`."""
    if len(values) == 1:
        return values[0]
    order = part.argsort(stable=True).argsort()  # where each token is, one part behind the other
    return torch.cat(list(values))[order.to(values[0].device)]


def _matches(modality: Modality, placeholders: int, features: int) -> None:
    if placeholders != features:
        raise PlaceholderMismatchError(placeholders, features, modality.name)


def _encode(
    target: Target, modality: Modality, inputs: Mapping[str, Any], need_features: bool
) -> tuple[Part, list[Tensor]]:
    """Pictures or videos: what is known of them, and their tokens, in deeper layers as well."""
    names = target.encoder_arguments(modality)
    arguments = {name: inputs[name] for name in names if inputs.get(name) is not None}
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def see(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if threading.get_ident() == thread:  # hooks are called for the pictures of all threads
            seen.append((*args, *named.values())[0])

    hook = None
    if need_features:
        hook = target.projector().register_forward_pre_hook(see, with_kwargs=True)
    try:
        raw = getattr(type(target.inner), modality.encoder)(target.inner, **arguments)
    finally:
        if hook is not None:
            hook.remove()
    if need_features and not seen:
        raise unwatched(target.arch.projector)
    pooled, deep = _parts(raw)
    if isinstance(pooled, Tensor):
        pooled = list(pooled) if pooled.ndim > 2 else [pooled]
    entries = [entry.reshape(-1, entry.shape[-1]) for entry in pooled]
    sizes = [len(entry) for entry in entries]
    layers = [layer if isinstance(layer, Tensor) else torch.cat(list(layer)) for layer in deep]
    return Part(modality, sizes, raw, seen[0] if seen else None), [torch.cat(entries), *layers]


def rebuild(encoded: Encoded, rows: Sequence[Tensor], as_arguments: bool = True) -> dict[str, Any]:
    """What the encoders would have returned for the kept tokens.

    Args:
        encoded: all tokens.
        rows: the kept ones, int64 rows of `encoded.tokens` on its device, one tensor a prompt.
        as_arguments: whether they become arguments of the model, which generate repeats.

    Returns:
        By modality, objects of the encoders' own kind. An entry is a prompt's tokens: so whoever
        repeats or cuts the entries (beam search, several sequences a prompt) finds the borders of
        prompts.
    """
    if len(encoded.parts) == 1:
        one = encoded.parts[0]
        return {one.modality.name: _rebuild(encoded, one, rows, as_arguments)}
    part = encoded.part.to(encoded.tokens.device)
    own = [[row[part[row] == number] for row in rows] for number in range(len(encoded.parts))]
    return {
        one.modality.name: _rebuild(encoded, one, kept, as_arguments)
        for one, kept in zip(encoded.parts, own, strict=True)
    }


def _rebuild(encoded: Encoded, part: Part, rows: Sequence[Tensor], as_arguments: bool) -> Any:
    raw = part.raw
    pooled, deep = _parts(raw)
    if isinstance(pooled, Tensor):
        # One tensor for prompts of unequal lengths: rows as long as all of them can be cut into.
        length = math.gcd(*(len(row) for row in rows))
        tokens = encoded.tokens[torch.cat(list(rows))]
        # Nothing may be left: generate cannot repeat no entry, so there is one of no tokens; where
        # it does not repeat them, SmolVLM divides by their length.
        empty = length == 0 and as_arguments
        kept: Any = tokens[None] if empty else tokens.reshape(-1, max(1, length), tokens.shape[-1])
    else:
        kept = type(pooled)(encoded.tokens[row] for row in rows)
    kept_deep = [
        full[torch.cat(list(rows))] if isinstance(layer, Tensor) else [full[row] for row in rows]
        for full, layer in zip(encoded.deep, deep, strict=True)
    ]
    if not hasattr(raw, "pooler_output"):
        if _counted(raw):
            return kept, raw[1]
        return (kept, kept_deep) if deep else kept
    output = type(raw)()  # without the hidden states of unpruned pictures
    output.pooler_output = kept
    if deep:
        output.deepstack_features = kept_deep
    marks = getattr(raw, "visual_indicator_features", None)  # of Ovis2, all of whose marks are left
    if marks is not None:
        output.visual_indicator_features = marks
    return output


def _counted(raw: Any) -> bool:
    """Whether the number of frames is returned as well: Video-LLaVA in 4.57."""
    return isinstance(raw, tuple) and isinstance(raw[-1], int)


def _parts(raw: Any) -> tuple[Any, list[Any]]:
    """(tokens, deeper layers) of what the encoder returned."""
    if hasattr(raw, "pooler_output"):
        return raw.pooler_output, list(getattr(raw, "deepstack_features", None) or [])
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[1], list):
        return raw[0], raw[1]  # Qwen3-VL in 4.57
    if _counted(raw):
        return raw[0], []
    return raw, []
