# SPDX-License-Identifier: Apache-2.0
"""What cannot be pruned rightly is refused; every error says what to do instead."""

from __future__ import annotations

from typing import Any


class PruningError(Exception):
    """Base of the errors of this package."""


class UnsupportedModelError(PruningError, NotImplementedError):
    """The architecture, or the installed transformers, is not one that can be pruned."""


class UnsupportedMethodError(PruningError, TypeError):
    """The method needs a tensor that is not there or not collected, or returns no selection."""


class UnsupportedInputError(PruningError, NotImplementedError):
    """A combination of inputs whose result would be wrong."""


class CachedPromptError(UnsupportedInputError):
    """A prompt that continues a cache of another length: its tokens would be cut wrongly."""


class ChunkedPrefillError(UnsupportedInputError):
    """Chunked prefill where this transformers would mix up the images."""


class LabelsError(UnsupportedInputError):
    """Labels are as long as the unpruned prompt."""


class PlaceholderMismatchError(PruningError, ValueError):
    """The prompt has room for another number of visual tokens than the pictures gave.

    Attributes:
        placeholders: how many image (or video) tokens the prompt has.
        features: how many visual tokens the pictures (or videos) gave.
    """

    def __init__(self, placeholders: int, features: int, kind: str = "image") -> None:
        one = {"image": "an image token"}.get(kind, f"a {kind} token")
        super().__init__(
            f"prune: input_ids must have {one} for each visual feature, {features}, "
            f"got {placeholders}; make both with one call of the model's processor"
        )
        self.placeholders = placeholders
        self.features = features
        self._kind = kind

    def __reduce__(self) -> Any:
        # By default an error is made anew from its message, on its way out of another process.
        return type(self), (self.placeholders, self.features, self._kind)


class AlreadyPrunedError(PruningError, RuntimeError):
    """Model or inputs are pruned already: two methods would prune each other's prompts."""


class NothingPrunedWarning(UserWarning):
    """Pruning was asked for and no visual token was dropped."""


def unwatched(part: str) -> UnsupportedMethodError:
    """The error for a part of the model that ran without its hooks, which were to collect."""
    return UnsupportedMethodError(
        f"prune: {part} must call the hooks of its modules, got one that does not, as if compiled "
        f"before by torch.compile; leave it uncompiled for methods that collect something there"
    )
