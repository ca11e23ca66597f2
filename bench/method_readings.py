# SPDX-License-Identifier: Apache-2.0
"""The methods as one writes them down in PyTorch from their papers, one image at a time.

All take the inputs of `select` without a batch axis and k, and compute in the dtype of the tokens.
Rows are finite and not zero, there are no masks. Written as published code is: a matrix of all
similarities, then a Python loop that reduces over all picks so far where the published code does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zspa_kernels.testing import divprune_loop, zspaprune_loop

CONTEXTUAL = 10 / 64


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def scaled(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min())


def dart(k: int, *, visual: Tensor, prompt: Tensor, keys: Tensor) -> Tensor:
    """All cosines in one product; the published loop copies what is left for every pivot.

    The published code keeps other counts, and goes through a set of pivots.
    """
    first, count = min(4, k), min(4, k) + min(4, len(prompt))
    taken = keys.abs().sum(1).topk(first).indices
    words = prompt.abs().sum(1).topk(count - first).indices
    similar = unit(torch.cat((visual[taken], prompt[words]))) @ unit(visual).T
    for turn, row in enumerate(similar):
        row[taken] = torch.inf
        more = -(-(k - len(taken)) // (count - turn))
        taken = torch.cat((taken, row.topk(more, largest=False).indices))
    return taken


def divprune(k: int, *, visual: Tensor) -> Tensor:
    return divprune_loop(visual, None, 0, k)


def zspaprune(k: int, *, visual: Tensor, prompt: Tensor) -> Tensor:
    core = round(0.2 * k)
    return zspaprune_loop(visual, prompt, core, k - core)


def allinrelevance(k: int, *, visual: Tensor, prompt: Tensor) -> Tensor:
    relevance = unit(visual) @ unit(prompt.mean(0))
    return relevance.sort(descending=True, stable=True).indices[:k]


def _weighted(distance: Tensor, weights: Tensor, k: int) -> Tensor:
    """Each pick has the largest weight x distance to the picks before it; the first, the weight."""
    picks = torch.empty(k, dtype=torch.int64)
    picks[0] = weights.argmax()
    for t in range(1, k):
        score = weights * distance[picks[:t]].amin(0)
        score[picks[:t]] = -torch.inf
        picks[t] = score.argmax()
    return picks


def zooprune(k: int, *, visual: Tensor, sensitivity: Tensor) -> Tensor:
    rows = unit(visual)
    return _weighted(1 - rows @ rows.T, scaled(sensitivity), k)


def anchor(k: int, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """AnchorPrune's first picks, by relevance."""
    patches = unit(image_embeds)
    ranked = (patches @ unit(text_embeds).T).mean(-1).argsort(stable=True)
    least, most = max(1, round(k * 5 / 32)), k // 2
    novel = 0
    for t in range(least, most):
        novel += bool((1 - patches[ranked[:least]] @ patches[ranked[t]]).min() > 0.2)
        if novel == 3:
            return ranked[: t + 1]
    return ranked[:most]


def anchorprune(
    k: int,
    *,
    visual: Tensor,
    image_embeds: Tensor,
    text_embeds: Tensor,
    attention: Tensor,
    prompt: Tensor,  # of its other space
) -> Tensor:
    first, rows = anchor(k, image_embeds, text_embeds), unit(visual)
    distance = 1 - rows @ rows.T
    picks = torch.empty(k, dtype=torch.int64)
    picks[: len(first)] = first
    for t in range(len(first), k):
        score = attention * distance[picks[:t]].amin(0)
        score[picks[:t]] = -torch.inf
        picks[t] = score.argmax()
    return picks


def distinct(visual: Tensor) -> Tensor:
    """Cen-Prune's weight of each token."""
    rows = unit(visual)
    similarity = rows @ rows.T
    return scaled(-(similarity.sum(1) - similarity.diagonal()) / (len(visual) - 1))


