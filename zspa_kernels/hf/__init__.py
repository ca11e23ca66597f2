# SPDX-License-Identifier: Apache-2.0
"""Prune the visual tokens of transformers models (extra `hf`)."""

from .errors import (
    AlreadyPrunedError,
    CachedPromptError,
    ChunkedPrefillError,
    LabelsError,
    NothingPrunedWarning,
    PlaceholderMismatchError,
    PruningError,
    UnsupportedInputError,
    UnsupportedModelError,
)
from .handle import PruneHandle, prune
from .inputs import PrunedInputs, prune_inputs
from .report import ImageReport, PruneReport

__all__ = [
    "AlreadyPrunedError",
    "CachedPromptError",
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
    "UnsupportedModelError",
    "prune",
    "prune_inputs",
]
