# SPDX-License-Identifier: Apache-2.0
"""One attention layer of a vision tower, watched from outside.

The layer goes on with SDPA or FlashAttention, which keep no attention. Hooks note the outputs of
its projections, and the attention of the rows that are wanted is the softmax of their products.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Note = Callable[[str, Tensor], None]
# Logits made at a time: 128 MiB of float32, however large a picture is.
_LOGITS = 1 << 25


class Rows(NamedTuple):
    """What attention sees of one picture.

    Attributes:
        queries: float32 `[n, heads, d]`, of its patches.
        keys: likewise; several heads of queries may share a head of keys.
        real: bool, which rows of the tower these are, the others being padding; None: all.
    """

    queries: Tensor
    keys: Tensor
    real: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Separate:
    """A layer that sees a batch of pictures of one size, perhaps with padding.

    In every kind of layer `watch` makes the hooks, which note the values of `names`.

    Attributes:
        module: the layer's attention.
        tower: that it is of.
        other: the same layer of a tower for videos (Video-LLaVA).
        cls: the first patch is a [CLS] token, which becomes no visual token.
        mask: the tower's argument that is not 0 at patches, and 0 at padding; "": there is none.
    """

    module: Any
    tower: Any
    other: Any = None
    cls: bool = False
    mask: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What `rows` takes."""
        return ("queries", "keys", *(["mask"] if self.mask else []))

    def watch(self, note: Note) -> list[RemovableHandle]:
        """Hooks that `note` what `rows` takes."""
        modules = [module for module in (self.module, self.other) if module is not None]
        handles = [handle for module in modules for handle in _projections(module, note)]
        if self.mask:
            handles.append(_before(self.tower, lambda named: note("mask", named[self.mask])))
        return handles

    def rows(self, noted: Mapping[str, Tensor]) -> Iterator[Rows]:
        """Of one picture after the other."""
        shape = (-1, self.module.head_dim)
        queries, keys = (noted[x].unflatten(-1, shape).float() for x in ("queries", "keys"))
        if not self.mask:
            yield from map(Rows, queries, keys)
            return
        for query, key, mask in zip(queries, keys, noted["mask"].flatten(1), strict=True):
            real = mask != 0
            yield Rows(query[real], key[real], real)


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer that sees pictures and frames in a row, each by itself, and turns their rows.

    Attributes:
        module: the layer's attention; the tower has no [CLS] token.
        tower: that it is of.
        turn: the function beside the attention's class that turns queries and keys.
        sizes: the tower's argument with rows and columns of pixels of each picture; "": the layer
            is given the borders.
    """

    module: Any
    tower: Any
    turn: str = "apply_rotary_pos_emb_vision"
    sizes: str = ""
    cls: ClassVar = False
    names: ClassVar = ("borders", "cos", "sin", "queries", "keys")

    def watch(self, note: Note) -> list[RemovableHandle]:
        """Hooks that `note` what `rows` takes."""

        def measure(named: Mapping[str, Any]) -> None:
            patches = (torch.as_tensor(named[self.sizes]) // self.tower.patch_size).prod(-1)
            note("borders", nn.functional.pad(patches.cumsum(0), (1, 0)))

        def turning(named: Mapping[str, Any]) -> None:
            if not self.sizes:
                note("borders", named["cu_seqlens"])
            for name, turned in zip(("cos", "sin"), named["position_embeddings"], strict=True):
                note(name, turned)

        handles = [*_projections(self.module, note), _before(self.module, turning)]
        return [_before(self.tower, measure), *handles] if self.sizes else handles

    def rows(self, noted: Mapping[str, Tensor]) -> Iterator[Rows]:
        """Likewise; a frame of a video is a picture. Both are turned, as attention sees them."""
        sizes = noted["borders"].diff().tolist()
        shape = (sum(sizes), -1, self.module.head_dim)
        apart = (noted[x].reshape(shape) for x in ("queries", "keys"))
        turned = _beside(self.module, self.turn)(*apart, noted["cos"], noted["sin"])
        yield from map(Rows, *(one.float().split(sizes) for one in turned))


@dataclass(frozen=True, eq=False)
class Placed:
    """A layer of Gemma 4's tower: padded lists of patches, which are turned by where they are.

    Attributes:
        module: the layer's attention; the tower has no [CLS] token.
        tower: that it is of.
    """

    module: Any
    tower: Any
    cls: ClassVar = False
    names: ClassVar = ("places", "cos", "sin", "queries", "keys")

    def watch(self, note: Note) -> list[RemovableHandle]:
        """Hooks that `note` what `rows` takes."""

        def turning(named: Mapping[str, Any]) -> None:
            note("places", named["position_ids"])
            for name, turned in zip(("cos", "sin"), named["position_embeddings"], strict=True):
                note(name, turned)

        return [*_projections(self.module, note), _before(self.module, turning)]

    def rows(self, noted: Mapping[str, Tensor]) -> Iterator[Rows]:
        """Likewise, each picture row by row; what has no place is padding."""
        turn, places = _beside(self.module, "apply_multidimensional_rope"), noted["places"]
        queries, keys = (
            turn(noted[x], noted["cos"], noted["sin"], places).float() for x in ("queries", "keys")
        )
        for query, key, place in zip(queries, keys, places, strict=True):
            column, row = place.unbind(-1)
            real = (row * len(row) + column).argsort()[int((column < 0).sum()) :]
            yield Rows(query[real], key[real])


Layer = Separate | Packed | Placed


def _projections(module: Any, note: Note) -> list[RemovableHandle]:
    """Hooks that note queries and keys, normalised where they are: of one projection or two."""

    def hook(name: str) -> Any:
        return lambda module, args, output: note(name, output)

    def split(module: nn.Module, args: Any, output: Tensor) -> None:
        queries, keys, _ = output.chunk(3, dim=-1)
        note("queries", queries)
        note("keys", keys)

    if hasattr(module, "qkv"):
        return [module.qkv.register_forward_hook(split)]
    last = next(x for x in ("_norm", "_proj", "") if hasattr(module, f"q{x}"))
    return [
        module.get_submodule(f"{name[0]}{last}").register_forward_hook(hook(name))
        for name in ("queries", "keys")
    ]


def _before(module: nn.Module, note: Callable[[Mapping[str, Any]], None]) -> RemovableHandle:
    """A hook that is given the named arguments of `module`."""
    return module.register_forward_pre_hook(lambda _, args, named: note(named), with_kwargs=True)


def _beside(module: nn.Module, name: str) -> Any:
    """A function of the file of a module's class."""
    return getattr(sys.modules[type(module).__module__], name)


def scale_of(module: Any) -> float:
    """Of the logits of an attention."""
    return float(module.scaling if hasattr(module, "scaling") else module.scale)


def received(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Attention `[n]` that each key `[n, heads, d]` gets, mean over queries `[m, heads, d]`."""
    n, heads = len(keys), queries.shape[1]
    if keys.shape[1] < heads:
        keys = keys.repeat_interleave(heads // keys.shape[1], dim=1)
    across = keys.permute(1, 2, 0).contiguous()  # [heads, d, n]
    total = keys.new_zeros(n)
    step = max(1, _LOGITS // max(1, n * heads))
    for some in queries.mul(scale).transpose(0, 1).split(step, dim=1):
        total += torch.matmul(some, across).softmax(-1).sum((0, 1))
    return total / (len(queries) * heads)
