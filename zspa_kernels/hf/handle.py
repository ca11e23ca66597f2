# SPDX-License-Identifier: Apache-2.0
"""`with method(model):`: the model's own `generate`, on pruned inputs."""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from . import continuation, generating
from .architectures import PIXELS, Target
from .errors import (
    AlreadyPrunedError,
    CachedPromptError,
    NothingPrunedWarning,
    PruningError,
)
from .hooks import Hooks
from .inputs import Pruned, features_form, input_ids, prune_batch, refuse, warn_nothing
from .options import Options, fitted
from .query import Query
from .report import PruneReport

_HANDLE = "_zspa_handle"
_IDLE = "no call had a picture"


def prune(
    model: Any,
    method: Any,
    *,
    scope: str = "image",
    positions: str = "original",
    keep_newline: bool = False,
    query: Query = "question",
    processor: Any = None,
    merge: bool | None = None,
) -> PruneHandle:
    """Prune every prompt with pictures that the model is given.

    Inside `with prune(model, method):` the model's `generate` prunes its inputs and returns
    sequences that begin with the whole prompt, as without pruning: pipelines and evaluation
    harnesses need no change. Direct calls `model(**inputs)` are pruned too; their logits have the
    pruned length. Prompts without pictures pass untouched. `install()` does the same without a
    block, until `remove()`.

    Args:
        model: see `prune_inputs`; any transformers from 4.57 on.
        method: likewise, as are all others.
        scope: what shares a budget.
        positions: of kept tokens.
        keep_newline: whether LLaVA-NeXT's and LLaVA-OneVision's newline tokens are all kept.
        query: which words count.
        processor: of the model, or its tokenizer.
        merge: whether dropped tokens are merged into kept ones.

    Returns:
        The handle, not yet installed.

    Raises:
        UnsupportedModelError: the architecture is unknown.
        UnsupportedMethodError: the method needs a tensor that this model does not give.
        TypeError, ValueError: options. The errors of a call are those of `prune_inputs`, and:
        AlreadyPrunedError: the model is being pruned already.
        ChunkedPrefillError: this transformers mixes up pictures in chunked prefill.

    Warns:
        NothingPrunedWarning: at the end, if no visual token was dropped.
    """
    options = Options(scope, positions, keep_newline, query, processor, merge)
    target = Target.of(model)
    return PruneHandle(target, fitted(method, target, options), options)


