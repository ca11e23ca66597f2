# SPDX-License-Identifier: Apache-2.0
"""vLLM's processing of a prompt, with room for the kept tokens only.

vLLM encodes an image before the language model reads the prompt, and caches the result by the hash
of the image and of the processor's arguments. So everything the selection depends on is put among
these arguments: how much is kept, and, for methods that read the prompt, its words. They travel
with the image to the encoder as fields of its own.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalFieldElem
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    PromptInsertion,
    PromptReplacement,
    PromptUpdateDetails,
)

from ..hf import query
from ..hf.errors import UnsupportedModelError
from ..hf.template import Template
from .batches import MODALITIES, PIXELS, SECONDS, grid
from .options import KEY, Options

#: Fields of an image, each followed by its modality.
KEEP, WORDS, TEXT = "zspa_keep_", "zspa_words_", "zspa_text_"
#: Stands for a visual token, or a picture, among ids of text.
VISUAL = -1
#: What configurations call the ids that stand for visual tokens.
_PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
#: Rows of vLLM's table of angles for each position that a model was trained with.
_TABLE = 4
#: By the kind of an update of the prompt: its field for what is put in.
_CONTENT = {PromptInsertion: "insertion", PromptReplacement: "replacement"}

_inner = inspect.signature(BaseMultiModalProcessor._apply_hf_processor_main)
if list(_inner.parameters) != ["self", "mm_items", "hf_kwargs"]:
    raise UnsupportedModelError(
        "vllm: vLLM must have `_apply_hf_processor_main(mm_items, hf_kwargs)`, as 0.31 to 0.33 do, "
        f"got {_inner}"
    )


class PruningProcessor(BaseMultiModalProcessor[Any]):
    """Mixed into the processor of a model; see `pruning`.

    Attributes:
        inside: text stands between a picture's tokens, all of which have one share. How many of
            them are in front of it is known when they are chosen, so the encoder returns it, too.
    """

    inside: ClassVar[bool] = False

    @functools.cached_property
    def _served(self) -> Options:
        return Options.of(self.info.get_hf_config())

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Unpruned ones: a request may keep everything, and vLLM's budgets must allow for it."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        inputs.hf_processor_mm_kwargs = {**inputs.hf_processor_mm_kwargs, KEY: {"keep": 1.0}}
        # A token behind each, as `_check_places` asks for.
        behind = [*inputs.prompt[1:], None]
        bare = self._shown | {None}
        inputs.prompt = [
            i
            for one, after in zip(inputs.prompt, behind, strict=True)
            for i in ((one, 0) if one in self._shown and after in bare else (one,))
        ]
        return inputs

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """The prompt with its pictures, pruned as the server says, or the request.

        Raises:
            TypeError, ValueError: an option of the request is unknown or out of range, or
                positions have three axes and `_check_places` does not know them.
        """
        # Before anything is cached: vLLM would take what it cached for sent to the engine.
        if self.info.ctx.model_config.uses_mrope:
            counts = inputs.mm_data_items.get_all_counts()
            _check_places(inputs.prompt, sum(counts.values()), self._shown)
        given = dict(inputs.hf_processor_mm_kwargs)
        options = self._served.asked(given.pop(KEY, None))
        chosen: dict[str, Any] = {"method": repr(options.method), "keep": options.method.keep}
        if options.reads and any(name in MODALITIES for name in inputs.mm_data_items):
            words = self._words(inputs.prompt, options.query)
            chosen["words"] = torch.tensor(words, dtype=torch.long)  # hashed at once
        inputs.hf_processor_mm_kwargs = {**given, KEY: chosen}
        return super().apply(inputs, timing_ctx)

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        config = self.info.ctx.model_config
        if config.uses_mrope:
            pictures = [item[0].content for many in mm_res.prompt_updates.values() for item in many]
            spare = sum(one.spread - len(one.full) for one in pictures)
            trained = max(config.hf_text_config.max_position_embeddings, config.max_model_len)
            _check_positions(config.max_model_len + spare, _TABLE * trained)
        return super()._maybe_apply_prompt_updates(mm_items, mm_res)

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        stock, chosen = _split(hf_kwargs)
        data = super()._apply_hf_processor_main(mm_items, stock)
        for modality in MODALITIES:  # sounds stay whole
            if modality not in mm_items:
                continue
            items = mm_items[modality]
            keep = torch.tensor(signed(chosen["keep"]), dtype=torch.float64)
            data[KEEP + modality] = keep.expand(len(items)).clone()
            if "words" in chosen:
                data[WORDS + modality] = [chosen["words"]] * len(items)
        return data

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        stock, _ = _split(hf_processor_mm_kwargs)
        fields = dict(super()._get_mm_fields_config(hf_inputs, stock))
        for name, config in fields.items():
            if name.startswith(PIXELS) and config.modality in MODALITIES:  # moved part by part
                fields[name] = replace(config, field=replace(config.field, keep_on_cpu=True))
        for name in hf_inputs:
            if name.startswith(KEEP):
                modality = name.removeprefix(KEEP)
                for kind, host in ((KEEP, True), (WORDS, False)):
                    field = MultiModalFieldConfig.batched(modality, keep_on_cpu=host)
                    fields[kind + modality] = field
        return fields

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        stock, chosen = _split(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, stock, out_mm_kwargs)
        options = self._served.keeping(chosen["keep"])
        vision = self.info.get_hf_config().vision_config
        return [
            _shortened(update, options, out_mm_kwargs, vision, self.inside)
            if update.modality in MODALITIES
            else update
            for update in updates
        ]

    def _words(self, prompt: Sequence[int], asked: str) -> list[int]:
        """Ids of the words that relevance is measured against."""
        tokenizer = self.info.get_tokenizer()
        if asked not in query.QUERIES:
            words = list(tokenizer.encode(asked, add_special_tokens=False))
            most = self.info.ctx.model_config.max_model_len
            if len(words) > most:  # all are embedded at once, which takes memory of the engine's
                raise ValueError(
                    f"vllm: query must have at most {most} tokens, as a prompt, got {len(words)}"
                )
            return words
        row = self._marked(prompt)
        if asked == "all":
            return [i for i in row if i not in (VISUAL, self._sound)]
        special = self._special | {VISUAL}
        if self._template is not None:
            return [i for i in self._template.question(row) if i not in special]
        words = self.info.ctx.model_config.hf_text_config
        ends = query.ids_of([words.eos_token_id, tokenizer.eos_token_id])
        return query.question(row, {VISUAL}, ends, special)

    def _marked(self, prompt: Sequence[int]) -> list[int]:
        """The prompt with `VISUAL` in the place of each picture, or video."""
        ids, texts = self._marks
        tokenizer = self.info.get_tokenizer()
        # Its last characters may be one token with what follows, so it is looked for in the text.
        pieces = (
            re.split("|".join(map(re.escape, texts)), tokenizer.decode(prompt)) if texts else []
        )
        row = list(prompt)
        if len(pieces) > 1:
            rows = [tokenizer.encode(one, add_special_tokens=False) for one in pieces]
            row = [*rows[0], *(i for one in rows[1:] for i in (VISUAL, *one))]
        return [VISUAL if i in ids else i for i in row]

    @functools.cached_property
    def _marks(self) -> tuple[set[int], list[str]]:
        """By which a prompt says that here is a picture, or a video: ids, and words."""
        ids, texts = set(self._shown), []
        for modality in MODALITIES:
            if modality not in self.info.allowed_mm_limits:
                continue
            text = self.dummy_inputs.get_dummy_text({modality: 1})
            found = list(self.info.get_tokenizer().encode(text, add_special_tokens=False))
            if len(found) == 1:
                ids.update(found)
            elif text and not ids.intersection(found):
                texts.append(text)
        return ids, texts

    @functools.cached_property
    def _special(self) -> set[int]:
        """Ids that are no words."""
        configs = (self.info.get_hf_config(), self.info.ctx.model_config.hf_text_config)
        return query.special_ids(configs, self.info.get_tokenizer())

    @functools.cached_property
    def _shown(self) -> set[int]:
        """Ids that stand for visual tokens."""
        return placeholders(self.info.get_hf_config())

    @functools.cached_property
    def _sound(self) -> int | None:
        """Id that stands for a sound, which is no word either."""
        return getattr(self.info.get_hf_config(), "audio_token_id", None)

    @functools.cached_property
    def _template(self) -> Template | None:
        return Template.of(self.info.get_hf_processor())


def placeholders(config: Any) -> set[int]:
    """Ids that stand for visual tokens."""
    return query.ids_of(getattr(config, name, None) for name in _PLACEHOLDERS)


def _check_places(prompt: Sequence[int], pictures: int, shown: Set[int]) -> None:
    """Raises where the model could not tell positions; see `PruningMRopeModel`.

    It finds pictures by their ids, and where one ends by the text behind it.
    """
    places = [i for i, token in enumerate(prompt) if token in shown]
    if len(places) != pictures:
        raise ValueError(
            "vllm: prompt must have a placeholder for each picture, "
            f"got {len(places)} for {pictures}"
        )
    for i in places:
        if i + 1 == len(prompt) or prompt[i + 1] in shown:
            raise ValueError(
                "vllm: prompt must have a token behind each picture, such as <|vision_end|>, "
                f"got none behind position {i}"
            )


def _check_positions(count: int, most: int) -> None:
    """Raises where an answer could reach positions that vLLM's table of angles does not have."""
    if count > most:
        raise ValueError(
            "vllm: prompt must have fewer or smaller pictures: with an answer of full length it "
            f"has up to {count} positions, got a model with {most}"
        )


