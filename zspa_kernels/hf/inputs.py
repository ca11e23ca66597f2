# SPDX-License-Identifier: Apache-2.0
"""The core: a processor's output in, a shorter one out; the model is only read."""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import collect, continuation
from . import query as queries
from .architectures import Target, transformers_version
from .encode import Encoded, encode, rebuild
from .errors import (
    AlreadyPrunedError,
    CachedPromptError,
    LabelsError,
    NothingPrunedWarning,
    UnsupportedInputError,
    UnsupportedModelError,
)
from .layout import layout
from .marks import marks
from .options import Options, fitted
from .positions import full_positions, kept_positions
from .query import Query
from .report import PruneReport, describe, lengths
from .select import choose, rate

_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


class PrunedInputs(UserDict[str, Any]):
    """Inputs for `model.generate(**inputs)` or `model(**inputs)`, and what was done to them.

    A mapping, as what a processor returns. It can be used for any number of calls: each is given
    encoded pictures of its own, for `generate` repeats those it is given once for every beam. And
    it says `use_cache=True`: without a cache `generate` forgets a mask of ones, and transformers
    takes gaps in positions for borders of packed sequences. So `generate(**pruned,
    use_cache=False)` is a TypeError; for a forward call write `{**pruned, "use_cache": False}`.

    Attributes:
        report: what was pruned.
        index: int64 `[B, L']`: the column of the unpruned prompt of every column of this one.
            Logits, hidden states and attentions of the pruned prompt are mapped back by it.
        prompt: the unpruned `input_ids`, `[B, L]`.
    """

    report: PruneReport
    index: Tensor
    prompt: Tensor

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if name != "mm_encoder_outputs" or value is None:
            return value
        return {kind: type(output)(**output) for kind, output in value.items()}

    def restore(self, sequences: Tensor) -> Tensor:
        """Generated `sequences` `[R, L' + new]` with the unpruned prompts in front, R = B * n."""
        return restore(self.prompt, self.index.shape[1], sequences)


@dataclass(frozen=True, eq=False)
class Pruned:
    """Everything known about a pruned batch.

    Attributes:
        inputs: the processor's output without what the encoder has read, pruned.
        encoded: all visual tokens, the kept ones with what was merged into them.
        rows: those kept, of each prompt.
        index: see `PrunedInputs`.
        mask: bool `[B, L']`, False at padding.
        positions: `[B, L']` or `[4, B, L']`.
        next_positions: `[B, 1]`, what the first generated token gets.
        unpruned_next: `[B, 1]`, what it would get without pruning.
        report: for the user.
    """

    inputs: dict[str, Any]
    encoded: Encoded
    rows: list[Tensor]
    index: Tensor
    mask: Tensor
    positions: Tensor
    next_positions: Tensor
    unpruned_next: Tensor
    report: PruneReport

    def restore(self, prompt: Tensor, sequences: Tensor) -> Tensor:
        """Generated `sequences` with the unpruned prompts in front."""
        return restore(prompt, self.index.shape[1], sequences)


def prune_inputs(
    model: Any,
    inputs: Mapping[str, Any],
    method: Any,
    *,
    scope: str = "image",
    positions: str = "original",
    keep_newline: bool = False,
    query: Query = "question",
    processor: Any = None,
    merge: bool | None = None,
) -> PrunedInputs:
    """Drop visual tokens from a processor's output.

    The pictures (and videos, where the model takes them) are encoded, the method chooses, and the
    prompt is cut to what it kept: `input_ids`, `attention_mask`, `position_ids` and the encoded
    pictures. The model is read and not changed, so this is safe in threads, with compiled and
    quantised models, and for every way of generating. The generated sequences begin with the pruned
    prompt; `restore` puts the whole one back.

    Args:
        model: one of the supported architectures, or a PEFT model of one.
        inputs: what the model's processor returned, on the model's device. Without an
            `attention_mask` every column counts as a token.
        method: chooses tokens: `ZSPAPrune(keep=0.1)`, or any object with `select_varlen`
            or `select`; see `MethodBase`.
        scope: what shares a budget: every `"image"` or video, every `"tile"` of an image or time
            of a video, or all the images and videos of a prompt (`"sample"`).
        positions: `"original"`: kept tokens keep their positions. `"compact"`: they are renumbered.
        keep_newline: LLaVA-NeXT and LLaVA-OneVision end each row of a picture with one learned
            vector. True keeps them all beside the budget, False chooses among them as among others.
        query: the words that count as the prompt. `"question"`: the text from the first image to
            the end of its turn, without special tokens; `"all"`: every word of the prompt. A list
            of texts, one or one for each prompt (needs `processor`). Or a bool mask `[B, L]` over
            `input_ids`.
        processor: of the model, or its tokenizer. With it `"question"` leaves out what the chat
            template adds.
        merge: whether dropped tokens are merged into kept ones, for a method that can (it has
            `assign`: ToMe, VisionZip). None: if it can. False: they are dropped, as always.

    Returns:
        A mapping for `generate` or a forward call, with `report`, `index` and `restore`.

    Raises:
        UnsupportedModelError: the architecture is unknown, or transformers is older than 5.20; use
            `prune` there.
        UnsupportedMethodError: the method needs a tensor that this model does not give.
        UnsupportedInputError: embeddings instead of ids, labels, a filled cache, videos for a
            model that takes their frames as pictures.
        PlaceholderMismatchError: the prompt has another number of image tokens than the pictures.

    Warns:
        NothingPrunedWarning: no token was dropped.
    """
    options = Options(scope, positions, keep_newline, query, processor, merge)
    target = Target.of(model)
    method = fitted(method, target, options)
    if not target.takes_features:
        raise UnsupportedModelError(
            f"prune_inputs: model must take encoded pictures (mm_encoder_outputs), as those of "
            f"transformers do from 5.20 on, got {type(target.model).__name__} with "
            f"{transformers_version()}; use `with method(model):` instead"
        )
    ids = input_ids(inputs)
    result = PrunedInputs(inputs)
    if not target.given(inputs):
        refuse(target, inputs)
        result.report = PruneReport(repr(method), prompt_before=lengths(inputs))
        result.index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        result.prompt = ids
    else:
        with torch.no_grad():
            pruned = prune_batch(target, inputs, method, options)
        result = PrunedInputs({"use_cache": True, **features_form(pruned)})
        result.report, result.index, result.prompt = pruned.report, pruned.index, ids
    if result.report.after == result.report.before:
        warn_nothing(result.report)
    return result


