# SPDX-License-Identifier: Apache-2.0
"""Which words of the prompt a token's relevance is measured against.

Every prompt around an image also has words of the chat template (system prompt, names of roles);
their embeddings would enter the mean like the words of the question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .architectures import Target
from .template import Template

Query = str | Sequence[str] | Tensor
QUERIES = ("question", "all")
_SPECIAL = ("_token_id", "_token_ids", "_token_index")  # of a configuration


def check(query: Any, processor: Any) -> None:
    """Raise for a query that means nothing, before any work."""
    if processor is not None and not callable(getattr(processor, "tokenizer", processor)):
        raise TypeError(
            f"prune: processor must be a processor or a tokenizer, got {processor!r:.60}"
        )
    if isinstance(query, str):
        if query not in QUERIES:
            raise ValueError(
                f'prune: query must be "question", "all", a list of texts or a bool mask, '
                f"got {query!r}; write [{query!r}] for a text"
            )
    elif isinstance(query, Tensor):
        if query.dtype != torch.bool:
            raise TypeError(f"prune: query must be a bool mask, got {query.dtype}")
    elif not isinstance(query, Sequence) or not all(isinstance(text, str) for text in query):
        raise TypeError(f"prune: query must be a list of texts or a bool mask, got {query!r:.60}")
    elif processor is None:
        raise TypeError("prune: processor must be given for a query in words, got None")


def embeddings(
    target: Target,
    ids: Tensor,
    valid: Tensor,
    visual: Tensor,
    query: Query,
    processor: Any,
    device: torch.device,
    marked: Tensor,
) -> list[Tensor]:
    """Text embeddings `[m, D]` of each prompt's query; m may be 0.

    Args:
        target: the model.
        ids: `[B, L]` on the host.
        valid: bool `[B, L]` on the host, False at padding.
        visual: bool `[B, L]` on the host, True at image and video tokens.
        query: see `prune_inputs`.
        processor: or tokenizer, or None.
        device: of the model's inputs.
        marked: bool `[B, L]` on the host, True at text that is part of an image or a video.
    """
    # The time of a frame is a word, but not of the question; ends of rows, names of crops are none.
    if isinstance(query, str) and (query == "question" or not target.arch.timed):
        valid = valid & ~marked
    words = _words(target, ids, valid, visual, query, processor)
    table = target.model.get_input_embeddings()
    # Not on the weights' device: offloaded ones are on none until accelerate's hook loads them.
    flat = torch.tensor([i for row in words for i in row], dtype=torch.long, device=device)
    embedded = table(flat[None])[0].detach()
    return list(embedded.split([len(row) for row in words]))


def _words(
    target: Target, ids: Tensor, valid: Tensor, visual: Tensor, query: Query, processor: Any
) -> list[list[int]]:
    """Token ids of each prompt's query."""
    # Nor is a piece of a sound (Gemma 4) a word.
    text = valid & ~visual & (ids != getattr(target.model.config, "audio_token_id", -1))
    if isinstance(query, Tensor):
        if query.shape != ids.shape:
            raise ValueError(
                f"prune: query must be {list(ids.shape)} like input_ids, got {list(query.shape)}"
            )
        return [row[chosen].tolist() for row, chosen in zip(ids, text & query.cpu(), strict=True)]
    if not isinstance(query, str):
        texts = list(query) * len(ids) if len(query) == 1 else list(query)
        if len(texts) != len(ids):
            raise ValueError(
                f"prune: query must have one text, or one for each prompt, {len(ids)}, "
                f"got {len(texts)}"
            )
        encode = getattr(processor, "tokenizer", processor)
        return [list(encode(one, add_special_tokens=False)["input_ids"]) for one in texts]
    rows = [row[chosen].tolist() for row, chosen in zip(ids, text, strict=True)]
    if query == "all":
        return rows
    special = special_tokens(target, processor)
    whole = [row[keep].tolist() for row, keep in zip(ids, valid, strict=True)]
    template = None if processor is None else Template.of(processor)
    if template is not None:
        return [[i for i in template.question(row) if i not in special] for row in whole]
    ends = turn_ends(target)
    shown = {one.token for one in target.modalities}
    return [question(row, shown, ends, special) for row in whole]


def question(row: Sequence[int], shown: set[int], ends: set[int], special: set[int]) -> list[int]:
    """The text from the first image to the end of its turn; before the image if there is none."""
    first = next((i for i, token in enumerate(row) if token in shown), 0)
    behind = row[first:]
    stop = next((i for i, token in enumerate(behind) if token in ends), len(behind))
    words = [token for token in behind[:stop] if token not in special]
    if words:
        return words
    before = row[:first]
    start = max((i + 1 for i, token in enumerate(before) if token in ends), default=0)
    return [token for token in before[start:] if token not in special]


def turn_ends(target: Target) -> set[int]:
    """Ids that end a turn: the model's end-of-sequence ids."""
    config = target.model.config
    text = getattr(config, "text_config", config)
    return ids_of([target.model.generation_config.eos_token_id, text.eos_token_id])


def special_tokens(target: Target, processor: Any) -> set[int]:
    """Ids that are no words: those the configuration names, and the tokenizer's if it is known."""
    config = target.model.config
    parts = (config, getattr(config, "text_config", config), target.model.generation_config)
    shown = {one.token for one in target.modalities}
    return shown | special_ids(parts, getattr(processor, "tokenizer", processor))


def special_ids(configs: Iterable[Any], tokenizer: Any) -> set[int]:
    """Ids that some configurations name, and the special tokens of a tokenizer, if there is one."""
    found: list[Any] = []
    for part in configs:
        values: Mapping[str, Any] = part.to_dict()
        found += [v for k, v in values.items() if k.endswith(_SPECIAL)]
    # Most special tokens of a vocabulary have no role by which `all_special_ids` would know them.
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    special = {number for number, token in added.items() if getattr(token, "special", False)}
    return ids_of(found) | special | set(getattr(tokenizer, "all_special_ids", ()))


def ids_of(values: Iterable[Any]) -> set[int]:
    """The ints among values and lists of values."""
    found: set[int] = set()
    for value in values:
        if isinstance(value, list | tuple):
            found |= ids_of(value)
        elif isinstance(value, int):
            found.add(value)
    return found
