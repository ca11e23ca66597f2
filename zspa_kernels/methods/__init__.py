# SPDX-License-Identifier: Apache-2.0
"""Published methods: one small dataclass each, composed of the public functions."""

from .all_in_relevance import AllInRelevance
from .divprune import DivPrune
from .zooprune import ZOOPrune
from .zspaprune import ZSPAPrune

__all__ = ["AllInRelevance", "DivPrune", "ZOOPrune", "ZSPAPrune"]
