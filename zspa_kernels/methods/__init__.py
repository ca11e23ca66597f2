# SPDX-License-Identifier: Apache-2.0
"""Published methods: one small dataclass each, composed of the public functions.

`available()` lists their names, `get("divprune", keep=0.1)` makes one, `register` adds your own.

Example:
    >>> import torch
    >>> get("divprune", keep=2).select(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])).indices
    tensor([0, 2])
"""

from ._registry import (
    About,
    Input,
    Method,
    Published,
    PublishedMethod,
    about,
    available,
    get,
    register,
    unregister,
)
from .adaptprune import AdaptPrune
from .all_in_relevance import AllInRelevance
from .anchorprune import AnchorPrune
from .base import EachByItself, MethodBase
from .cdpruner import CDPruner
from .cenprune import CenPrune
from .dart import DART
from .divprune import DivPrune
from .greedyprune import GreedyPrune
from .holov import HoloV
from .idselection import IDSelection
from .mmtok import MMTok
from .scope import SCOPE
from .scoredtopk import PRESETS, Preset, ScoredTopK
from .todre import ToDRE
from .tome import ToMe
from .trimtokenator import TrimTokenator
from .visionzip import VisionZip
from .vispruner import VisPruner
from .zooprune import ZOOPrune
from .zspaprune import ZSPAPrune

__all__ = [
    "DART",
    "PRESETS",
    "SCOPE",
    "About",
    "AdaptPrune",
    "AllInRelevance",
    "AnchorPrune",
    "CDPruner",
    "CenPrune",
    "DivPrune",
    "EachByItself",
    "GreedyPrune",
    "HoloV",
    "IDSelection",
    "Input",
    "MMTok",
    "Method",
    "MethodBase",
    "Preset",
    "Published",
    "PublishedMethod",
    "ScoredTopK",
    "ToDRE",
    "ToMe",
    "TrimTokenator",
    "VisPruner",
    "VisionZip",
    "ZOOPrune",
    "ZSPAPrune",
    "about",
    "available",
    "get",
    "register",
    "unregister",
]
