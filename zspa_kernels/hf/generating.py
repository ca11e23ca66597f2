# SPDX-License-Identifier: Apache-2.0
"""Arguments of `generate` that mean another thing once the prompt is shorter."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .architectures import Target
from .errors import ChunkedPrefillError, UnsupportedInputError
from .inputs import input_ids


def effective(target: Target, call: Mapping[str, Any], name: str) -> Any:
    """A generation parameter: of the call, its configuration, or the model's."""
    for source in (call, call.get("generation_config"), target.model.generation_config):
        get = source.get if isinstance(source, Mapping) else functools.partial(getattr, source)
        value = get(name, None) if source is not None else None
        if value is not None:
            return value
    return None


def refuse(target: Target, call: Mapping[str, Any]) -> None:
    """Raise for ways of generating whose result would be wrong."""
    if effective(target, call, "use_cache") is False:
        raise UnsupportedInputError(
            "prune: use_cache must be True, got False: without a cache transformers takes the "
            "positions of a pruned prompt for several packed sequences"
        )
    for name in ("assistant_model", "assistant_early_exit"):
        if effective(target, call, name) is not None:
            raise UnsupportedInputError(
                f"prune: {name} must be None, got one: a model that drafts answers has not read "
                f"the pruned prompt; prompt_lookup_num_tokens works"
            )
    if effective(target, call, "cache_implementation") == "paged":
        raise UnsupportedInputError(
            "prune: cache_implementation must not be 'paged', with which transformers reads the "
            "words of a prompt only"
        )
    chunk = effective(target, call, "prefill_chunk_size")
    if chunk is not None and not target.slices_features():
        raise ChunkedPrefillError(
            f"prune: prefill_chunk_size must be None with this transformers, got {chunk}: it "
            f"mixes up pictures in chunked prefill; 5.23 and newer do not"
        )


def mask(target: Target, call: Mapping[str, Any]) -> Tensor | None:
    """The attention mask of `call`; without one all but padding, where `generate` knows that."""
    given: Tensor | None = call.get("attention_mask")
    pad, ends = (effective(target, call, name) for name in ("pad_token_id", "eos_token_id"))
    if given is not None or pad is None or pad in ([ends] if isinstance(ends, int) else ends or ()):
        return given
    return input_ids(call).ne(pad).long()


def stand_ins(target: Target, call: Mapping[str, Any], ids: Tensor) -> dict[str, Any]:
    """What `generate` is given for pictures that are encoded already; `ids` is the pruned prompt.

    Nobody encodes it. But Qwen's `generate` splits it for beams, by the pictures and frames that it
    finds in the prompt, where one of which nothing is left is missing.
    """
    given = {k: call[k] for k in target.encoder_arguments() if k in call}
    if target.arch.mrope:
        config = target.model.config
        first = getattr(config, "image_start_token_id", None)
        if first is None:
            behind = (ids == config.vision_start_token_id).roll(1, 1)
            found = {one: int((behind & (ids == one.token)).sum()) for one in target.given(call)}
        else:  # GLM-V counts the beginnings of pictures, whatever is left of them
            found = dict.fromkeys(target.given(call), int((ids == first).sum()))
        for one, count in found.items():
            given[one.pixels[0]] = given[one.pixels[0]][:0]
            given[one.grid] = given[one.grid].new_tensor([[1, 0, 0]] * count).reshape(-1, 3)
            if count == 0 and any(found.values()):
                del given[one.pixels[0]], given[one.grid]
    return given


def lengths(target: Target, call: Mapping[str, Any], dropped: int) -> dict[str, Any]:
    """`max_length` and `min_length` count the prompt: shorter by what was dropped."""
    found: dict[str, Any] = {}
    for name, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = effective(target, call, name)
        # 20 is the default of old versions, to which they add the length of the prompt.
        default = call.get(name) is None and value in (None, 0, 20)
        if effective(target, call, new) is None and value is not None and not default:
            found[name] = max(value - dropped, 0)
    return found


class WholePrompt:
    """A streamer that is given the whole prompt first, and then what is generated."""

    def __init__(self, streamer: Any, prompt: Tensor) -> None:
        self._streamer, self._prompt = streamer, prompt
        self._first = True

    def put(self, value: Tensor) -> None:
        """The prompt, in the first call, or the next token."""
        self._streamer.put(self._prompt.to(value.device) if self._first else value)
        self._first = False

    def end(self) -> None:
        """Nothing follows."""
        self._streamer.end()
