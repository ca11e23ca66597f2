# SPDX-License-Identifier: Apache-2.0
"""What every method can do: choose in many images at once, and prune a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .. import api
from .._contract.values import say
from ..primitives.similarity import valid_rows
from ..types import Selection, select_each
from ._compose import of_each
from ._registry import About, Input

if TYPE_CHECKING:
    from ..hf import PruneHandle


class MethodBase:
    """Base of the methods; derive from it to prune models by a rule of your own.

    A method chooses tokens of one image or of a batch in `select`. From that the base makes
    `select_varlen`, for the images of a batch of prompts; override it where one call for all of
    them is faster. `method(model)` prunes a transformers model.

    Attributes:
        model_inputs: what a model that is pruned is asked for, and `select` is given, beside tokens
            and prompt; an `Input` of `zspa_kernels.methods` each, whose `tensor` says what it is.
        needs_features: True for a method that rates tokens by what the projector is given. Its
            `rate` makes the ratings, and its `select_varlen` takes them: `sensitivity=`, one
            tensor `[n]` per image.

    Example:
        >>> import torch
        >>> class EverySecond(MethodBase):
        ...     def select(self, visual, prompt=None):
        ...         indices = torch.arange(0, len(visual), 2)
        ...         return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))
        >>> [picked.indices.tolist() for picked in EverySecond().select_varlen([torch.eye(3)])]
        [[0, 2]]
    """

    @property
    def model_inputs(self) -> tuple[Input, ...]:
        """The inputs of `about`, if there is one.

        Where the model cannot give a required one, `hf.prune` raises; others are left out then.
        """
        facts = getattr(self, "about", None)
        return () if facts is None else tuple(facts.inputs)

    @property
    def needs_features(self) -> bool:
        """Whether `rate` has to be called."""
        return False

    def rate(self, features: Tensor) -> Tensor:
        """Ratings float32 `[B, N]` of tokens from the projector's inputs `[B, T, C]`."""
        raise NotImplementedError(f"{type(self).__name__} rates no tokens")

    def select(self, visual: Tensor, prompt: Tensor | None = None) -> Selection:
        """Choose tokens of `visual` `[B, N, D]` or `[N, D]` for `prompt`, of the same rank."""
        raise NotImplementedError(f"{type(self).__name__} must define select or select_varlen")

    def select_varlen(
        self, visual: Sequence[Tensor], prompt: Sequence[Tensor] | None = None
    ) -> list[Selection]:
        """Choose tokens of images of different lengths: `select` on each, in one call if it can.

        Args:
            visual: one tensor `[n, D]` per image; a batch is a sequence of these, too.
            prompt: one tensor `[m, D]` per image, or None. m may be 0: an image without a prompt.

        Returns:
            One selection per image. Its scores may be None although `select` gives them: that
            would be a second pass over the tokens.
        """
        return select_each(self, visual, prompt)

    def __call__(self, model: Any, **options: Any) -> PruneHandle:
        """Prune a transformers model: `with method(model) as handle:`; see `hf.prune`.

        Raises:
            TypeError: `model` is a tensor: tokens are for `select`.
        """
        if isinstance(model, Tensor):
            rule = "a transformers model (tokens are for `select`)"
            raise TypeError(f"{type(self).__name__}: model must be {rule}, got {say(model)}")
        from ..hf import prune

        return prune(model, self, **options)


class EachByItself(MethodBase):
    """Base of methods whose other inputs are given by name, one tensor per image.

    Attributes:
        about: facts of the method; its title is in the errors.
    """

    about: ClassVar[About]

    @property
    def _facts(self) -> About:
        return self.about

    def select_varlen(
        self,
        visual: Sequence[Tensor],
        prompt: Sequence[Tensor] | None = None,
        **inputs: Sequence[Any] | None,
    ) -> list[Selection]:
        """`select` on each image, with its own of every input.

        Args:
            visual: one tensor `[n, D]` per image; a batch is a sequence of these, too.
            prompt: one tensor `[m, D]` per image, or None.
            inputs: what `select` takes by name; of each a sequence, one entry per image, or None.

        Returns:
            One selection per image.

        Raises:
            TypeError, ValueError: an input is not a sequence of one entry per image.
        """
        names = {"prompt": prompt, **inputs}
        given = [of_each(self._facts, name, x, visual) for name, x in names.items()]
        # One row per image: prompt, then the inputs in their order.
        rows = zip(visual, *given, strict=True)
        method: Any = self
        return [
            method.select(tokens, own[0], **dict(zip(inputs, own[1:], strict=True)))
            for tokens, *own in rows
        ]


def select_by_counts(
    visual: Sequence[Tensor],
    prompt: Sequence[Tensor] | None,
    k_core: Sequence[int],
    k_diverse: Sequence[int],
    pooling: str = "mean",
    sort: bool = True,
) -> list[Selection]:
    """One ragged call of `select`; which picks are core follows from their order."""
    picks = api.select_varlen(
        list(visual),
        list(prompt) if isinstance(prompt, Tensor) and prompt.ndim else prompt,
        k_core=list(k_core),
        k_diverse=list(k_diverse),
        pooling=pooling,
        sorted=False,
    )
    chosen = []
    for i, (tokens, core) in enumerate(zip(visual, k_core, strict=True)):
        indices = picks[i]
        in_core = (torch.arange(len(indices), device=indices.device) < core) & (indices >= 0)
        if prompt is not None:
            in_core &= valid_rows(prompt[i], None).any()  # else all of it was chosen for diversity
        if sort:
            order = indices.masked_fill(indices < 0, len(tokens)).argsort(stable=True)
            indices, in_core = indices[order], in_core[order]
        chosen.append(Selection(indices, in_core))
    return chosen
