# SPDX-License-Identifier: Apache-2.0
"""One attention layer of a vision tower, watched from outside.

The layer goes on with SDPA or FlashAttention, which keep no attention. Hooks note the outputs of
its projections, and the attention of the rows that are wanted is the softmax of their products.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Note = Callable[[str, Tensor], None]
# Logits made at a time: 128 MiB of float32, however large a picture is.
_LOGITS = 1 << 25


@dataclass(frozen=True, eq=False)
class Separate:
    """A layer of CLIP, SigLIP or InternVL: a projection each, a batch of pictures of one size.

    In both kinds of layer `watch` makes the hooks, which note the values of `names`.

    Attributes:
        module: the layer's attention.
        cls: the first patch is a [CLS] token, which becomes no visual token.
        other: the same layer of a tower for videos (Video-LLaVA).
    """

    module: Any
    cls: bool
    other: Any = None
    names: ClassVar = ("q", "k")

    def watch(self, note: Note) -> list[RemovableHandle]:
        """Hooks that `note` what `heads` takes."""

        def hook(name: str) -> Any:
            return lambda module, args, output: note(name, output)

        # InternVL's projections may be normalised.
        last = "norm" if hasattr(self.module, "q_norm") else "proj"
        return [
            module.get_submodule(f"{name}_{last}").register_forward_hook(hook(name))
            for module in (self.module, self.other)
            if module is not None
            for name in self.names
        ]

    def heads(self, noted: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Queries and keys of one picture after the other, float32 `[patches, heads, d]`."""
        heads = (self.module.num_heads, -1)
        return zip(*(noted[x].unflatten(-1, heads).float() for x in self.names), strict=True)

    @property
    def scale(self) -> float:
        """Of the logits."""
        return float(self.module.scale)


@dataclass(frozen=True, eq=False)
class Fused:
    """A layer of Qwen-VL's or GLM-V's tower: pictures and frames in a row, rotary.

    One projection makes queries, keys and values; Qwen2.5-Omni has one for each.

    Attributes:
        module: the layer's attention; the tower has no [CLS] token.
    """

    module: Any
    cls: ClassVar = False
    names: ClassVar = ("borders", "cos", "sin", "queries", "keys")

    def watch(self, note: Note) -> list[RemovableHandle]:
        """Hooks that `note` what `heads` takes."""

        def before(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
            note("borders", named["cu_seqlens"])
            for name, turned in zip(("cos", "sin"), named["position_embeddings"], strict=True):
                note(name, turned)

        heads = (self.module.num_heads, -1)

        def hook(name: str) -> Any:
            return lambda module, args, out: note(name, out.unflatten(-1, heads))

        def split(module: nn.Module, args: Any, out: Tensor) -> None:
            queries, keys, _ = out.unflatten(-1, (3, *heads)).unbind(1)
            note("queries", queries)
            note("keys", keys)

        if hasattr(self.module, "qkv"):
            hooks = [self.module.qkv.register_forward_hook(split)]
        else:
            parts = {"queries": self.module.q, "keys": self.module.k}
            hooks = [part.register_forward_hook(hook(name)) for name, part in parts.items()]
        return [self.module.register_forward_pre_hook(before, with_kwargs=True), *hooks]

    def heads(self, noted: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Likewise; a frame of a video is a picture. Both are turned, as attention sees them."""
        turn = sys.modules[type(self.module).__module__].apply_rotary_pos_emb_vision
        turned = turn(noted["queries"], noted["keys"], noted["cos"], noted["sin"])
        sizes = noted["borders"].diff().tolist()
        return zip(*(one.float().split(sizes) for one in turned), strict=True)

    @property
    def scale(self) -> float:
        """Of the logits."""
        return float(self.module.scaling)


Layer = Separate | Fused


def received(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Attention `[n]` that each key `[n, heads, d]` gets, mean over queries `[m, heads, d]`."""
    n, heads, _ = keys.shape
    across = keys.permute(1, 2, 0).contiguous()  # [heads, d, n]
    total = keys.new_zeros(n)
    for some in queries.mul(scale).transpose(0, 1).split(max(1, _LOGITS // (n * heads)), dim=1):
        total += torch.matmul(some, across).softmax(-1).sum((0, 1))
    return total / (len(queries) * heads)
