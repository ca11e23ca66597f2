# SPDX-License-Identifier: Apache-2.0
"""What cannot be pruned rightly is refused; every error says what to do instead."""

from __future__ import annotations


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


class AlreadyPrunedError(PruningError, RuntimeError):
    """Model or inputs are pruned already: two methods would prune each other's prompts."""


class NothingPrunedWarning(UserWarning):
    """Pruning was asked for and no visual token was dropped."""
