# SPDX-License-Identifier: Apache-2.0
"""Exact selection of visual tokens for vision-language models, at hardware speed."""

from . import _register as _register
from ._counts import num_keep, split_core
from ._gather import gather
from ._version import __version__
from .types import Selection

__all__ = ["Selection", "__version__", "gather", "num_keep", "split_core"]