def restore(prompt: Tensor, length: int, sequences: Tensor) -> Tensor:
    """`sequences` with `prompt` `[B, L]` instead of their first `length` columns."""
    times = len(sequences) // len(prompt)
    whole = prompt.to(sequences.device).repeat_interleave(times, 0)
    return torch.cat((whole, sequences[:, length:]), dim=1)


def features_form(pruned: Pruned) -> dict[str, Any]:
    """What a model that takes encoded pictures is called with."""
    encoded = rebuild(pruned.encoded, pruned.rows)
    given = {"position_ids": pruned.positions, "mm_encoder_outputs": encoded}
    return {**pruned.inputs, **given}


def warn_nothing(what: PruneReport | str) -> None:
    """Say that pruning had no effect, to whoever called the caller."""
    warnings.warn(f"nothing was pruned: {what}", NothingPrunedWarning, stacklevel=3)


def input_ids(inputs: Mapping[str, Any]) -> Tensor:
    """The prompts' ids `[B, L]`."""
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"prune: inputs must be what the processor returned, a mapping, "
            f"got {type(inputs).__name__}"
        )
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        got = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"prune: input_ids must be an int tensor [B, L], got {got}")
    return ids


def refuse(target: Target, inputs: Mapping[str, Any]) -> None:
    """Raise for inputs whose result would be wrong."""
    if isinstance(inputs, PrunedInputs):
        raise AlreadyPrunedError("prune: inputs must not be pruned already, got PrunedInputs")
    if inputs.get("labels") is not None:
        raise LabelsError(
            "prune: labels must be None, got a tensor as long as the unpruned prompt; compute the "
            "loss from the logits, whose columns PrunedInputs.index maps back"
        )
    for name in ("inputs_embeds", "mm_encoder_outputs"):
        if inputs.get(name) is not None:
            raise UnsupportedInputError(
                f"prune: {name} must be None, got one: pictures are pruned that come as "
                f"{' or '.join(one.pixels[0] for one in target.modalities)} beside input_ids, "
                f"neither encoded nor pruned already"
            )
    if inputs.get("pixel_values_videos") is not None and len(target.modalities) == 1:
        old = " before transformers 5.20" if target.arch.videos else ""
        raise UnsupportedInputError(
            f"prune: pixel_values_videos must be None{old}, got one: {target.arch.name} takes the "
            f"frames of a video as pictures, pixel_values"
        )
    if _packed(inputs):
        raise UnsupportedInputError(
            "prune: position_ids must be of one prompt a row, got some that fall, as where prompts "
            "are packed in a row; pad them into a batch, with an attention_mask"
        )
    cache = continuation.cache_in(inputs)
    if cache is not None and cache.get_seq_length() > 0:
        raise CachedPromptError(
            f"prune: the cache must be empty, got one of {cache.get_seq_length()} tokens: a prompt "
            f"that continues it would be cut by the unpruned length; use hf.ChatState for "
            f"conversations"
        )


def _packed(inputs: Mapping[str, Any]) -> bool:
    """Whether positions begin anew within a row, of which nothing is padding."""
    places = inputs.get("position_ids")
    if places is None or inputs.get("attention_mask") is not None:
        return False
    if places.ndim == 3:
        places = places[: len(places) - 3].squeeze(0)  # of three axes none counts tokens
    return bool((places.diff() < 0).any())


