# SPDX-License-Identifier: Apache-2.0
"""Taking tokens back from a cache: keys and values are cut, states become what they once were."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Saved:
    """States of a cache's layers.

    Attributes:
        length: how many tokens they have read.
        layers: copies of the layers, by their numbers; empty if nothing was saved.
    """

    length: int = 0
    layers: dict[int, Any] = field(default_factory=dict)


def save(cache: Any) -> Saved:
    """The states that a cache has now."""
    layers = {i: copy.deepcopy(layer) for i, layer in enumerate(cache.layers) if _has_states(layer)}
    return Saved(int(cache.get_seq_length()), layers)


def shorten(cache: Any, length: int, saved: Saved) -> bool:
    """Leave the first `length` tokens in a cache; False if it cannot forget the others."""
    surplus = int(cache.get_seq_length()) - length
    if surplus <= 0:
        return True
    states = [i for i, layer in enumerate(cache.layers) if _has_states(layer)]
    if states and (saved.length != length or sorted(saved.layers) != states):
        return False
    for i, layer in enumerate(cache.layers):
        if i in states:
            cache.layers[i] = copy.deepcopy(saved.layers[i])  # to go back there once more
            continue
        # Before 5.24 quantized layers call themselves croppable, and crop what is no number yet.
        if not layer.is_croppable or "Quant" in type(layer).__name__:
            return False
        try:
            layer.crop(-surplus)
        except RuntimeError:  # a window that is full; the layers before it are shorter now
            return False
    return True


def _has_states(layer: Any) -> bool:
    """Whether a layer has read tokens of which it keeps neither keys nor values."""
    return hasattr(layer, "conv_states")
