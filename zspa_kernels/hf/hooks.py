# SPDX-License-Identifier: Apache-2.0
"""Forward hooks: for direct calls of the model, and for transformers without `mm_encoder_outputs`.

A hook before the inner model prunes its arguments. Where a forward call can be given encoded
pictures, it is given the kept ones. Where it cannot, its `get_image_features` returns them for the
length of the call. In both cases the model's own code merges them into the pruned prompt, so masks
and features of deeper layers come out right by construction. Nothing is kept between calls but on
the cache, so threads do not meet.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from . import continuation
from .architectures import PIXELS, Target
from .continuation import Continuation
from .encode import rebuild
from .errors import LabelsError, UnsupportedInputError
from .inputs import Pruned, features_form, input_ids, refuse

_SHADOWED = ("get_image_features", "get_video_features", "get_rope_index")


class Noted(dict[str, Any]):
    """`mm_encoder_outputs` that carry what the cache has to know afterwards."""

    note: Continuation


class Hooks:
    """The hooks of one model, while installed."""

    def __init__(self, target: Target, prune: Callable[[Mapping[str, Any], str], Pruned]) -> None:
        self._target, self._prune = target, prune
        self._handles: list[Any] = []
        self._own: dict[str, Any] = {}
        self._forward: tuple[Any, dict[str, Any]] = (None, {})  # ours, and what was there before
        # What it does with values would become a dozen graphs.
        self._uncompiled: Any = torch.compiler.disable(self._prefill)
        # Of the call that is running in this thread, where pictures cannot be passed as arguments.
        self._running: ContextVar[tuple[Pruned, Continuation, int] | None] = ContextVar(
            "zspa_running", default=None
        )
        # With the caches that it fills.
        self._expected: ContextVar[tuple[Pruned, list[Any]] | None] = ContextVar(
            "zspa_expected", default=None
        )

    def install(self) -> None:
        """Register them."""
        inner, model = self._target.inner, self._target.model
        # Not a hook, which PEFT passes by: its adapters call this themselves.
        checked = self._without_columns(model)
        self._forward = checked, {k: v for k, v in vars(model).items() if k == "forward"}
        vars(model)["forward"] = checked
        self._handles = [
            inner.register_forward_pre_hook(self._before, with_kwargs=True),
            inner.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        if not self._target.takes_features:
            self._own = {name: vars(inner)[name] for name in _SHADOWED if name in vars(inner)}
            for name in _SHADOWED:
                if hasattr(inner, name):
                    vars(inner)[name] = getattr(self, f"_{name}")

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        own, (checked, before) = vars(self._target.model), self._forward
        if own.get("forward") is checked:  # else somebody's, around it: it passes on from now on
            del own["forward"]
            own.update(before)
        if not self._target.takes_features:
            for name in _SHADOWED:
                vars(self._target.inner).pop(name, None)
            vars(self._target.inner).update(self._own)

    def _without_columns(self, model: Any) -> Callable[..., Any]:
        """The model's `forward`; raises for arguments about columns of the unpruned prompt."""
        forward = model.forward

        @functools.wraps(forward)
        def checked(*args: Any, **kwargs: Any) -> Any:
            chosen = isinstance(kwargs.get("logits_to_keep"), Tensor)
            if (args or chosen or kwargs.get("labels") is not None) and self._handles:
                _refuse_columns(_named(model, args, kwargs))
            return forward(*args, **kwargs)

        return checked

    @contextlib.contextmanager
    def expecting(self, pruned: Pruned) -> Iterator[None]:
        """`generate` runs on a prompt that is pruned already."""
        caches: list[Any] = []
        token = self._expected.set((pruned, caches))
        try:
            yield
        finally:
            self._expected.reset(token)
            for cache in caches:  # transformers may keep a static one for the next prompt
                continuation.forget(cache)

    def _expecting(self, ids: Tensor | None) -> Pruned | None:
        """The prompt that `generate` runs on, if `ids` are of it.

        A caller's logits processor may ask the model about other pictures meanwhile.
        """
        expected = self._expected.get()
        if expected is None or ids is None:
            return None
        pruned = expected[0]
        own: Tensor = pruned.inputs["input_ids"]
        return pruned if torch.equal(ids, own.repeat_interleave(len(ids) // len(own), 0)) else None

    def continuation(
        self, pruned: Pruned, length: int, own_positions: bool = False
    ) -> Continuation:
        """How to go on from a prompt whose masks have `length` columns."""
        first, mask = pruned.next_positions, pruned.mask
        spoilt = self._target.arch.states and not bool(mask[:, -1].all())
        shift = pruned.unpruned_next - first
        return Continuation(mask, length, first, shift, own_positions, spoilt)

    def _before(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # First what is true in every step of decoding; torch.compile follows it without a break.
        cache = kwargs.get("cache")
        if cache is None:
            cache = kwargs.get("past_key_values")
        note = continuation.of(cache)
        if not args and not _shows(kwargs) and note is None:
            return None
        arguments = dict(kwargs)
        if args:
            arguments = _named(module, args, kwargs)
            cache = continuation.cache_in(arguments)
            note = continuation.of(cache)
        if _shows(arguments):
            return (), self._uncompiled(arguments)
        if note is not None:
            return (), note.corrected(self._target, arguments, cache)
        return None

    def _prefill(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call with pictures, pruned."""
        expected = self._expecting(arguments.get("input_ids"))
        if expected is None:
            refuse(self._target, arguments)
        ids = input_ids(arguments)
        if arguments.get("position_ids") is None and not self._target.arch.mrope:
            # A forward call counts columns, padding included; generate counts tokens.
            columns = torch.arange(ids.shape[1], device=ids.device)[None]
            arguments = {**arguments, "position_ids": columns}
        pruned = expected if expected is not None else self._prune(arguments, "hooks")
        length = pruned.mask.shape[1] if expected is not None else ids.shape[1]
        note = self.continuation(pruned, length, own_positions=expected is not None)
        if self._target.takes_features:
            gone = self._target.consumed()
            result = {k: v for k, v in arguments.items() if k not in gone}
            result.update(features_form(pruned))
            noted = Noted(result["mm_encoder_outputs"])
            noted.note = note
            return {**result, "mm_encoder_outputs": noted}
        times = ids.shape[0] // len(pruned.mask)
        result = dict(arguments)
        if expected is None:
            result.update(pruned.inputs)
            if result.get("cache_position") is not None:
                result["cache_position"] = result["cache_position"][: pruned.mask.shape[1]]
        axis = pruned.positions.ndim - 2
        result["position_ids"] = pruned.positions.repeat_interleave(times, axis)
        self._running.set((pruned, note, times))
        return result

    def _after(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        note = getattr(kwargs.get("mm_encoder_outputs"), "note", None)
        if not self._target.takes_features:
            # Steps of decoding have no picture; torch.compile cannot follow a context variable.
            running = self._running.get() if _shows(kwargs) else None
            if running is None:
                return
            self._running.set(None)
            note = running[1]
        if note is None or output is None:
            return
        cache = continuation.cache_in(output)
        if cache is not None:
            continuation.remember(cache, note)
            expected = self._expected.get() if note.own_positions else None
            if expected is not None:
                expected[1].append(cache)

    def _get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        return self._features("image", args, kwargs)

    def _get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        return self._features("video", args, kwargs)

    def _features(self, name: str, args: Any, kwargs: Any) -> Any:
        """The kept ones of the running call; outside of one, those of the model's own encoder."""
        running = self._running.get()
        if running is None:
            own = getattr(type(self._target.inner), f"get_{name}_features")
            return own(self._target.inner, *args, **kwargs)
        pruned, _, times = running
        rows = [row for row in pruned.rows for _ in range(times)]
        return rebuild(pruned.encoded, rows, as_arguments=False)[name]

    def _get_rope_index(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` asks for the positions of the pruned prompt, whose pictures have gaps."""
        ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        pruned = self._expecting(ids)
        if pruned is None:
            return type(self._target.inner).get_rope_index(self._target.inner, *args, **kwargs)
        times = ids.shape[0] // len(pruned.mask)
        axes = pruned.positions[1:].repeat_interleave(times, 1)
        delta = pruned.next_positions - pruned.mask.shape[1]
        return axes, delta.repeat_interleave(times, 0)


def _shows(arguments: Mapping[str, Any]) -> bool:
    """Whether a call has pictures or videos."""
    return any(arguments.get(name) is not None for name in PIXELS)


def _named(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward call by their names."""
    names = inspect.signature(type(module).forward).bind_partial(module, *args).arguments
    arguments = {**names, **kwargs}
    arguments.pop("self", None)
    return arguments


def _refuse_columns(arguments: Mapping[str, Any]) -> None:
    if not _shows(arguments):
        return
    if arguments.get("labels") is not None:
        raise LabelsError(
            "prune: labels must be None, got a tensor as long as the unpruned prompt; take the "
            "loss from the logits of prune_inputs, whose columns its index maps back"
        )
    if isinstance(arguments.get("logits_to_keep"), Tensor):
        raise UnsupportedInputError(
            "prune: logits_to_keep must be an int, got a tensor of columns of the unpruned prompt; "
            "take them from the logits of prune_inputs, whose columns its index maps back"
        )
