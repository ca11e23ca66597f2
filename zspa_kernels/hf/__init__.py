# SPDX-License-Identifier: Apache-2.0
"""Prune the visual tokens of transformers models (extra `hf`).

Two ways, one core: `prune_inputs` makes a processor's output shorter and touches nothing else;
`with method(model):` lets the model's own `generate` do that, and returns whole prompts.

Example:
    A tiny LLaVA with random weights; token 9 of its vocabulary stands for a piece of a picture.

    >>> import torch, transformers, zspa_kernels as zk
    >>> small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    >>> vision = transformers.CLIPVisionConfig(
    ...     **small, num_attention_heads=2, image_size=56, patch_size=14
    ... )
    >>> text = transformers.LlamaConfig(**small, num_attention_heads=2, vocab_size=10)
    >>> model = transformers.LlavaForConditionalGeneration(
    ...     transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=9)
    ... )
    >>> inputs = {
    ...     "input_ids": torch.tensor([[1, *[9] * 16, 3, 4, 5]]),
    ...     "attention_mask": torch.ones(1, 20, dtype=torch.long),
    ...     "pixel_values": torch.rand(1, 3, 56, 56),
    ... }
    >>> with zk.ZSPAPrune(keep=0.25)(model) as handle:
    ...     sequences = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2)
    >>> sequences.shape, handle.report.prompt_before, handle.report.prompt_after
    (torch.Size([1, 22]), [20], [8])
"""

from .chat import ChatState
from .errors import (
    AlreadyPrunedError,
    CachedPromptError,
    ChunkedPrefillError,
    LabelsError,
    NothingPrunedWarning,
    PlaceholderMismatchError,
    PruningError,
    UnsupportedInputError,
    UnsupportedMethodError,
    UnsupportedModelError,
)
from .handle import PruneHandle, prune
from .inputs import PrunedInputs, prune_inputs
from .report import ImageReport, PruneReport

__all__ = [
    "AlreadyPrunedError",
    "CachedPromptError",
    "ChatState",
    "ChunkedPrefillError",
    "ImageReport",
    "LabelsError",
    "NothingPrunedWarning",
    "PlaceholderMismatchError",
    "PruneHandle",
    "PruneReport",
    "PrunedInputs",
    "PruningError",
    "UnsupportedInputError",
    "UnsupportedMethodError",
    "UnsupportedModelError",
    "prune",
    "prune_inputs",
]
