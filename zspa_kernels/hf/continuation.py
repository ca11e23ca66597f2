# SPDX-License-Identifier: Apache-2.0
"""What a pruned cache has to know when somebody goes on from it.

A caller who does not know that a prompt was pruned gives masks and positions of the whole prompt.
The record that corrects them travels on the cache itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .architectures import Target
from .errors import CachedPromptError, UnsupportedInputError

_NAME = "_zspa_continuation"
_OWNER = "_zspa_owner"
_CACHES = ("cache", "past_key_values")  # as transformers >= 5.24 and as older ones call it


@dataclass(frozen=True, eq=False)
class Continuation:
    """How to go on from a pruned prompt.

    Attributes:
        mask: bool `[B, L']` of the pruned prompt.
        length: columns of the prompt in the masks the caller gives: L, or L' where they are pruned.
        first: `[B, 1]`, position of the first token behind the prompt.
        shift: `[B, 1]`, by how much a position given by the caller is too large.
        own_positions: the caller's positions are not to be used.
        spoilt: layers with states have read padding behind a prompt.
    """

    mask: Tensor
    length: int
    first: Tensor
    shift: Tensor
    own_positions: bool
    spoilt: bool

    def corrected(self, target: Target, arguments: dict[str, Any], cache: Any) -> dict[str, Any]:
        """The arguments of a forward call that goes on from `cache`."""
        tokens = arguments.get("input_ids")
        if tokens is None:
            tokens = arguments["inputs_embeds"]
        batch, new = tokens.shape[:2]
        if batch % len(self.mask):
            raise UnsupportedInputError(
                f"prune: input_ids must be [B * n, tokens] when going on from the cache of "
                f"{len(self.mask)} pruned prompts, got {list(tokens.shape[:2])}; a cache of some "
                f"of them does not say which they are"
            )
        if self.spoilt:
            raise UnsupportedInputError(
                f"prune: attention_mask must have its padding on the left when going on from a "
                f"prompt of {target.arch.name}, got one with padding on the right, which has "
                f"changed the states of its layers"
            )
        slots = arguments.get("cache_position")
        given = arguments.get("attention_mask")
        if slots is None or not self.own_positions:
            start = int(cache.get_seq_length())
            slots = start + torch.arange(new, device=self.first.device)
            if not self.own_positions:
                self._refuse_gaps(given, start, new)
        # Else generate counted: a static cache of 4.57 misses padding whose keys are zeros.
        steps = slots - self.mask.shape[1]
        mask, first, shift = (
            x.repeat_interleave(batch // len(x), 0) for x in (self.mask, self.first, self.shift)
        )
        result = dict(arguments)
        if isinstance(given, Tensor) and given.ndim == 2:
            result["attention_mask"] = torch.cat(
                (mask.to(given.dtype), given[:, self.length :]), dim=1
            )
        elif given is None and not bool(mask.all()):
            after = mask.new_ones(batch, int(steps[-1]) + 1)
            result["attention_mask"] = torch.cat((mask, after), 1).long()
        elif given is not None and not self.own_positions:
            raise UnsupportedInputError(
                "prune: attention_mask must be [B, tokens] when going on from a pruned prompt, got "
                f"{list(given.shape) if isinstance(given, Tensor) else type(given).__name__}"
            )
        positions = arguments.get("position_ids")
        if positions is None or self.own_positions:
            positions = first + steps
            if target.arch.mrope:
                counted = mask.sum(1, keepdim=True) + steps
                positions = torch.cat((counted[None], positions.expand(3, -1, -1)))
        else:
            positions = positions - shift
        result["position_ids"] = positions
        if arguments.get("cache_position") is not None:
            result["cache_position"] = slots
        return result

    def _refuse_gaps(self, mask: Any, start: int, new: int) -> None:
        """Raise if the cache, or the caller's mask of it, is too short for `new` tokens."""
        kept = self.mask.shape[1]
        if start < kept:
            raise CachedPromptError(
                f"prune: the cache must hold a pruned prompt whole, {kept} tokens, got {start}; "
                f"remove only what was read behind the prompt"
            )
        wanted = self.length + start - kept + new
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] < wanted:
            raise UnsupportedInputError(
                f"prune: attention_mask must have a column for every token of the unpruned prompt "
                f"and of what follows, {wanted}, got {mask.shape[1]}; the cache has {start} tokens"
            )


def of(cache: Any) -> Continuation | None:
    """What `cache` knows; None for one that holds no pruned prompt, or was emptied since."""
    found: Continuation | None = getattr(cache, _NAME, None)
    # While generate runs nobody empties it, and torch.compile could not follow the question.
    if found is not None and not found.own_positions and not int(cache.get_seq_length()):
        forget(cache)
        return None
    return found


def remember(cache: Any, continuation: Continuation) -> None:
    """Write it on the cache."""
    setattr(cache, _NAME, continuation)


def forget(cache: Any) -> None:
    """Whatever comes next does not go on from the pruned prompt."""
    vars(cache).pop(_NAME, None)


def cache_in(values: Any) -> Any:
    """The cache among keyword arguments or in a model's output, None if there is none."""
    if isinstance(values, tuple):
        return next((one for one in values if hasattr(one, "get_seq_length")), None)
    for name in _CACHES:
        if values.get(name) is not None:
            return values[name]
    return None


def owned(cache: Any, mark: object) -> bool:
    """Whether `mark` is of the last one who claimed this cache, so that nobody else went on."""
    return getattr(cache, _OWNER, None) is mark


def claim(cache: Any) -> object:
    """A mark for `owned`, in place of all earlier ones."""
    mark = object()
    setattr(cache, _OWNER, mark)
    return mark
