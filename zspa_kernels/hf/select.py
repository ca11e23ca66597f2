# SPDX-License-Identifier: Apache-2.0
"""From visual tokens and words to the kept tokens: one ragged call of the method."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..types import Selection, select_each
from .architectures import Target
from .encode import Encoded
from .errors import UnsupportedMethodError, UnsupportedModelError
from .layout import Layout
from .order import along


@dataclass(frozen=True, eq=False)
class Choice:
    """What a method chose among the T visual tokens of a batch.

    Attributes:
        kept: bool `[T]` on the host.
        core: likewise, those chosen for a score of their own.
        milliseconds: that the method took.
        encoded: the tokens; where others were merged into the kept ones, with these changed.
    """

    kept: Tensor
    core: Tensor
    milliseconds: float
    encoded: Encoded


def choose(
    method: Any,
    encoded: Encoded,
    where: Layout,
    words: Sequence[Tensor],
    scope: str,
    keep_newline: bool,
    given: Mapping[str, Tensor],
    merge: bool,
) -> Choice:
    """Let `method` select in every group of tokens that shares a budget.

    Args:
        method: has `select_varlen`, see `zspa_kernels.MethodBase`; or `select` alone.
        encoded: the tokens.
        where: which token belongs to which image.
        words: text embeddings of each prompt.
        scope: what shares a budget.
        keep_newline: newline tokens are kept in addition, and not chosen among.
        given: what the method takes beside tokens and words, one row a token `[T, ...]`.
        merge: whether the method's `assign` merges dropped tokens into kept ones.
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
    here = rows.to(device)
    parts = {k: list(v.detach().to(device)[here].split(sizes)) for k, v in given.items()}
    clock = _Clock(device)
    merging: list[Any] = []
    if merge:
        merging = [method.assign(v, p, **own) for v, p, own in _each(visual, prompt, parts)]
        picked = [one.selection for one in merging]
        encoded = _merged(encoded, [group.to(device) for group in groups], merging)
    else:
        picked = _picked(method, visual, prompt, parts)
        _check(method, picked, len(groups))
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
        if (indices >= len(group)).any():
            raise UnsupportedMethodError(
                f"prune: indices of {type(method).__name__} must be below the number of tokens, "
                f"{len(group)}, got {int(indices.max())}"
            )
        kept[group[indices[chosen]]] = True
        core[group[indices[chosen & in_core]]] = True
    return Choice(kept, core, taken() if callable(taken) else taken, encoded)


def _each(
    visual: list[Tensor], prompt: list[Tensor], given: Mapping[str, list[Tensor]]
) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Tokens, words and whatever else there is, of one group after the other."""
    own = [{name: parts[i] for name, parts in given.items()} for i in range(len(visual))]
    return list(zip(visual, prompt, own, strict=True))


def _picked(
    method: Any, visual: list[Tensor], prompt: list[Tensor], given: Mapping[str, list[Tensor]]
) -> list[Selection]:
    """One ragged call, if the method has one that takes what there is; else group by group."""
    ragged = getattr(method, "select_varlen", None)
    if ragged is not None and (
        not given or set(given) <= set(inspect.signature(ragged).parameters)
    ):
        chosen: list[Selection] = ragged(visual, prompt, **given)
        return chosen
    if not given:
        return select_each(method, visual, prompt)
    return [method.select(v, p, **own) for v, p, own in _each(visual, prompt, given)]


def _check(method: Any, picked: Any, groups: int) -> None:
    """`picked`, by a method that may be anybody's, is a selection for each of the `groups`."""
    name = type(method).__name__
    if not isinstance(picked, Sequence) or len(picked) != groups:
        got = len(picked) if isinstance(picked, Sequence) else type(picked).__name__
        rule = f"a sequence with one Selection for each of {groups} images"
        raise UnsupportedMethodError(f"prune: {name}.select_varlen must return {rule}, got {got}")
    for one in picked:
        if not isinstance(one, Selection):
            raise UnsupportedMethodError(
                f"prune: what {name} selects must be a zk.Selection, got a {type(one).__name__}"
            )
        for field, x, dtype in (
            ("indices", one.indices, torch.int64),
            ("core_mask", one.core_mask, torch.bool),
        ):
            if x.dtype != dtype or x.shape != (len(one.indices),):
                raise UnsupportedMethodError(
                    f"prune: {field} of {name} must be {dtype} [K], one K for both, got {x.dtype} "
                    f"{list(x.shape)}"
                )


def _merged(encoded: Encoded, groups: list[Tensor], merging: list[Any]) -> Encoded:
    """The tokens with every kept one replaced by what was merged into it, in deeper layers too.

    `merging` are `zspa_kernels.primitives.Merging`, one a group.
    """

    def change(tokens: Tensor) -> Tensor:
        tokens = tokens.clone()
        for group, one in zip(groups, merging, strict=True):
            indices = one.selection.indices
            inside = indices >= 0
            tokens[group[indices[inside]]] = one.merge(tokens[group])[inside]
        return tokens

    deep = [change(layer) for layer in encoded.deep]
    return replace(encoded, tokens=change(encoded.tokens), deep=deep)


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
    if any(part.features is None for part in encoded.parts):
        return None
    with torch.no_grad():
        rated = [(part, method.rate(part.features)) for part in encoded.parts]
    flat = encoded.in_prompts([along(target, inputs, *one) for one in rated])
    if len(flat) != len(encoded.tokens):
        raise UnsupportedModelError(
            f"prune: method must rate every visual token, {len(encoded.tokens)}, got {len(flat)} "
            f"ratings from the inputs of {target.arch.projector}"
        )
    return flat
