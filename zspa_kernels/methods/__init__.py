# SPDX-License-Identifier: Apache-2.0
"""Published methods: one small dataclass each, composed of the public functions.

`available()` lists their names, `get("divprune", keep=0.1)` makes one, `register` adds your own.
"""

from ._registry import About, Input, Method, about, available, get, register, unregister
from .all_in_relevance import AllInRelevance
from .divprune import DivPrune
from .zooprune import ZOOPrune
from .zspaprune import ZSPAPrune

__all__ = [
    "About",
    "AllInRelevance",
    "DivPrune",
    "Input",
    "Method",
    "ZOOPrune",
    "ZSPAPrune",
    "about",
    "available",
    "get",
    "register",
    "unregister",
]
