# SPDX-License-Identifier: Apache-2.0
"""From visual tokens and words to the kept tokens: one ragged call of the method."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import Selection, select_each
from .architectures import Target
from .encode import Encoded
from .errors import UnsupportedModelError
from .layout import Layout, anyres_tiles, pack_anyres


@dataclass(frozen=True, eq=False)
class Choice:
    """What a method chose among the T visual tokens of a batch; bool `[T]` on the host."""

    kept: Tensor
    core: Tensor
    milliseconds: float


def choose(
    method: Any,
    encoded: Encoded,
    where: Layout,
    words: Sequence[Tensor],
    scope: str,
    keep_newline: bool,
    ratings: Tensor | None,
) -> Choice:
    """Let `method` select in every group of tokens that shares a budget.

    Args:
        method: has `select_varlen`, see `zspa_kernels.MethodBase`; or `select` alone.
        encoded: the tokens.
        where: which token belongs to which image.
        words: text embeddings of each prompt.
        scope: what shares a budget.
        keep_newline: newline tokens are kept in addition, and not chosen among.
        ratings: of every token, for a method that needs them.
    """
    free = where.newline if keep_newline else torch.zeros_like(where.newline)
    rows = torch.nonzero(~free).flatten()
    label = where.groups(scope)[rows]
    order = label.argsort(stable=True)  # a sample's images, an image's tiles: mostly in order
    rows, label = rows[order], label[order]
    sizes = torch.unique_consecutive(label, return_counts=True)[1].tolist()
    groups = list(rows.split(sizes))
    device = encoded.tokens.device
    tokens = encoded.tokens.detach()
    visual = list(tokens[rows.to(device)].split(sizes))
    prompt = [words[int(where.sample[group[0]])].to(device) for group in groups]
    given = {} if ratings is None else {"ratings": list(ratings[rows.to(device)].split(sizes))}
    clock = _Clock(device)
    ragged = getattr(method, "select_varlen", functools.partial(select_each, method))
    picked: list[Selection] = ragged(visual, prompt, **given)
    taken = clock.stop()
    kept, core = free.clone(), torch.zeros_like(free)
    # One copy to the host for all of them.
    flat = torch.stack(
        (
            torch.cat([one.indices for one in picked]),
            torch.cat([one.core_mask for one in picked]).long(),
        )
    ).cpu()
    lengths = [len(one.indices) for one in picked]
    for group, pair in zip(groups, flat.split(lengths, dim=1), strict=True):
        indices, in_core = pair[0], pair[1].bool()
        chosen = indices >= 0
        kept[group[indices[chosen]]] = True
        core[group[indices[chosen & in_core]]] = True
    return Choice(kept, core, taken() if callable(taken) else taken)


class _Clock:
    """Wall time on the CPU, time between two events on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.events = None
        if device.type == "cuda":
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.events[0].record()
        self.start = time.perf_counter()

    def stop(self) -> Any:
        """The milliseconds; on a GPU a function that gives them once the work is done."""
        if self.events is None:
            return 1e3 * (time.perf_counter() - self.start)
        self.events[1].record()
        return lambda: self.events[0].elapsed_time(self.events[1])


def rate(method: Any, target: Target, inputs: Mapping[str, Any], encoded: Encoded) -> Tensor | None:
    """Ratings `[T]` by what the projector was given, in the order of the visual tokens."""
    if encoded.features is None:
        return None
    with torch.no_grad():
        ratings: Tensor = method.rate(encoded.features)
    if target.arch.tile == "anyres":
        counts = [tiles for tiles, _ in anyres_tiles(target, inputs)]
        pictures = [part[..., None].cpu() for part in ratings.split(counts)]
        packed = pack_anyres(target, inputs, pictures, torch.nan)  # NaN: a newline is never chosen
        ratings = torch.cat(packed).to(encoded.tokens.device)
    elif hasattr(getattr(target.inner, "visual", None), "window_size"):
        ratings = ratings[_window_order(target, inputs).argsort()]
    flat = ratings.flatten()
    if len(flat) != len(encoded.tokens):
        raise UnsupportedModelError(
            f"prune: method must rate every visual token, {len(encoded.tokens)}, got {len(flat)} "
            f"ratings from the inputs of {target.arch.projector}"
        )
    return flat


def _window_order(target: Target, inputs: Mapping[str, Any]) -> Tensor:
    """Qwen2.5-VL's projector sees the tokens window by window: which token each of its rows is."""
    visual, grid = target.inner.visual, inputs["image_grid_thw"]
    if hasattr(visual, "get_window_index"):
        order = visual.get_window_index(grid)[0]
    else:
        index = target.module_attribute("get_vision_window_index")
        order = index(grid, visual.spatial_merge_size, visual.window_size, visual.patch_size)[0]
    return torch.as_tensor(order, device=grid.device)
