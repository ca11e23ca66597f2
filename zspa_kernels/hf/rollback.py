# SPDX-License-Identifier: Apache-2.0
"""Taking tokens back from a cache: keys and values are cut, states become what they once were."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import continuation


@dataclass(eq=False)
class Saved:
    """States of a cache's layers.

    Attributes:
        length: how many tokens they have read.
        layers: copies of the layers, by their numbers; empty if nothing was saved.
    """

    length: int = 0
    layers: dict[int, Any] = field(default_factory=dict)


@contextlib.contextmanager
def saving(model: Any, length: int) -> Iterator[Saved]:
    """Save the states that `generate` has when it has read a prompt of `length` tokens."""
    saved = Saved(length)
    thread = threading.get_ident()

    def see(_: Any, args: Any, output: Any) -> None:
        cache = continuation.cache_in(output)
        mine = threading.get_ident() == thread  # hooks are called for the calls of all threads
        if mine and cache is not None and int(cache.get_seq_length()) == length:
            layers = enumerate(cache.layers)
            saved.layers = {i: copy.deepcopy(layer) for i, layer in layers if _has_states(layer)}

    hook = model.register_forward_hook(see)
    try:
        yield saved
    finally:
        hook.remove()


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
            cache.layers[i] = saved.layers[i]
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
