# SPDX-License-Identifier: Apache-2.0
"""What a server was told to prune with, and what one request asks for instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import api, methods
from .._contract import values as _values
from ..hf.errors import UnsupportedMethodError

#: The key of the options in `hf_overrides` and in `mm_processor_kwargs`.
KEY = "zspa"
#: Method and share of a server that names none.
METHOD, SHARE = "zspaprune", 0.1
_OF_A_REQUEST = ("keep", "query")
#: What an encoder in vLLM has at hand for a method, by the name of the method's input.
_GIVEN = ("visual", "prompt")


@dataclass(frozen=True)
class Options:
    """How pictures are pruned.

    Attributes:
        method: as `methods.get` makes it.
        query: `"question"`, `"all"` (every word of the prompt) or a text: what relevance is
            measured against.
    """

    method: Any
    query: str = "question"

    @classmethod
    def of(cls, config: Any) -> Options:
        """The options that `hf_overrides` put into a model's configuration; see `read`."""
        return cls.read(getattr(config, KEY, None))

    @classmethod
    def read(cls, given: Any) -> Options:
        """Options from a dict.

        Raises:
            TypeError, ValueError: it is none, or an option is unknown or out of range.
            UnsupportedMethodError: the method needs more than tokens and words.
        """
        if not isinstance(given, Mapping):
            raise TypeError(
                f'vllm: hf_overrides must have a "{KEY}", such as {{"method": "divprune", '
                f'"keep": 0.1}}, got {given!r:.60}'
            )
        options = dict(given)
        query = _query(options.pop("query", "question"))
        method = methods.get(options.pop("method", METHOD), **{"keep": SHARE, **options})
        return cls(_served(method), query)

    @property
    def reads(self) -> bool:
        """Whether the method wants the words of the prompt."""
        return any(one.name == "prompt" for one in self.method.model_inputs)

    def asked(self, request: Any) -> Options:
        """These options with those of one request, `{"keep": 0.2, "query": "what colour"}`.

        Raises:
            TypeError, ValueError: an option is unknown or out of range.
        """
        if request is None:
            return self
        if not isinstance(request, Mapping):
            raise TypeError(f'vllm: "{KEY}" of a request must be a dict, got {request!r:.60}')
        for name in request:
            if name not in _OF_A_REQUEST:
                known = ", ".join(_OF_A_REQUEST)
                raise ValueError(f'vllm: "{KEY}" of a request may have {known}, got {name!r}')
        keep = _values.share_or_count("vllm", "keep", request.get("keep", self.method.keep))
        if isinstance(keep, int):
            keep = _values.integer("vllm", "keep", keep)  # more do not fit in a tensor
        return replace(self.keeping(keep), query=_query(request.get("query", self.query)))

    def keeping(self, keep: float) -> Options:
        """These options with another share, or count."""
        return replace(self, method=replace(self.method, keep=keep))

    def count(self, tokens: int) -> int:
        """How many of a picture's tokens are kept."""
        rounding = getattr(self.method, "rounding", "round")
        return api.num_keep(tokens, self.method.keep, rounding)


def kept(method: Any, visual: list[Tensor], prompt: list[Tensor] | None) -> list[Tensor]:
    """Which tokens of each picture stay: int64 `[k]`, ascending, k the method's `keep`, a count.

    Where a method chooses fewer, as it does among tokens that are not finite, the first of the
    others fill up: the prompt has room for k, whatever the tokens are.
    """
    chosen = method.select_varlen(visual, prompt)
    return [
        _filled(one.indices, len(tokens), method.keep)
        for one, tokens in zip(chosen, visual, strict=True)
    ]


def _filled(indices: Tensor, tokens: int, count: int) -> Tensor:
    left = torch.ones(tokens + 1, dtype=torch.int8, device=indices.device)
    left[indices.where(indices >= 0, tokens)] = 0  # the last one stands for "no token"
    return left[:tokens].argsort(stable=True)[:count].sort().values


def _served(method: Any) -> Any:
    """The method, if tokens and words are all it needs, and `keep` says how many it keeps."""
    whole = isinstance(method, methods.MethodBase) and is_dataclass(type(method))
    if not (whole and hasattr(method, "keep")):
        raise UnsupportedMethodError(
            "vllm: method must be a dataclass with `keep` that derives from MethodBase, got "
            f"{method!r:.60}"
        )
    if hasattr(method, "assign"):
        raise UnsupportedMethodError(
            f"vllm: method must drop tokens, got {method!r}, which merges them"
        )
    wanted = [one for one in method.model_inputs if one.required and one.name not in _GIVEN]
    if method.needs_features or wanted:
        needs = f"{wanted[0].name} ({wanted[0].source})" if wanted else "the projector's inputs"
        raise UnsupportedMethodError(
            f"vllm: method must choose by tokens and words, got {method!r}, which needs {needs}"
        )
    return method


def _query(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"vllm: query must be a text, got {value!r:.60}")
    return value