def _split(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the stock processor, and ours."""
    stock = dict(kwargs)
    return stock, stock.pop(KEY)


@dataclass
class _Places(PromptUpdateDetails):
    """What is put into a prompt for a picture.

    Attributes:
        spread: positions that it takes on the longest of three axes.
    """

    spread: int = 0


def _shortened(update: Any, options: Options, items: Any, vision: Any, inside: bool) -> Any:
    """An update of the prompt that puts in as many placeholders as tokens are kept.

    When it is made for one of the `items`, that gets a field with the text `inside`.
    """

    def content(item: int) -> _Places:
        details, own = update.resolve(item).content, items[update.modality][item]
        if inside:
            field = MultiModalFieldConfig.batched(update.modality, keep_on_cpu=True).field
            own[TEXT + update.modality] = MultiModalFieldElem(_text(details), field)
        made = _kept_places(details, options, inside)
        made.spread = _spread(details, own, update.modality, vision)
        return made

    return replace(update, **{_CONTENT[type(update)]: content})


def _spread(details: PromptUpdateDetails, item: Any, modality: str, vision: Any) -> int:
    """Positions of a picture, and of the text inside, on the longest of its axes.

    0 where there is one axis for all of a prompt.
    """
    size = item.get(grid(modality))
    if size is None:
        return 0
    time, height, width = map(int, size.data)
    merged = int(vision.spatial_merge_size)
    longest = max(height // merged, width // merged)
    text = int((_text(details) != VISUAL).sum())
    if text:  # around each frame, which is a picture
        return text + time * longest
    lasts = float(time)
    seconds = item.get(SECONDS)
    if seconds is not None:
        lasts *= float(seconds.data) * getattr(vision, "tokens_per_second", 1)
    return max(math.ceil(lasts), longest)


def _kept_places(details: PromptUpdateDetails, options: Options, inside: bool) -> _Places:
    """As many placeholders as tokens are kept, the first ones of each run; text stays.

    With text `inside` nobody knows yet where between the kept tokens it will be, but all of it
    will: there are placeholders for it, too.
    """
    embedded = [one == VISUAL for one in _text(details).tolist()]
    if inside:
        mark = details.full[embedded.index(True)]
        count = options.count(sum(embedded)) + embedded.count(False)
        return _Places([mark] * count)
    full, mask, done = [], [], 0
    for is_embed, group in itertools.groupby(embedded):
        size = len(list(group))
        left = options.count(size) if is_embed else size
        full += details.full[done : done + left]
        mask += [is_embed] * left
        done += size
    kept = torch.tensor(mask)
    return _Places(full, None if all(mask) else lambda _: kept)


def _text(details: PromptUpdateDetails) -> Tensor:
    """Ids that stand for a picture; `VISUAL` for its tokens."""
    ids = torch.tensor(details.full)
    if details.is_embed is None:
        return torch.full_like(ids, VISUAL)
    return ids.masked_fill(details.is_embed(details.full), VISUAL)


@functools.cache
def pruning(
    stock: type[BaseMultiModalProcessor[Any]], inside: bool = False
) -> type[PruningProcessor]:
    """A processor of vLLM's that leaves room for the kept tokens only."""
    more = {"__module__": __name__, "inside": inside}
    return type(f"Zspa{stock.__name__}", (PruningProcessor, stock), more)


def signed(keep: float) -> float:
    """A share, or a count with a minus, in one number of a tensor; see `asked`."""
    return -keep if isinstance(keep, int) else keep


def asked(keep: Tensor) -> list[float]:
    """What is kept of each picture: a share, or a count."""
    return [value if value > 0 else int(-value) for value in keep.tolist()]
