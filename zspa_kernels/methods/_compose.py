# SPDX-License-Identifier: Apache-2.0
"""What methods composed of primitives have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .. import _counts, api
from .._contract import primitives as _rules
from .._contract import tensors as _tensors
from .._contract import values as _values
from .._contract.selection import POOLINGS
from ..primitives.scores import ordered
from ..types import Selection
from ._registry import About, Input

ATTENTION = Input(
    "attention",
    "[B, N]",
    "attention from [CLS] to each patch, mean or sum over heads, in the vision tower's layer "
    "whose output is used; without [CLS], what each patch receives from all, mean over heads; mean "
    "over the patches of a token",
    tensor="attention",
)
KEYS = Input(
    "keys",
    "[B, N, C]",
    "keys of the vision tower's layer that the tokens come from, mean of heads",
    tensor="keys",
)
FEATURES = Input(
    "features",
    "[B, N, C]",
    "what the projector is given, the vision tower's output (published); by default the visual "
    "tokens",
    False,
    tensor="features",
)


def check_options(about: About, method: Any) -> None:
    """Raises for options that methods have in common: counts, flags and the prompt's pooling.

    A flag is what is True or False by default. Numbers of other kinds (numpy's, fractions) become
    Python's, which all that follows can compute with.
    """
    for field in fields(method):
        value = getattr(method, field.name)
        if isinstance(value, Real) and not isinstance(value, int | float):
            read = _values.integer if isinstance(value, Integral) else _values.real
            object.__setattr__(method, field.name, read(about.title, field.name, value))
    _counts.kept(about.title, 1, method.keep, getattr(method, "rounding", "round"))
    for field in fields(method):
        if isinstance(field.default, bool):
            _values.flag(about.title, field.name, getattr(method, field.name))
    if hasattr(method, "pooling"):
        _values.option(about.title, "pooling", method.pooling, POOLINGS)


def per_token(
    about: About, name: str, value: object, visual: Tensor, mask: Tensor | None = None
) -> Tensor:
    """A required score per token, float32 `[B, N]`, without gradient; tokens and mask checked."""
    _rules.visual(about.title, visual, mask)
    x = about.require(name, value)
    _rules.per_token(about.title, name, x, visual)
    if x.requires_grad:
        x = x.detach()
    return x if x.dtype is torch.float32 else x.float()


def compared(about: About, name: str, value: object, visual: Tensor) -> Tensor:
    """The vectors whose cosines are the similarity: the input `name`; None: the visual tokens."""
    if value is None:
        return visual
    vectors = about.require(name, value)
    _rules.features(about.title, name, vectors, visual)
    return vectors


def selection(picks: Tensor, visual: Tensor, sort: bool, scores: Tensor | None = None) -> Selection:
    """The selection of `picks` `[B, K]`, in their order or ascending, without core.

    Args:
        picks: in the order of picking, then -1.
        visual: the tokens.
        sort: whether indices ascend.
        scores: what every token was rated by.
    """
    n = visual.shape[-2]
    indices = ordered(picks, n)[0] if sort else picks
    return Selection(indices, torch.zeros_like(indices, dtype=torch.bool), scores)


def selections(
    picks: Tensor | list[Tensor],  # what a ragged op returns; of a list of images a list
    visual: Sequence[Tensor],
    sort: bool,
    scores: Sequence[Tensor],
) -> list[Selection]:
    """The selections without core of a ragged call: picks, tokens and scores of each image."""
    each = zip(picks, visual, scores, strict=True)
    return [selection(chosen, x, sort, scores=rated) for chosen, x, rated in each]


def kept_of_each(
    about: About, visual: Sequence[Tensor], keep: float, rounding: str = "round"
) -> list[int]:
    """How many tokens of each of the images `visual` to keep.

    Raises:
        TypeError, ValueError: `visual` is no sequence of tensors `[n, D]` that go together.
    """
    if isinstance(visual, Tensor) and visual.ndim:  # a batch is a sequence of images as well
        visual = list(visual)
    _tensors.alike(about.title, "visual", visual, 2)
    return [api.num_keep(len(x), keep, rounding) for x in visual]


def _images(about: About, name: str, given: object) -> None:
    several = isinstance(given, Sequence) and not isinstance(given, str)
    if not several and not (isinstance(given, Tensor) and given.ndim > 1):
        got = _values.say(given)
        raise TypeError(f"{about.title}: {name} must be a sequence of tensors, got {got}")


def of_each(
    about: About, name: str, given: Sequence[Tensor] | None, visual: Sequence[Tensor]
) -> list[Tensor | None]:
    """The input `name` of each of the images `visual`: None for all of them if it is not given.

    Raises:
        TypeError: it, or `visual`, is no sequence.
        ValueError: it does not have one entry per image.
    """
    _images(about, "visual", visual)
    if given is None:
        return [None] * len(visual)
    _images(about, name, given)
    if len(given) != len(visual):
        rule = f"have a tensor for each image, {len(visual)}"
        raise ValueError(f"{about.title}: {name} must {rule}, got {len(given)}")
    return list(given)
