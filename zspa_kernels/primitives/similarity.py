# SPDX-License-Identifier: Apache-2.0
"""Centred similarity, distinctiveness, and nearness to the text."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import api
from .._contract import primitives as _rules
from ..backends.cpp import _alignment, _centred
from ..backends.cpp import merging as _merging
from ..backends.cpp import relevance_topk as _relevance
from ..backends.reference._common import row_sum
from ._image import (
    ROWS,
    SHORTEST,
    Image,
    contiguous,
    in_full_precision,
    lengths,
    native,
    plain,
    undisturbed,
)

NOISE = 4e-6  # mean cosines closer than this differ by the rounding of float32 only


@undisturbed
def centred(visual: Tensor, *, visual_mask: Tensor | None = None) -> Tensor:
    """Tokens minus the mean of their image's valid ones: cosines of these spread over [-1, 1].

    Args:
        visual: tokens `[B, N, D]` or `[N, D]`.
        visual_mask: bool `[B, N]`, True for real tokens.

    Returns:
        float32, the shape of `visual`; invalid tokens are NaN. The mean is taken in float64. A
        token that equals the mean up to the rounding of float32 is a zero row.

    Raises:
        TypeError, ValueError: as in `select`.

    Complexity: N D. No host synchronisation.

    Source: Cen-Prune, arXiv 2608.30263.

    Example:
        >>> centred(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    _rules.visual("centred", visual, visual_mask)
    if native(visual, visual_mask):
        return _centred.centred(plain(visual), contiguous(visual_mask))
    valid = valid_rows(visual, visual_mask)
    mean = _mean(visual, valid).float().unsqueeze(-2)
    result = visual - mean
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

    Raises:
        TypeError, ValueError: as in `select`.

    Complexity: N D: the mean of cosines is one cosine with the mean of directions.

    Source: Cen-Prune, arXiv 2608.30263.

    Example:
        >>> distinctiveness(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
        [-0.5, -0.5, -0.0]
    """
    _rules.visual("distinctiveness", visual, visual_mask)
    if native(visual, visual_mask):
        return _centred.distinctiveness(plain(visual), contiguous(visual_mask))
    _, mean = api.relevance_topk(
        visual, visual, 0, visual_mask=visual_mask, prompt_mask=visual_mask, pooling="none_mean"
    )
    valid = mean > -torch.inf
    count = valid.sum(-1, keepdim=True)
    others = (mean * count - 1.0) / (count - 1)
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
    _rules.visual_and_prompt("alignment", visual, prompt, visual_mask, prompt_mask)
    if native(visual, prompt, visual_mask, prompt_mask):
        masks = contiguous(visual_mask), contiguous(prompt_mask)
        return _alignment.alignment(plain(visual), plain(prompt), *masks)
    valid, real = valid_rows(visual, visual_mask), valid_rows(prompt, prompt_mask)
    words = prompt.double().masked_fill(~real.unsqueeze(-1), 0.0)
    count = real.sum(-1, keepdim=True)
    mean = (words.sum(-2) / count).unsqueeze(-2)
    spread = row_sum(words.square()).sum(-1, keepdim=True) / count
    scores = _nearness(visual, 2.0 * mean) - spread
    scores = torch.where(real.any(-1, keepdim=True), scores, 0.0)
    return scores.masked_fill(~valid, -torch.inf)


def _nearness(visual: Tensor, twice: Tensor) -> Tensor:
    """`((twice - visual) * visual).sum(-1)`, float64 `[B, N]`; a row depends on itself alone."""
    # Parts of about the same size: a sum of one long row alone might be shared among threads.
    parts = visual.tensor_split(1 + visual.shape[-2] // ROWS, dim=-2)
    return torch.cat([(twice - part.double()).mul_(part).sum(-1) for part in parts], dim=-1)


def word_cosines(
    visual: Tensor,
    prompt: Tensor,
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of all words with all tokens, valid tokens, and words that are not masked out.

    Returns:
        float32 `[B, M, N]`: the relevance to each word by itself; 0 where either has no direction,
        -inf for invalid tokens, anything for words that do not count. Bool `[B, N]` and `[B, M]`.
    """
    visual, prompt = visual.detach(), prompt.detach()
    if native(visual, prompt, visual_mask, prompt_mask):
        masks = contiguous(visual_mask), contiguous(prompt_mask)
        return _relevance.word_cosines(plain(visual), plain(prompt), *masks)
    images = visual if visual.ndim == 3 else visual[None]
    words = prompt if prompt.ndim == 3 else prompt[None]
    # Words as a batch that shares one image: a matrix product has other bits in another batch.
    each = [
        api.relevance_topk(image.expand(len(own), *image.shape), own.unsqueeze(1), 0)[1]
        for image, own in zip(images, words, strict=True)
    ]
    shape = (*prompt.shape[:-1], visual.shape[-2])
    cosine = torch.stack(each).view(shape) if each else prompt.new_zeros(shape, dtype=torch.float32)
    valid, real = valid_rows(visual, visual_mask), valid_rows(prompt, prompt_mask)
    pointed = lengths(visual) >= SHORTEST
    cosine = torch.where(pointed.unsqueeze(-2), cosine, 0.0)
    return cosine.masked_fill(~valid.unsqueeze(-2), -torch.inf), valid, real


def valid_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Bool `[B, N]`: rows of `x` `[B, N, C]` that the ops do not take for masked out."""
    if native(x, mask):
        return _centred.valid_rows(plain(x), contiguous(mask))
    return standing(x, mask).isfinite()


def standing(x: Tensor, mask: Tensor | None) -> Tensor:
    """What the ops take each row for: float32 `[B, N]`, -inf invalid, -1 no direction, else 0.

    The relevance to a prompt without a direction, in one pass over the rows.
    """
    nothing = x.new_zeros((*x.shape[:-2], 1, x.shape[-1]))
    return api.relevance_topk(x, nothing, 0, visual_mask=mask)[1]


def _mean(visual: Tensor, valid: Tensor) -> Tensor:
    """float64 `[..., D]`: mean of each image's valid tokens."""
    total = torch.zeros((), dtype=torch.float64, device=visual.device)
    for part, real in zip(visual.split(ROWS, -2), valid.split(ROWS, -1), strict=True):
        total = total + part.double().masked_fill_(~real.unsqueeze(-1), 0.0).sum(-2)
    return total / valid.sum(-1, keepdim=True)


def until_novel(image: Tensor, ranked: Tensor, least: int, novelty: float, patience: int) -> Tensor:
    """`ranked` `[B, R]` up to the novel token that ends the anchor, then -1."""
    limit = round((1.0 - novelty) * 2.0**40) * 2.0**-40  # exact cosines are multiples of this
    if native(image, ranked):
        ends = ranked.clone(memory_format=torch.contiguous_format)
        _merging.until_novel(plain(image), ends, least, limit, patience)
        return ends
    return _until_novel(image, ranked, least, limit, patience)


@in_full_precision
def _until_novel(image: Tensor, ranked: Tensor, least: int, limit: float, patience: int) -> Tensor:
    rows = [(image, ranked)] if ranked.ndim == 1 else list(zip(image, ranked, strict=True))
    size = torch.zeros(len(rows), dtype=torch.int64, device=ranked.device)
    for b, (tokens, order) in enumerate(rows):
        own = Image(tokens[order[order >= 0]])
        core = torch.arange(min(least, len(own)), device=order.device)
        later = torch.arange(len(core), len(own), device=order.device)
        cosines = own.unit(later) @ own.unit(core).T
        near = cosines >= limit
        i, j = ((cosines - limit).abs() <= own.slack).nonzero(as_tuple=True)
        near[i, j] = own.exact(later[i], core[j]) >= limit
        # A token without direction is not new, and nothing is near it.
        novel = ~(near & own.directed[core]).any(-1) & own.directed[later]
        size[b] = len(core) + 1 + (novel.cumsum(0) < patience).sum()
    place = torch.arange(ranked.shape[-1], device=ranked.device)
    return torch.where(place < size.reshape(*ranked.shape[:-1], 1), ranked, -1)
