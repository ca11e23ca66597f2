# SPDX-License-Identifier: Apache-2.0
"""Exact selection of visual tokens for vision-language models, at hardware speed.

`select` does it in one call, `gather` takes the chosen rows, `torch.ops.zspa.*` are the ops.
"""

from ._version import __version__
from .api import (
    diversity,
    diversity_varlen,
    gather,
    num_keep,
    relevance_topk,
    select,
    select_varlen,
    split_core,
    warmup,
)
from .methods import AllInRelevance, DivPrune, ZSPAPrune
from .types import Selection

__all__ = [
    "AllInRelevance",
    "DivPrune",
    "Selection",
    "ZSPAPrune",
    "__version__",
    "diversity",
    "diversity_varlen",
    "gather",
    "num_keep",
    "relevance_topk",
    "select",
    "select_varlen",
    "split_core",
    "warmup",
]