def prune_batch(
    target: Target,
    inputs: Mapping[str, Any],
    method: Any,
    options: Options,
    route: str = "inputs",
    start: int = 0,
) -> Pruned:
    """Encode, choose and cut; see `prune_inputs`. The question is looked for from `start` on."""
    refuse(target, inputs)
    ids = input_ids(inputs)
    given = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if given is None else given
    along = {"attention_mask": mask, **{x: inputs[x] for x in _TOKEN_TYPES if x in inputs}}
    for name, one in along.items():
        if one is not None and getattr(one, "shape", None) != ids.shape:
            got = list(one.shape) if isinstance(one, Tensor) else type(one).__name__
            raise ValueError(f"prune: {name} must be {list(ids.shape)} like input_ids, got {got}")
    ids_host, valid = ids.cpu(), mask.cpu().bool()
    visual = target.visual(ids_host)
    if bool((visual & ~valid).any()):
        raise UnsupportedInputError(
            "prune: attention_mask must be 1 at the tokens of pictures and videos, got 0 at some, "
            "which the model would take for padding; leave out what is not to be seen"
        )
    merge = options.merges(method)
    collected = collect.wanted(method, target, inputs)
    with collected.watching(target):
        encoded = encode(target, inputs, getattr(method, "needs_features", False))
    where = layout(target, inputs, ids_host, encoded.sizes)
    asked = valid.clone()
    asked[:, :start] = False
    marked = marks(target.arch, where, ids_host)
    query, processor = options.query, options.processor
    words = queries.embeddings(
        target, ids_host, asked, visual, query, processor, ids.device, marked
    )
    given = collected.tensors(target, inputs, encoded)
    ratings = rate(method, target, inputs, encoded)
    if ratings is not None:
        given["sensitivity"] = ratings
    chosen = choose(
        method, encoded, where, words, options.scope, options.keep_newline, given, merge
    )
    # The answer is read from a prompt's last token, and its positions go on from there.
    last = valid.shape[1] - 1 - valid.long().flip(1).argmax(1)
    chosen.kept[where.column == last[where.sample]] = True

    keep = valid.clone() if not chosen.kept.all() else torch.ones_like(valid)
    keep[where.sample, where.column] = chosen.kept
    index, kept_mask = pack(keep, valid)
    device = ids.device
    index, kept_mask = index.to(device), kept_mask.to(device)
    full = full_positions(target, inputs, mask)
    kept = cut(inputs, target, index, kept_mask)
    rows = chosen.kept.nonzero().flatten()
    samples = where.sample[rows]
    original = options.positions == "original"
    largest = full if full.ndim == 2 else full.amax(0)
    unpruned_next = largest.masked_fill(~mask.bool(), -1).amax(1, keepdim=True) + 1
    report = describe(target, where, chosen, inputs, index, kept_mask)
    return Pruned(
        inputs=kept,
        encoded=chosen.encoded,
        rows=[rows[samples == b].to(encoded.tokens.device) for b in range(len(ids))],
        index=index,
        mask=kept_mask,
        positions=kept_positions(target, full, index, kept_mask, options.positions),
        next_positions=unpruned_next if original else kept_mask.sum(1, keepdim=True),
        unpruned_next=unpruned_next,
        report=replace(
            report,
            method=repr(method),
            query_tokens=[len(one) for one in words],
            scope=options.scope,
            positions=options.positions,
            route=route,
            merged=merge,
        ),
    )


def cut(inputs: Mapping[str, Any], target: Target, index: Tensor, mask: Tensor) -> dict[str, Any]:
    """The inputs of the pruned prompt, without those that only the encoder reads."""
    gone = target.consumed()
    kept = {name: value for name, value in inputs.items() if name not in gone}
    ids = input_ids(inputs).gather(1, index)
    # No padding stands for a piece of a picture: the first column may be one.
    kept["input_ids"] = ids.masked_fill(~mask & target.visual(ids), 0)
    given = inputs.get("attention_mask")
    kept["attention_mask"] = mask.to(ids.dtype if given is None else given.dtype)
    for name in _TOKEN_TYPES:
        if kept.get(name) is not None:
            kept[name] = kept[name].gather(1, index).masked_fill(~mask, 0)
    return kept


def pack(keep: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Columns to keep, `[B, L']`, and which of them are no padding.

    Kept columns keep their order and prompts their side of padding. Padding repeats a column that
    was padding, so that a prompt of which nothing is dropped stays the same bit for bit.
    """
    counts = keep.sum(1)
    length = int(counts.max())
    right = not bool(valid[:, -1].all())
    index = keep.new_zeros((len(keep), length), dtype=torch.long)
    mask = keep.new_zeros((len(keep), length))
    for b, columns in enumerate(keep):
        chosen = columns.nonzero().flatten()
        padding = (~valid[b]).nonzero().flatten()
        index[b] = padding[-1] if len(padding) else 0
        place = slice(0, len(chosen)) if right else slice(length - len(chosen), length)
        index[b, place] = chosen
        mask[b, place] = valid[b, chosen]
    return index, mask
