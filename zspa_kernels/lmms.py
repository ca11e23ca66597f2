# SPDX-License-Identifier: Apache-2.0
r"""Models of lmms-eval with pruning: how accuracy is measured by whoever has weights and data.

lmms-eval finds `manifests` by the entry point `lmms_eval.models`. A model `zspa_X` is its own model
X, loaded, prompted and scored as always; only `generate` prunes. Beside the arguments of X,
`--model_args` takes `method`, `keep` and other options of the method, `scope` and `positions`::

    lmms-eval --model zspa_llava_hf --tasks gqa,mme --batch_size 1 \
        --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=divprune,keep=64
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from typing import Any

from . import methods
from .hf import prune
from .hf.options import Options

_log = logging.getLogger(__name__)

#: By the name of lmms-eval's model: its class, and which kinds of it there are.
STOCK = {
    "llava_hf": ("LlavaHf", ("simple", "chat")),  # LLaVA-1.5, LLaVA-NeXT and LLaVA-OneVision
    "qwen2_vl": ("Qwen2_VL", ("simple",)),
    "qwen2_5_vl": ("Qwen2_5_VL", ("simple", "chat")),
    "qwen3_vl": ("Qwen3_VL", ("simple", "chat")),
    "qwen3_5": ("Qwen3_5", ("simple", "chat")),
    "internvl_hf": ("InternVLHf", ("chat",)),
    "gemma3": ("Gemma3", ("simple",)),
    "gemma4": ("Gemma4", ("simple",)),
    "lfm2_5_vl": ("LFM2_5_VL", ("chat",)),
    "huggingface": ("Huggingface", ("chat",)),  # any model of transformers
}
#: How a model is pruned, beside the options of the method.
_PRUNING = ("scope", "positions", "keep_newline", "merge")


def manifests() -> list[Any]:
    """What lmms-eval registers: `zspa_llava_hf` and so on, for each of `STOCK`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(
            model_id=f"zspa_{name}",
            **{f"{kind}_class_path": f"{__name__}.{kind}_{name}" for kind in kinds},
        )
        for name, (_, kinds) in STOCK.items()
    ]


def __getattr__(name: str) -> Any:
    """`simple_X` and `chat_X`: lmms-eval's class X with pruning, made when it is asked for."""
    kind, _, model = name.partition("_")
    if model not in STOCK or kind not in STOCK[model][1]:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _pruned(kind, model)


@functools.cache
def _pruned(kind: str, model: str) -> type:
    module = importlib.import_module(f"lmms_eval.models.{kind}.{model}")
    return with_pruning(getattr(module, STOCK[model][0]))


def with_pruning(stock: type) -> type:
    """A class of lmms-eval's that prunes what its `model` is asked.

    Its constructor takes `method` and the options of that, `scope`, `positions`, `keep_newline` and
    `merge`; everything else is the stock class's. What was pruned is logged at the end of a task.

    Args:
        stock: has the model as `model`, and `generate_until`.
    """

    def __init__(self: Any, *args: Any, method: str = "zspaprune", **arguments: Any) -> None:  # noqa: N807
        chooser, how = _options(method, arguments)
        stock.__init__(self, *args, **arguments)  # type: ignore[misc]
        self.pruning = prune(self.model, chooser, processor=_renderer(self), **how).install()

    def generate_until(self: Any, requests: Any) -> Any:
        before = (self.pruning.calls, self.pruning.before, self.pruning.after)
        answers = stock.generate_until(self, requests)  # type: ignore[attr-defined]
        after = (self.pruning.calls, self.pruning.before, self.pruning.after)
        calls, tokens, kept = (b - a for a, b in zip(before, after, strict=True))
        _log.warning(
            "%s: %d requests, %d pruned prompts, %d -> %d visual tokens",
            self.pruning,
            len(requests),
            calls,
            tokens,
            kept,
        )
        if tokens == kept:
            # Stock models turn an error of `generate` into an empty answer, and lmms-eval silences
            # warnings.
            _log.error("nothing was pruned in %d requests", len(requests))
        return answers

    members = {"__init__": __init__, "generate_until": generate_until, "__doc__": stock.__doc__}
    return type(f"Zspa{stock.__name__}", (stock,), {**members, "__module__": __name__})


def _renderer(model: Any) -> Any:
    """Whose chat template made the prompts: by it the question is told apart from the rest.

    The simple LLaVA class uses the tokenizer's, to which it gives one where there is none.
    """
    if hasattr(model, "processor"):
        return model.processor
    return model._tokenizer if model.is_simple else model._image_processor


def _options(method: str, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Takes what is ours out of `arguments`: the method, and how it prunes.

    Raises:
        ValueError, TypeError: no method has this name, or an option is out of range; before
            anything is loaded.
    """
    arguments.setdefault("keep", 0.1)
    make = type(methods.get(method, keep=arguments["keep"]))
    names = [name for name in inspect.signature(make).parameters if name != "projector"]
    ours = {name: arguments.pop(name) for name in names if name in arguments}
    how = {name: arguments.pop(name) for name in _PRUNING if name in arguments}
    chooser = methods.get(method, **ours)
    Options(**how).merges(chooser)
    return chooser, how