class PruneHandle:
    """Pruning of one model, while installed.

    Attributes:
        report: what the last call pruned; None before the first one with a picture.
        calls: how many calls had pictures.
        before: visual tokens of all calls.
        after: the kept ones.
    """

    _hooks: Hooks

    def __init__(self, target: Target, method: Any, options: Options) -> None:
        self.report: PruneReport | None = None
        self.calls = self.before = self.after = 0
        self._target, self._method, self._options = target, method, options
        self._lock = threading.Lock()
        self._generate: Callable[..., Any] | None = None
        self._own: dict[str, Any] = {}
        self._used = False
        # Calls, and tokens dropped by them, when it was installed: it may be again and again.
        self._earlier = (0, 0)

    def __repr__(self) -> str:
        state = "installed" if self._generate else "not installed"
        return f"<PruneHandle of {self._target.arch.name}, {state}: {self.report or self._method}>"

    def __del__(self) -> None:
        if not self._used:
            warnings.warn(
                f"nothing was pruned: {self!r} was never installed; write `with method(model):` "
                f"around the calls, or call its install()",
                NothingPrunedWarning,
                stacklevel=2,
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy of the model would call the generate of this one.
        raise PruningError(
            "prune: model must not be copied or saved whole while it is pruned; leave the block or "
            "call remove() first (save_pretrained and state_dict work)"
        )

    def __enter__(self) -> PruneHandle:
        return self.install()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._generate is None:  # removed inside the block
            return
        self._uninstall()
        why = self._nothing()
        if kind is None and why is not None:
            warn_nothing(why)

    def install(self) -> PruneHandle:
        """Start pruning."""
        model = self._target.model
        self._used = True
        refuse_pruned(model)
        # Not before: with it the handle is part of a cycle, and would be deleted much later.
        self._hooks = Hooks(self._target, self._prune)
        self._earlier = (self.calls, self.before - self.after)
        generate = model.generate
        self._own = {name: vars(model)[name] for name in ("generate",) if name in vars(model)}
        self._generate = generate

        @functools.wraps(generate)
        def pruned_generate(*args: Any, **kwargs: Any) -> Any:
            return self._call(generate, _named(model, generate, args, kwargs))

        vars(model).update({_HANDLE: self, "generate": pruned_generate})
        self._hooks.install()
        return self

    def remove(self) -> None:
        """Stop pruning: the model is as it was. Calling it twice does no harm."""
        if self._generate is None:
            return
        self._uninstall()
        why = self._nothing()
        if why is not None:
            warn_nothing(why)

    def _nothing(self) -> PruneReport | str | None:
        """What was done without dropping a token since `install`; None if one was dropped."""
        calls, dropped = self._earlier
        if self.before - self.after > dropped:
            return None
        return self.report if self.calls > calls else _IDLE

    def _uninstall(self) -> None:
        model = self._target.model
        self._hooks.remove()
        for name in (_HANDLE, "generate"):
            vars(model).pop(name, None)
        vars(model).update(self._own)
        self._generate = None

    def _prune(self, inputs: Mapping[str, Any], route: str) -> Pruned:
        """Prune a batch and take note of it."""
        pruned = prune_batch(self._target, inputs, self._method, self._options, route)
        with self._lock:
            self.report = pruned.report
            self.calls += 1
            self.before += pruned.report.before
            self.after += pruned.report.after
        return pruned

    def _call(self, generate: Callable[..., Any], call: dict[str, Any]) -> Any:
        """`generate` with the arguments of `call`, pruned."""
        if call.get("inputs") is not None:
            call["input_ids"] = call.pop("inputs")
        cache = continuation.cache_in(call)
        if cache is not None and continuation.of(cache) is not None:
            raise CachedPromptError(
                "prune: the cache must not hold a pruned prompt: generate would cut the new prompt "
                "by the unpruned length; use hf.ChatState for conversations"
            )
        if all(call.get(name) is None for name in (*PIXELS, "mm_encoder_outputs")):
            return generate(**call)
        refuse(self._target, call)
        generating.refuse(self._target, call)
        takes = self._target.takes_features
        call["attention_mask"] = generating.mask(self._target, call)
        with torch.no_grad():
            pruned = self._prune(call, "inputs" if takes else "hooks")
        full = input_ids(call)
        dropped = full.shape[1] - pruned.index.shape[1]
        changed = generating.lengths(self._target, call, dropped)
        if call.get("streamer") is not None:
            changed["streamer"] = generating.WholePrompt(call["streamer"], full)
        consumed = self._target.consumed()
        rest = {k: v for k, v in call.items() if k not in consumed}
        note = self._hooks.continuation(pruned, full.shape[1])
        try:
            if takes:
                output = generate(**{**rest, **features_form(pruned), **changed})
            else:
                shown = generating.stand_ins(self._target, call, pruned.inputs["input_ids"])
                with self._hooks.expecting(pruned):
                    output = generate(**{**rest, **pruned.inputs, **shown, **changed})
        finally:
            if cache is not None:  # the caller has it, whatever is returned
                continuation.remember(cache, note)
        return _restored(output, full, pruned, note)


def refuse_pruned(model: Any) -> None:
    """Raise if `model` is being pruned by a handle."""
    if _HANDLE in vars(model):
        raise AlreadyPrunedError(
            f"prune: model must not be pruned already, got {vars(model)[_HANDLE]!r}; "
            f"leave its block or call its remove() first"
        )


def _named(
    model: Any, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call of `generate` by their names."""
    signature = inspect.signature(generate)
    if any(one.kind is one.VAR_POSITIONAL for one in signature.parameters.values()):
        # One of the user's own that passes on what it is given.
        signature = inspect.signature(functools.partial(type(model).generate, model))
    named = signature.bind(*args, **kwargs).arguments
    for one in signature.parameters.values():
        if one.kind is one.VAR_KEYWORD:
            named.update(named.pop(one.name, {}))
    return named


def _restored(output: Any, full: Tensor, pruned: Pruned, note: continuation.Continuation) -> Any:
    """The output with the unpruned prompt in front of what was generated."""
    if isinstance(output, Tensor):
        return pruned.restore(full, output)
    output.sequences = pruned.restore(full, output.sequences)
    cache = continuation.cache_in(output)
    if cache is not None:
        continuation.remember(cache, note)
    return output
