# SPDX-License-Identifier: Apache-2.0
"""What was pruned, image by image, and what it saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .architectures import Target
from .layout import Layout
from .select import Choice


@dataclass(frozen=True, eq=False)
class ImageReport:
    """What was kept of one image, or of one video.

    Attributes:
        sample: which prompt of the batch it belongs to.
        before: its visual tokens.
        indices: int64 `[after]`, ascending: the kept ones, counted from the image's first token.
        core_mask: bool `[after]`: True where chosen for relevance to the prompt.
        cell: int64 `[before, 3]`: tile, row and column of every token in the picture as the model
            saw it; -1 as tile for newline tokens (LLaVA-NeXT). For a video the tile is the time.
        video: it is a video.
    """

    sample: int
    before: int
    indices: Tensor
    core_mask: Tensor
    cell: Tensor
    video: bool = False

    @property
    def after(self) -> int:
        """How many tokens are kept."""
        return len(self.indices)

    @property
    def core(self) -> int:
        """How many of them for relevance."""
        return int(self.core_mask.sum())

    @property
    def diverse(self) -> int:
        """How many of them for diversity, and those kept in addition: newlines, a last token."""
        return self.after - self.core


@dataclass(frozen=True, eq=False)
class PruneReport:
    """What one call pruned: a batch of prompts with their images.

    Attributes:
        method: the method, as it prints.
        images: in the order of the prompts.
        prompt_before: tokens of each unpruned prompt, without padding.
        prompt_after: tokens of each pruned prompt, without padding.
        query_tokens: words of each prompt against which relevance was measured; 0: there were
            none, and its images were pruned by diversity.
        kv_bytes_before: keys and values of all layers for the unpruned batch, padding included,
            without the states of layers that have no keys (Qwen3.5).
        kv_bytes_after: for the pruned batch.
        scope: what shares a budget.
        positions: `"original"` or `"compact"`.
        route: how the model was given the pruned prompt: `"inputs"` or `"hooks"`.
        merged: dropped tokens are part of kept ones, as the method assigned them.
        select_ms: time the method took, for all images together.
    """

    method: str
    images: list[ImageReport] = field(default_factory=list)
    prompt_before: list[int] = field(default_factory=list)
    prompt_after: list[int] = field(default_factory=list)
    query_tokens: list[int] = field(default_factory=list)
    kv_bytes_before: int = 0
    kv_bytes_after: int = 0
    scope: str = "image"
    positions: str = "original"
    route: str = "inputs"
    merged: bool = False
    select_ms: float = 0.0

    @property
    def before(self) -> int:
        """Visual tokens of all images."""
        return sum(image.before for image in self.images)

    @property
    def after(self) -> int:
        """Kept visual tokens of all images."""
        return sum(image.after for image in self.images)

    @property
    def core(self) -> int:
        """Kept for relevance, in all images."""
        return sum(image.core for image in self.images)

    def __str__(self) -> str:
        if not self.images:
            return f"{self.method}: no image, nothing pruned"
        videos = sum(image.video for image in self.images)
        counts = ((len(self.images) - videos, "image"), (videos, "video"))
        shown = [f"{count} {name}{'s' * (count > 1)}" for count, name in counts if count]
        mib = 2.0**-20
        merged = ", the others merged into them" if self.merged else ""
        return (
            f"{self.method}: {' and '.join(shown)}, "
            f"{self.before} -> {self.after} visual tokens ({self.core} core{merged}), "
            f"prompt {sum(self.prompt_before)} -> {sum(self.prompt_after)}, "
            f"KV {self.kv_bytes_before * mib:.3g} -> {self.kv_bytes_after * mib:.3g} MiB, "
            f"{self.positions} positions, selected in {self.select_ms:.2g} ms"
        )

    def to_json(self, indent: int | None = None) -> str:
        """Everything as JSON: tensors as lists, images with their counts."""
        counts = ("before", "after", "core", "diverse")
        everything = {
            **vars(self),
            "images": [
                {**{name: getattr(image, name) for name in counts}, **vars(image)}
                for image in self.images
            ],
        }
        return json.dumps(everything, default=Tensor.tolist, indent=indent)


def kv_bytes(target: Target, batch: int, length: int) -> int:
    """Bytes of keys and values for `length` tokens a prompt.

    Sliding layers hold a window, layers with a state none.
    """
    config = target.model.config.get_text_config()
    # Without layer_types (Mistral) the window is that of all layers, as for transformers' caches.
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    # The last layers of Gemma 4 may read what earlier ones cache.
    own = len(kinds) - (getattr(config, "num_kv_shared_layers", None) or 0)
    if getattr(config, "is_heterogeneous", False):  # since 5.17; its layers differ in heads
        layers = [(kind, 1, config.per_layer_config[i]) for i, kind in enumerate(kinds[:own])]
    else:
        layers = [(kind, count, config) for kind, count in Counter(kinds[:own]).items()]
    size = 0
    for kind, count, layer in layers:
        if kind in ("linear_attention", "conv"):
            continue
        heads = getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads
        width = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
        window = getattr(layer, "sliding_window", None) if kind.startswith("sliding") else None
        # The token that is read next has the last slot of a window.
        size += count * heads * width * (length if window is None else min(length, window - 1))
    return 2 * batch * size * torch.finfo(target.model.dtype).bits // 8


def lengths(inputs: Mapping[str, Any]) -> list[int]:
    """Tokens of each prompt, without padding."""
    mask = inputs.get("attention_mask")
    ids = inputs["input_ids"]
    counts: list[int] = (torch.ones_like(ids) if mask is None else mask).sum(1).tolist()
    return counts


def describe(
    target: Target,
    where: Layout,
    chosen: Choice,
    inputs: Mapping[str, Any],
    index: Tensor,
    mask: Tensor,
) -> PruneReport:
    """The report, image by image."""
    images = []
    for number in torch.unique_consecutive(where.image).tolist():
        rows = (where.image == number).nonzero().flatten()
        kept = chosen.kept[rows].nonzero().flatten()
        images.append(
            ImageReport(
                sample=int(where.sample[rows[0]]),
                before=len(rows),
                indices=kept,
                core_mask=chosen.core[rows[kept]],
                cell=where.cell[rows],
                video=bool(where.video[rows[0]]),
            )
        )
    batch, length = inputs["input_ids"].shape
    return PruneReport(
        "",
        images,
        prompt_before=lengths(inputs),
        prompt_after=mask.sum(1).tolist(),
        kv_bytes_before=kv_bytes(target, batch, length),
        kv_bytes_after=kv_bytes(target, batch, index.shape[1]),
        select_ms=chosen.milliseconds,
    )
