# SPDX-License-Identifier: Apache-2.0
"""Pictures to visual tokens, by the model's own encoder, in any version of transformers.

`get_image_features` returns an object with `pooler_output` (5.x), or that alone (4.57): a list with
one tensor an entry, or one tensor; Qwen3-VL adds features for deeper layers (DeepStack). Here all
become one `[T, D]`, in the order in which they fill the placeholders of the prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .architectures import Target


@dataclass(frozen=True, eq=False)
class Encoded:
    """The visual tokens of a batch.

    Attributes:
        tokens: `[T, D]`, what the language model is given.
        sizes: tokens of each entry the encoder returned.
        deep: the same tokens for deeper layers, `[T, D]` each (DeepStack).
        raw: what the encoder returned.
        features: what the projector was given, where that was asked for.
    """

    tokens: Tensor
    sizes: list[int]
    deep: list[Tensor]
    raw: Any
    features: Tensor | None


def encode(target: Target, inputs: Mapping[str, Any], need_features: bool) -> Encoded:
    """Run the model's encoder on the pictures among `inputs`."""
    names = target.encoder_arguments()
    arguments = {name: inputs[name] for name in names if inputs.get(name) is not None}
    seen: list[Tensor] = []
    hook = None
    if need_features:
        hook = target.projector().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        raw = type(target.inner).get_image_features(target.inner, **arguments)
    finally:
        if hook is not None:
            hook.remove()
    pooled, deep = _parts(raw)
    if isinstance(pooled, Tensor):
        pooled = list(pooled) if pooled.ndim == 3 else [pooled]
    entries = [entry.reshape(-1, entry.shape[-1]) for entry in pooled]
    return Encoded(
        tokens=torch.cat(entries),
        sizes=[len(entry) for entry in entries],
        deep=[layer if isinstance(layer, Tensor) else torch.cat(list(layer)) for layer in deep],
        raw=raw,
        features=seen[0] if seen else None,
    )


def rebuild(encoded: Encoded, rows: Sequence[Tensor]) -> Any:
    """What the encoder would have returned for the kept tokens.

    Args:
        encoded: all tokens.
        rows: the kept ones, int64 rows of `encoded.tokens` on its device, one tensor a prompt.

    Returns:
        An object of the encoder's own kind. An entry is a prompt's tokens: so whoever repeats or
        cuts the entries (beam search, several sequences a prompt) finds the borders of prompts.
    """
    rows = [row for row in rows if len(row)]
    pooled, deep = _parts(encoded.raw)
    if isinstance(pooled, Tensor):
        # One tensor for prompts of unequal lengths: rows as long as all of them can be cut into.
        length = math.gcd(*(len(row) for row in rows))
        tokens = encoded.tokens[torch.cat(list(rows))]
        kept: Any = tokens.reshape(-1, length, tokens.shape[-1])
    else:
        kept = type(pooled)(encoded.tokens[row] for row in rows)
    kept_deep = [
        full[torch.cat(list(rows))] if isinstance(layer, Tensor) else [full[row] for row in rows]
        for full, layer in zip(encoded.deep, deep, strict=True)
    ]
    if not hasattr(encoded.raw, "pooler_output"):
        return (kept, kept_deep) if deep else kept
    output = type(encoded.raw)()  # without the hidden states of unpruned pictures
    output.pooler_output = kept
    if deep:
        output.deepstack_features = kept_deep
    return output


def _parts(raw: Any) -> tuple[Any, list[Any]]:
    """(tokens, deeper layers) of what the encoder returned."""
    if hasattr(raw, "pooler_output"):
        return raw.pooler_output, list(getattr(raw, "deepstack_features", None) or [])
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[1], list):
        return raw[0], raw[1]  # Qwen3-VL in 4.57
    return raw, []
