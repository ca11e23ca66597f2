# SPDX-License-Identifier: Apache-2.0
"""Prune the visual tokens of models that vLLM serves.

vLLM finds `register` by the entry point `vllm.general_plugins`. It adds an architecture `ZspaX`
beside each supported architecture X of vLLM's and changes none, so nothing is pruned until a server
is told to load one of them: `LLM(model, hf_overrides=overrides(keep=0.1))`, or as JSON on the
command line. See docs/vllm.md.

Example:
    >>> from transformers import LlavaConfig
    >>> config = LlavaConfig(architectures=["LlavaForConditionalGeneration"])
    >>> config = overrides("divprune", keep=0.1)(config)
    >>> config.architectures, config.zspa
    (['ZspaLlavaForConditionalGeneration'], {'method': 'divprune', 'keep': 0.1})
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..hf.errors import UnsupportedModelError
from .options import KEY, METHOD, SHARE, Options

__all__ = ["ARCHITECTURES", "Overrides", "overrides", "register"]

#: What vLLM can prune, as a model's configuration calls it.
ARCHITECTURES = (
    "Cohere2VisionForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
    "Glm4vForConditionalGeneration",
    "Glm4vMoeForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "InternVLChatModel",
    "InternVLForConditionalGeneration",
    "Lfm2VlForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)


def register() -> None:
    """Tells vLLM of the pruned models. vLLM calls this in each of its processes.

    A vLLM that it does not know is left alone, with a warning: its own models are not to fail.
    """
    try:
        from vllm.model_executor.models import ModelRegistry
        from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    except ImportError as error:
        log = logging.getLogger("vllm.zspa_kernels")  # vLLM shows what loggers below its own say
        log.warning("zspa_kernels is for vLLM 0.31 and newer, and prunes no model: %s", error)
        return
    for name in ARCHITECTURES:
        ModelRegistry.register_model(f"Zspa{name}", f"{__name__}.models:Zspa{name}")
        if name in MODELS_CONFIG_MAP:  # what vLLM sets for a model, by its name
            MODELS_CONFIG_MAP[f"Zspa{name}"] = MODELS_CONFIG_MAP[name]


@dataclass(frozen=True)
class Overrides:
    """What `overrides` returns: changes a model's configuration so that vLLM prunes the model."""

    options: Mapping[str, Any]

    def __call__(self, config: Any) -> Any:
        """The configuration, changed.

        Raises:
            UnsupportedModelError: the architecture is none of `ARCHITECTURES`.
        """
        names = [name for name in config.architectures or () if name]
        if not names:  # vLLM asks first what happens to one that says nothing
            return config
        for name in names:
            if name not in ARCHITECTURES:
                known = ", ".join(ARCHITECTURES)
                raise UnsupportedModelError(f"vllm: model must be one of {known}, got {name}")
        config.architectures = [f"Zspa{name}" for name in names]
        setattr(config, KEY, dict(self.options))
        return config


def overrides(method: str = METHOD, *, keep: float = SHARE, **options: Any) -> Overrides:
    """`hf_overrides` for vLLM's `LLM` and `EngineArgs`, with which a model is pruned.

    Args:
        method: name of a method that chooses by tokens and words; see `methods.available`.
        keep: share of each picture's tokens in (0, 1], or a count.
        options: other options of the method, such as `core_ratio`; and `query`, what relevance is
            measured against: `"question"`, `"all"` words of the prompt, or a text.

    Raises:
        TypeError, ValueError: no method has this name, or an option is unknown or out of range.
        UnsupportedMethodError: the method needs more than tokens and words.
    """
    given = {"method": method, "keep": keep, **options}
    Options.read(given)
    return Overrides(given)