def cenprune(k: int, *, visual: Tensor) -> Tensor:
    middle = unit(visual - visual.mean(0))
    return _weighted(1 - middle @ middle.T, distinct(visual), k)


def todre(k: int, *, visual: Tensor) -> Tensor:
    rows = unit(visual)
    similarity = rows @ rows.T
    picks = torch.empty(k, dtype=torch.int64)
    picks[0] = similarity.sum(0).argmin()
    for t in range(1, k):
        cost = similarity[picks[:t]].sum(0)
        cost[picks[:t]] = torch.inf
        picks[t] = cost.argmin()
    return picks


def aligned(visual: Tensor, prompt: Tensor) -> Tensor:
    """What TrimTokenator's first stage leaves, ascending."""
    distance = torch.cdist(visual, prompt).square().mean(-1)
    return distance.sort(stable=True).indices[: round(0.8 * len(visual))].sort().values


def trimtokenator(k: int, *, visual: Tensor, prompt: Tensor) -> Tensor:
    stay = aligned(visual, prompt)
    return stay[todre(k, visual=visual[stay])]


def greedyprune(k: int, *, visual: Tensor, saliency: Tensor) -> Tensor:
    rows = unit(visual)
    similarity = rows @ rows.T
    taken: list[int] = []
    left: list[int] = []
    for i in saliency.sort(descending=True, stable=True).indices.tolist():
        if len(taken) == k:
            break
        close = bool((similarity[i, taken] > 0.9).any())
        (left if close else taken).append(i)
    return torch.tensor(taken + left[: k - len(taken)])


def holov(k: int, *, visual: Tensor, attention: Tensor) -> Tensor:
    """Crop after crop; slots that a crop is too small for would be zero rows, and are none here."""
    crops = list(zip(visual.tensor_split(16), attention.tensor_split(16), strict=True))
    scores = []
    for tokens, attended in crops:
        rows, others = unit(tokens), max(1, len(tokens) - 1)
        similar = (rows @ rows.T).fill_diagonal_(0.0)
        mean = similar.sum(1, keepdim=True) / others
        variance = (similar - mean).square().sum(1) / others
        scaled = 1e3 * attended
        holistic = scaled + 0.09 * variance * (scaled.mean() / (variance.mean() + 1e-6))
        scores.append(holistic.mean())
    weights = torch.stack(scores)
    weights = weights / (weights.sum() + 1e-6)
    quotas = (k * weights).floor().long()
    quotas[weights.topk(k - int(quotas.sum())).indices] += 1
    picks, first = [], 0
    for (_, attended), quota in zip(crops, quotas, strict=True):
        picks.append(first + attended.topk(min(int(quota), len(attended))).indices)
        first += len(attended)
    return torch.cat(picks)


def idselection(k: int, *, visual: Tensor, attention: Tensor) -> Tensor:
    rows = unit(visual)
    weights = torch.exp(-20.0 * (1 - rows @ rows.T).square())
    scores = scaled(attention).to(visual.dtype)
    picks = torch.empty(k, dtype=torch.int64)
    for t in range(k):
        best, picks[t] = scores.max(-1)
        # A score below 0 takes nothing off: raising others would not be suppression.
        scores = scores - weights[picks[t]] * best.clamp_min(0.0)
        scores[picks[: t + 1]] = -torch.inf
    return picks


def adaptprune(
    k: int, *, visual: Tensor, attention: Tensor, positions: Tensor, keys: Tensor
) -> Tensor:
    rows = unit(keys)
    similar = torch.exp(-(1 - rows @ rows.T).square() / (2 * 0.05**2))
    places = positions.to(visual.dtype)
    half = places.amax(0) / 2
    middle = torch.exp(-0.5 * ((places - half) / half).square().sum(-1))
    scores = attention.to(visual.dtype) * middle
    picks = torch.empty(k, dtype=torch.int64)
    for t in range(k):
        picks[t] = scores.argmax()
        square = (places - places[picks[t]]).square().sum(-1)
        near = torch.exp(-square / (2 * 1.5**2)) * (square <= 5.0**2)
        scores = scores * (1 - near * similar[picks[t]])
        scores[picks[: t + 1]] = -torch.inf
    return picks


