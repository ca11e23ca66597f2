# SPDX-License-Identifier: Apache-2.0
"""For each method a case made for its rule: a fan of tokens, and what the paper says is kept.

All methods get the same tokens, prompt and tensors; angles are in degrees, so cosines can be read
off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """What one method keeps of the fan.

    Attributes:
        keep: the tokens; their number is asked for.
        why: the argument, from the rule.
        options: of the method.
    """

    keep: set[int]
    why: str
    options: Mapping[str, Any] = MappingProxyType({})


def plane(*angles: float, length: float = 1.0) -> Tensor:
    """Rows of this length at these angles."""
    turns = [math.radians(angle) for angle in angles]
    return length * torch.tensor([[math.cos(t), math.sin(t)] for t in turns])


def numbers(*values: float) -> Tensor:
    return torch.tensor(values)


#: Six tokens of a fan and one behind it; nothing about them is symmetric.
FAN = plane(0, 8, 20, 47, 95, 101, 190)
PROMPT = plane(30)
#: One tensor for each argument that takes one.
INPUTS = {
    "attention": numbers(0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.5),
    "saliency": numbers(0.1, 0.9, 0.8, 0.7, 0.3, 0.2, 0.4),
    "sensitivity": numbers(0.1, 0.2, 0.9, 0.3, 0.8, 0.4, 0.15),
    "keys": plane(290, 50, 90, 95, 130, 200, 210),
    "features": plane(0, 20, 40, 60, 80, 100, 250),
    "positions": torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0]]),
    "image_embeds": plane(170, 0, 60, 180, 40, 90, 20),
    "text_embeds": plane(0),
}
#: Attention of methods that would keep what others keep, or that read that of the last text token.
ATTENTION = {
    "adaptprune": numbers(0.1, 0.8, 0.4, 0.5, 0.3, 0.7, 0.9),
    "holov": numbers(0.0, 0.9, 0.8, 0.7, 0.2, 0.4, 0.3),
    "idselection": numbers(0.1, 0.4, 0.3, 0.5, 0.9, 0.8, 0.7),
    "vispruner": numbers(0.2, 0.3, 0.1, 0.5, 0.8, 0.4, 0.9),
}
#: What the presets of ScoredTopK read: a model has another tensor for each.
SCORES = {
    "scoredtopk": numbers(0.0, 0.1, 0.2, 0.9, 0.8, 0.3, 0.4),
    "fastervlm": numbers(0.9, 0.1, 0.8, 0.2, 0.3, 0.4, 0.5),
    "fastv": numbers(0.1, 0.2, 0.9, 0.3, 0.4, 0.8, 0.0),
    "visiondrop": numbers(0.1, 0.2, 0.3, 0.0, 0.4, 0.8, 0.9),
    "vflowopt": numbers(0.2, 0.1, 0.3, 0.9, 0.0, 0.8, 0.4),
    "vitcop": numbers(0.0, 0.8, 0.2, 0.3, 0.9, 0.4, 0.1),
    "topv": numbers(0.8, 0.1, 0.2, 0.3, 0.4, 0.9, 0.0),
}

CASES = {
    "adaptprune": Case(
        {1, 3, 5},
        "a third of the attention is left in the corners of the grid, 0.61 at its edges: 1, 5, 6, "
        "3, 4; but the key of 6, 210, is like that of 5, 200, two rows away",
        {"distance_sigma": 3.0},
    ),
    "allinrelevance": Case({2, 3}, "20 and 47 are nearest to the prompt at 30, close as they are"),
    "anchorprune": Case(
        {0, 3, 5, 6},
        "180 and 170 are least like the text at 0, then 90, which is new and ends the anchor; of "
        "the rest 190 is far from their tokens, 47, 0 and 101, and 8 is not, of more attention",
        {"least": 0.2, "cap": 0.75, "novelty": 0.1, "patience": 1},
    ),
    "cdpruner": Case(
        {0, 3},
        "CLIP's cosine is negated: 180 and 170 are least like the text at 0 and weigh 1 and 0.99; "
        "the tokens they stand for, 47 and 0, are 47 degrees apart",
    ),
    "cenprune": Case(
        {0, 6},
        "190 is alone on its side; then, without the mean, 0 is far from it and no more common "
        "than its neighbours",
    ),
    "dart": Case(
        {0, 3, 4, 5, 6},
        "of unit length 47 has the largest L1 norm, is the pivot and takes 190 and 101; the word "
        "at 30 takes 95, and 0, which is 30 degrees away, farther than 8 and 20",
        {"pivots": 1, "text_pivots": 1},
    ),
    "divprune": Case(
        {1, 3, 5, 6},
        "190 has no neighbour, 8 is opposite, 101 between; then 47, whose nearest pick is 39 "
        "degrees away, where those of 0, 20 and 95 are 8, 12 and 6",
    ),
    "greedyprune": Case({1, 3}, "20 is second in saliency but 12 degrees from the first, 8"),
    "holov": Case(
        {0, 1, 2, 3, 5},
        "of two crops the first has 0.6 of attention a token and the second 0.3: 10/3 and 5/3 of "
        "five tokens, that is 3 and 1, and one more for the heavier",
        {"crops": 2},
    ),
    "idselection": Case(
        {4, 6},
        "95 comes first and takes off 101, second in attention, all it has; 190 is third",
    ),
    "mmtok": Case(
        {2, 5, 6},
        "of the features 40 covers most, and 20 is nearest to the prompt at 30; then 250, which "
        "nothing covers, then 100, the far end of the others",
    ),
    "scope": Case(
        {1, 4, 5, 6},
        "of the features 20 covers 4.3 at attention 0.8; then 100, then 250, which nothing covers, "
        "then 80, of whose surroundings most is left for its attention",
    ),
    "todre": Case(
        {0, 1, 5, 6},
        "as DivPrune, but the fourth is 0: that 190 and 101 are far outweighs that 8 is near",
    ),
    "tome": Case(
        {0, 1, 5},
        "keys: 90 and 130 go into 95, 210 into 200, then 95 into 50; 290 is like none of them",
    ),
    "trimtokenator": Case(
        {0, 4},
        "101 and 190 are farthest from the prompt; of the other five 95 is least similar to all, "
        "and 0 least similar to 95",
        {"align": 5},
    ),
    "visionzip": Case(
        {0, 1},
        "the first has most attention, the next is the first of the rest",
        {"contextual": 0.5},
    ),
    "vispruner": Case(
        {0, 4, 5, 6},
        "6 and 4 have most attention; of the others, 60, 100, 20, 0 and 40, every second one goes, "
        "as up to eight may",
    ),
    "zooprune": Case(
        {2, 4},
        "20 is most sensitive; then 95 has 7/8 of 1 - cos 75 = 0.74, and 190 only 1/16 of 2",
    ),
    "zspaprune": Case(
        {2, 3, 6},
        "20 and 47 are nearest to the prompt at 30, 190 is farthest from both",
        {"core_ratio": 0.5},
    ),
    **{name: Case(set(x.topk(2).indices.tolist()), "its tensor") for name, x in SCORES.items()},
}
