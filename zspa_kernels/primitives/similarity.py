# SPDX-License-Identifier: Apache-2.0
"""Centred similarity, distinctiveness, and the choices that sums and thresholds of it make."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import _contract_primitives as _contract
from .. import api
from ..backends.reference._common import row_sum
from ._image import (
    LONGEST,
    ROWS,
    SHORTEST,
    Image,
    images,
    lengths,
    on_grid,
    padded,
    row_of,
    undisturbed,
)

_BLOCK = 64  # similarity rows computed together
_BLOCKS = 16  # of them kept: 16 * 64 * N floats
_SCAN = 62  # tokens looked at together, as many as an int64 has bits


@undisturbed
def centred(visual: Tensor, *, visual_mask: Tensor | None = None) -> Tensor:
    """Tokens minus the mean of their image's valid ones: cosines of these spread over [-1, 1].

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        visual_mask: bool `[B, N]`, True for real tokens.

    Returns:
        float32, the shape of `visual`; invalid tokens are NaN. The mean is taken in float64. A
        token that equals the mean up to the rounding of float32 is a zero row.

    Complexity: N D. No host synchronisation.

    Source: Cen-Prune, arXiv 2608.30263.

    Example:
        >>> centred(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    _contract.visual("centred", visual, visual_mask)
    valid = _valid(visual, visual_mask)
    mean = _mean(visual, valid).float().unsqueeze(-2)
    result = visual - mean if visual.dtype is torch.float32 else visual.float().sub_(mean)
    # What is left of a token that is the mean is the rounding of a subtraction.
    noise = 2.0**-23 * torch.linalg.vector_norm(mean, dim=-1)
    result.masked_fill_((lengths(result) <= noise).unsqueeze(-1), 0.0)
    return result.masked_fill_(~valid.unsqueeze(-1), torch.nan)


@undisturbed
def distinctiveness(visual: Tensor, *, visual_mask: Tensor | None = None) -> Tensor:
    """How unlike the other tokens of its image a token is: minus its mean cosine to them.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        visual_mask: bool `[B, N]`, True for real tokens.

    Returns:
        float32 `[B, N]` in [-1, 1]; -1 for zero rows, NaN for invalid tokens, 0 for a token that
        is alone.

    Complexity: N D: the mean of cosines is one cosine with the mean of directions.

    Source: Cen-Prune, arXiv 2608.30263.

    Example:
        >>> distinctiveness(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
        [-0.5, -0.5, -0.0]
    """
    _contract.visual("distinctiveness", visual, visual_mask)
    _, mean = api.relevance_topk(
        visual, visual, 0, visual_mask=visual_mask, prompt_mask=visual_mask, pooling="none_mean"
    )
    valid = mean > -torch.inf
    count = valid.sum(-1, keepdim=True)
    others = (mean * count - 1.0) / (count - 1).clamp_min(1)
    others = torch.where(lengths(visual) < SHORTEST, 1.0, others.clamp(-1.0, 1.0))
    others = torch.where(count == 1, 0.0, others)
    return (-others).masked_fill(~valid, torch.nan)


@undisturbed
def alignment(
    visual: Tensor,
    prompt: Tensor,
    *,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
) -> Tensor:
    """How near a token is to the text: minus its mean squared distance to the prompt tokens.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        prompt: text embeddings `[B, M, D]` or `[M, D]`; dtype may differ.
        visual_mask: bool `[B, N]`, True for real tokens.
        prompt_mask: bool `[B, M]`, likewise.

    Returns:
        float64 `[B, N]`; -inf for invalid tokens, 0 for all others where no prompt token is valid.

    Raises:
        TypeError, ValueError: as in `select`.

    Complexity: (N + M) D in float64: the mean of squared distances is that to the mean, plus a
    constant. No host synchronisation.

    Source: TrimTokenator, arXiv 2509.00320.

    Example:
        >>> alignment(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0]])).tolist()
        [-1.0, -2.0]
    """
    _contract.visual_and_prompt("alignment", visual, prompt, visual_mask, prompt_mask)
    valid, real = _valid(visual, visual_mask), _valid(prompt, prompt_mask)
    words = prompt.double().masked_fill(~real.unsqueeze(-1), 0.0)
    count = real.sum(-1, keepdim=True).clamp_min(1)
    mean = (words.sum(-2) / count).unsqueeze(-2)
    spread = row_sum(words.square()).sum(-1, keepdim=True) / count
    # Parts of about the same size: a sum of one long row alone might be shared among threads.
    parts = visual.tensor_split(1 + visual.shape[-2] // ROWS, dim=-2)
    sums = [(2.0 * mean - part.double()).mul_(part).sum(-1) for part in parts]
    scores = torch.cat(sums, dim=-1) - spread
    scores = torch.where(real.any(-1, keepdim=True), scores, 0.0)
    return scores.masked_fill(~valid, -torch.inf)


@undisturbed
def min_sum(
    visual: Tensor, k: int, *, seeds: Tensor | None = None, visual_mask: Tensor | None = None
) -> Tensor:
    """Pick k tokens greedily, each of the smallest summed similarity to those selected before.

    The greedy of max-sum dispersion: the smallest sum of cosines is the largest sum of distances
    `1 - cosine`, and the smallest mean. Without seeds the first pick has the smallest sum over all
    tokens.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        k: how many new tokens, in `[0, N]`.
        seeds: int64 `[B, S]`, tokens already selected, never picked; -1 is padding, repeats and
            indices that are no valid token are ignored.
        visual_mask: bool `[B, N]`, True for real tokens.

    Returns:
        int64 `[B, k]` in the order of picking, then -1. Zero rows are picked last.

    Raises:
        TypeError, ValueError: as in `diversity`.

    Complexity: a sum can fall as well as rise, so no stale sum is a bound and every pick needs its
    N cosines: N K D. They are computed for 64 likely next picks at a time, as one matrix product;
    rows of tokens that are not picked are wasted. Measured share of the N^2 cosines at N = 2880,
    K = 288: 13 % on `vlm` tokens, 51 % on independent ones. Waits for the device once a pick.

    Example:
        >>> min_sum(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 2).tolist()
        [2, 0]
    """
    _contract.visual("min_sum", visual, visual_mask, k)
    if seeds is not None:
        _contract.indices("min_sum", "seeds", seeds, visual)
    picks = []
    for b, image in enumerate(images(visual, visual_mask)):
        own = row_of(seeds, b, visual)
        start = [] if own is None else _places(image, own)
        picks.append(image.index[_MinSum(image, start).pick(k)])
    return padded(picks, k, visual)


@undisturbed
def suppress(
    visual: Tensor,
    scores: Tensor,
    k: int,
    *,
    threshold: float,
    fill: bool = True,
    visual_mask: Tensor | None = None,
) -> Tensor:
    """Take tokens by falling score, leaving out those too similar to one taken before.

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        scores: `[B, N]`, any floating dtype; a token whose score is NaN or infinite counts as
            masked out.
        k: how many, in `[0, N]`.
        threshold: a token is left out when its cosine to a taken one is above this, in [-1, 1].
        fill: whether the best of those left out take the slots that remain.
        visual_mask: bool `[B, N]`, True for real tokens.

    Returns:
        int64 `[B, k]` in the order of taking, then -1.

    Raises:
        TypeError, ValueError: as in `diversity`; `threshold` out of range.

    Complexity: up to N K D, in blocks of 64 tokens; it ends with the k-th. Waits for the device
    once a block.

    Source: GreedyPrune, arXiv 2506.13166: scan by saliency under a bound of pairwise similarity.

    Example:
        >>> visual = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> suppress(visual, torch.tensor([0.9, 0.8, 0.1]), 2, threshold=0.9).tolist()
        [0, 2]
    """
    _contract.visual("suppress", visual, visual_mask, k)
    _contract.per_token("suppress", "scores", scores, visual)
    limit = _contract.number("suppress", "threshold", threshold, -1.0, 1.0)
    usable = scores.isfinite() if visual_mask is None else scores.isfinite() & visual_mask
    picks = []
    for b, image in enumerate(images(visual, usable)):
        own = scores if visual.ndim == 2 else scores[b]
        keys = own[image.index].double() + 0.0
        order = keys.sort(descending=True, stable=True).indices
        taken, left = _unsuppressed(image, order, k, limit)
        if fill:
            taken = torch.cat((taken, left[: k - len(taken)]))
        picks.append(image.index[taken])
    return padded(picks, k, visual)


def _valid(visual: Tensor, mask: Tensor | None) -> Tensor:
    valid = lengths(visual) <= LONGEST
    return valid if mask is None else valid & mask


def _mean(visual: Tensor, valid: Tensor) -> Tensor:
    """float64 `[..., D]`: mean of each image's valid tokens."""
    total = torch.zeros((), dtype=torch.float64, device=visual.device)
    for part, real in zip(visual.split(ROWS, -2), valid.split(ROWS, -1), strict=True):
        total = total + part.double().masked_fill_(~real.unsqueeze(-1), 0.0).sum(-2)
    return total / valid.sum(-1, keepdim=True).clamp_min(1)


def _places(image: Image, indices: Tensor) -> list[int]:
    """Where the valid ones among these original indices stand in the image, each once."""
    at = {original: place for place, original in enumerate(image.index.tolist())}
    return list(dict.fromkeys(at[i] for i in indices.tolist() if i in at))


class _MinSum:
    """Sums of similarities to what is selected, and the similarity rows they are made of."""

    def __init__(self, image: Image, selected: list[int]) -> None:
        self.image = image
        device = image.tokens.device
        # Infinite for members, beyond every sum for zero rows, whose cosines are 0.
        self.behind = torch.where(image.directed, 0.0, 2.0 * len(image)).double()
        self.sums = self.behind.clone()
        self.members: list[int] = []
        self.exact = torch.zeros(image.tokens.shape[-1], dtype=torch.float64, device=device)
        self.added = 0  # how many of the members are in `exact`
        self.blocks: list[Tensor] = []
        self.rows: dict[int, Tensor] = {}
        for token in selected:
            self.take(token)

    def pick(self, k: int) -> list[int]:
        picks: list[int] = []
        left = len(self.image) - len(self.members)
        while len(picks) < min(k, left):
            picks.append(self.best())
            self.take(picks[-1])
        return picks

    def take(self, token: int) -> None:
        self.sums += self.row(token)
        self.sums[token] = torch.inf
        self.members.append(token)

    @functools.cached_property
    def all_sums(self) -> Tensor:
        """What the first pick minimises."""
        values, inverse = self.image.values, self.image.inverse
        return (values @ (inverse @ values)).mul_(inverse).double() + self.behind

    def best(self) -> int:
        costs = self.sums if self.members else self.all_sums
        terms = len(self.members) or len(self.image)
        near = (costs <= costs.min() + 2 * terms * self.image.slack).nonzero()[:, 0]
        if len(near) > 1:
            near = self.image.lowest(near)
        if len(near) > 1:
            near = near[self.exact_costs(near).argmin() :]
        return int(near[0])

    def exact_costs(self, tokens: Tensor) -> Tensor:
        everything = torch.arange(len(self.image), device=tokens.device)
        members = torch.tensor(self.members, dtype=torch.int64, device=tokens.device)
        for part in (members[self.added :] if self.members else everything).split(256):
            self.exact += self.image.exact_unit(part).sum(0)
        self.added = len(self.members)
        costs = on_grid(row_sum(self.image.exact_unit(tokens) * self.exact))
        if not self.members:
            self.exact.zero_()
        return costs + self.behind[tokens]

    def row(self, token: int) -> Tensor:
        """float32 `[V]`: cosines of a token with all."""
        if token not in self.rows:
            self.fetch(token)
        return self.rows[token]

    def fetch(self, token: int) -> None:
        """The rows of a token and of those likely to be picked soon: the cheapest now."""
        keys = (self.sums if self.members else self.all_sums).clone()
        keys[list(self.rows)] = torch.inf
        keys[token] = -torch.inf
        block = keys.topk(min(_BLOCK, len(keys)), largest=False).indices
        rows = self.image.cosines(block)
        self.blocks.append(block)
        if len(self.blocks) > _BLOCKS:
            for old in self.blocks.pop(0).tolist():
                self.rows.pop(old, None)
        self.rows.update(zip(block.tolist(), rows, strict=True))


def _unsuppressed(image: Image, order: Tensor, k: int, threshold: float) -> tuple[Tensor, Tensor]:
    """The tokens of `order` that none taken before suppresses, at most k, and those suppressed."""
    taken = order[:0]
    size = (min(k, len(order)) + _SCAN, image.tokens.shape[-1])
    kept = torch.empty(size, dtype=torch.float32, device=order.device)
    left = []
    bits = 1 << torch.arange(_SCAN, device=order.device)
    for block in order.split(_SCAN):
        if len(taken) >= k:
            break
        rows = image.tokens[block].float()
        free = ~_above(image, block, taken, rows @ kept[: len(taken)].T, threshold).any(-1)
        among = _above(image, block, block, rows @ rows.T, threshold)
        alive = 0
        close = (among * bits[: len(block)]).sum(-1).tolist()
        for i, (is_free, suppressors) in enumerate(zip(free.tolist(), close, strict=True)):
            if is_free and not suppressors & alive:
                alive |= 1 << i
        lives = (bits[: len(block)] & alive) != 0
        left.append(block[~lives])
        kept[len(taken) : len(taken) + int(lives.sum())] = rows[lives]
        taken = torch.cat((taken, block[lives]))
    return taken[:k], torch.cat(left) if left else order[:0]


def _above(
    image: Image, rows: Tensor, columns: Tensor, products: Tensor, threshold: float
) -> Tensor:
    """Whether each of `[R, C]` cosines is above the threshold; never with a zero row."""
    cosines = products * (image.inverse[rows, None] * image.inverse[columns])
    above = cosines > threshold
    r, c = ((cosines - threshold).abs() <= image.slack).nonzero(as_tuple=True)
    if len(r):
        above[r, c] = image.exact(rows[r], columns[c]) > threshold
    return above & image.directed[rows, None] & image.directed[columns]