def tome(k: int, *, visual: Tensor, keys: Tensor) -> Tensor:
    line = torch.arange(len(keys))
    metric, sizes = keys, torch.ones(len(keys), 1, dtype=keys.dtype)
    while len(line) > k:
        remove = min(len(line) - k, len(line) // 2)
        rows = unit(metric)
        best, nearest = (rows[::2] @ rows[1::2].T).max(-1)
        order = best.argsort(descending=True, stable=True)
        source, target = 2 * order[:remove], 2 * nearest[order[:remove]] + 1
        total = (metric * sizes).index_add(0, target, metric[source] * sizes[source])
        sizes = sizes.index_add(0, target, sizes[source])
        alive = torch.ones(len(line), dtype=torch.bool)
        alive[source] = False
        metric, sizes, line = (total / sizes)[alive], sizes[alive], line[alive]
    return line


def visionzip(k: int, *, visual: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """What is kept, dominant first; also merges, as that is most of its cost."""
    contextual = round(CONTEXTUAL * k)
    dominant = attention.topk(k - contextual).indices
    is_rest = torch.ones(len(keys), dtype=torch.bool)
    is_rest[dominant] = False
    rest = is_rest.nonzero()[:, 0]
    step = max(1, len(rest) // max(1, contextual))
    targets = rest[torch.arange(0, len(rest), step)[:contextual]]
    is_rest[targets] = False
    others = is_rest.nonzero()[:, 0]
    rows = unit(keys)
    nearest = (rows[others] @ rows[targets].T).argmax(-1)
    one_hot = torch.nn.functional.one_hot(nearest, contextual).to(visual.dtype)
    sums = one_hot.T @ visual[others] / one_hot.sum(0).clamp_min(1).unsqueeze(-1)
    torch.cat((visual[dominant], visual[targets] + sums))
    return torch.cat((dominant, targets))


def vispruner(k: int, *, visual: Tensor, attention: Tensor) -> Tensor:
    """Odd numbers of tokens, at which the published loop fails, are compared like even ones."""
    order = attention.argsort(descending=True)
    important = k // 2
    rows, line = unit(visual), order[important:]
    while len(line) > k - important:
        go = min(8, len(line) - (k - important))
        others = rows[line]
        similar = (others[::2] @ others[1::2].T).max(-1).values
        line = torch.cat((line[::2][similar.argsort(descending=True)[go:]], line[1::2]))
    return torch.cat((order[:important], line))


def scoredtopk(k: int, *, visual: Tensor, scores: Tensor) -> Tensor:
    """In raster order, as FastV and FasterVLM go on with them."""
    return scores.topk(k).indices.sort().values


Reading = Callable[..., Tensor]

#: By the method's name.
READINGS: dict[str, Reading] = {
    "adaptprune": adaptprune,
    "allinrelevance": allinrelevance,
    "anchorprune": anchorprune,
    "cenprune": cenprune,
    "dart": dart,
    "divprune": divprune,
    "greedyprune": greedyprune,
    "holov": holov,
    "idselection": idselection,
    "scoredtopk": scoredtopk,
    "todre": todre,
    "tome": tome,
    "trimtokenator": trimtokenator,
    "visionzip": visionzip,
    "vispruner": vispruner,
    "zooprune": zooprune,
    "zspaprune": zspaprune,
}
#: Those whose cost is a greedy loop.
GREEDY = (
    "adaptprune",
    "anchorprune",
    "cenprune",
    "divprune",
    "greedyprune",
    "idselection",
    "todre",
    "trimtokenator",
    "zooprune",
    "zspaprune",
)
