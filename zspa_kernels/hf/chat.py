# SPDX-License-Identifier: Apache-2.0
"""Conversations: one cache over several turns, of which every prompt was pruned once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import continuation, generating, rollback
from .architectures import Target, transformers_version
from .encode import rebuild
from .errors import PlaceholderMismatchError, UnsupportedInputError, UnsupportedModelError
from .handle import refuse_pruned
from .inputs import input_ids, prune_batch, refuse
from .options import Options, fitted
from .positions import full_positions
from .query import Query, turn_ends
from .report import PruneReport, kv_bytes

#: Caches that are not made for one length.
_GROWING = ("dynamic", "dynamic_full", "offloaded", "quantized")


class ChatState:
    """A conversation whose pruned prompt, positions and cache stay together.

    Give `generate` the whole conversation each time, as the processor makes it of all messages and
    all pictures. What was there before is taken from the cache; new pictures are pruned for the new
    question, old ones stay as they were pruned. An answer that was edited, or that the tokenizer
    splits in another way, is read again, with all that follows. If the conversation changes before
    that (an edited question, another picture), or if the cache cannot forget (a window that is
    full, quantized keys, states older than the last question), all of it is read anew.

    Attributes:
        report: of the last turn that brought pictures, with the lengths of the whole conversation;
            None before.
        reused: tokens that the last turn found in the cache.

    Example:
        See docs/hf.md.
    """

    def __init__(
        self,
        model: Any,
        method: Any,
        *,
        scope: str = "image",
        positions: str = "original",
        keep_newline: bool = False,
        query: Query = "question",
        processor: Any = None,
        merge: bool | None = None,
    ) -> None:
        self.report: PruneReport | None = None
        self.reused = 0
        self._target = Target.of(model)
        self._options = Options(scope, positions, keep_newline, query, processor, merge)
        self._method = fitted(method, self._target, self._options)
        if not self._target.takes_features:
            raise UnsupportedModelError(
                f"ChatState: model must take encoded pictures (mm_encoder_outputs), as those of "
                f"transformers do from 5.20 on, got {type(self._target.model).__name__} with "
                f"{transformers_version()}; prune every turn anew"
            )
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        # The whole conversation `[1, L]`, and the columns of it that are in the pruned prompt.
        self._ids: Tensor | None = None
        self._kept: Tensor | None = None
        self._cache: Any = None
        self._mark: object = None  # as long as it is the cache's, no copy of this has used that
        # What the encoders were given, and where the question ended that came with it.
        self._pictures: dict[str, Tensor] = {}
        self._asked = 0
        # Where the last question ended, and the states that layers had there.
        self._read = 0
        self._saved = rollback.Saved()

    def generate(self, **call: Any) -> Any:
        """`model.generate` for the next turn: same arguments, same result, whole prompts.

        Raises:
            UnsupportedInputError: several conversations, beams, sequences; a cache of fixed size.
            PruningError: as in `prune`.
        """
        refuse_pruned(self._target.model)
        ids = input_ids(call)
        mask = call.get("attention_mask")
        if len(ids) != 1 or (mask is not None and not bool(mask.all())):
            raise UnsupportedInputError(
                f"ChatState: input_ids must be one conversation without padding, "
                f"got {list(ids.shape)}"
            )
        for name in ("num_beams", "num_return_sequences"):
            value = generating.effective(self._target, call, name) or 1
            if value > 1:
                raise UnsupportedInputError(f"ChatState: {name} must be 1, got {value}")
        kind = generating.effective(self._target, call, "cache_implementation")
        if kind is not None and kind not in _GROWING:
            raise UnsupportedInputError(
                f"ChatState: cache_implementation must be one that grows with the conversation, "
                f"{', '.join(_GROWING)}, got {kind!r}"
            )
        if continuation.cache_in(call) is not None:
            raise UnsupportedInputError("ChatState: the cache must be its own, got another one")
        if call.get("input_features") is not None:
            raise UnsupportedInputError(
                "ChatState: input_features must be None, got one: transformers would put a sound "
                "of an earlier turn into the new one; use `with method(model):` for each turn"
            )
        refuse(self._target, call)
        generating.refuse(self._target, call)
        call["attention_mask"] = torch.ones_like(ids)
        names = [x for x in self._target.encoder_arguments() if isinstance(call.get(x), Tensor)]
        shown = {name: call[name] for name in names}
        pictures = {**self._pictures, **shown}
        old = self._known(ids, pictures)
        if old:  # positions are those of pictures that are not given again as well
            call.update(pictures)
        else:
            pictures = shown
        # Before 5.23 types of new tokens are read as if they stood where the cache begins.
        misread = call.get("token_type_ids") is not None and not self._target.slices_features()
        if misread and bool(self._target.visual(ids[:, old:]).any()):
            old = self.reused = 0
        kept, positions, encoded = self._pruned(call, old)
        small = ids[:, kept]
        dict_wanted = generating.effective(self._target, call, "return_dict_in_generate")
        call.pop("return_dict_in_generate", None)
        consumed = self._target.consumed()
        given = {k: v for k, v in call.items() if k not in consumed}
        for name in ("mm_token_type_ids", "token_type_ids"):
            if given.get(name) is not None:
                given[name] = given[name][:, kept]
        given.update(input_ids=small, attention_mask=torch.ones_like(small), position_ids=positions)
        if encoded is not None:
            given["mm_encoder_outputs"] = encoded
        given.update(generating.lengths(self._target, call, ids.shape[1] - small.shape[1]))
        if call.get("streamer") is not None:
            given["streamer"] = generating.WholePrompt(call["streamer"], ids)
        if old:
            given[self._target.cache_name()] = self._cache
        asked = self._question_end(ids) if encoded is not None else self._asked
        read, saved = (self._read, self._saved) if old else (0, rollback.Saved())
        self.reset()  # an error in between leaves a cache that fits no prompt
        if self._target.arch.states:
            read, saved = self._read_question(given, kept, ids) or (read, saved)
        output = self._target.model.generate(**given, return_dict_in_generate=True)
        new = output.sequences[:, small.shape[1] :]
        self._ids = torch.cat((ids, new), dim=1)
        answer = torch.arange(ids.shape[1], self._ids.shape[1], device=ids.device)
        self._kept = torch.cat((kept, answer))
        self._cache = continuation.cache_in(output)
        self._mark = continuation.claim(self._cache)
        self._pictures, self._asked = pictures, asked
        self._read, self._saved = read, saved
        output.sequences = self._ids
        return output if dict_wanted else self._ids

    def _known(self, ids: Tensor, pictures: dict[str, Tensor]) -> int:
        """How many columns of the conversation the cache holds; it is cut behind them."""
        before, self.reused = self._ids, 0
        if before is None or self._kept is None:
            return 0
        length = min(before.shape[1], ids.shape[1])
        differs = (ids[0, :length] != before[0, :length]).nonzero()
        same = int(differs[0]) if len(differs) else length
        if same < self._asked:  # pictures were pruned for another question
            return 0
        # Ids say nothing about pictures. New ones come behind the old ones, along any axis.
        for name, shown in self._pictures.items():
            first = pictures[name][tuple(slice(size) for size in shown.shape)]
            if not torch.equal(first.to(shown.device), shown):
                return 0
        old = min(same, ids.shape[1] - 1)  # there must be something to read
        if old < same and bool(self._target.visual(ids[:, old:]).any()):
            return 0  # a piece of a picture, which would be pruned as a picture
        if self._target.arch.states and old < before.shape[1]:
            old = min(old, self._read)  # states are those of the last question's end
        known = int((self._kept < old).sum())
        if not continuation.owned(self._cache, self._mark):
            self.reset()
            return 0
        self._mark = continuation.claim(self._cache)
        if not rollback.shorten(self._cache, known, self._saved):
            self.reset()
            return 0
        self._ids, self._kept = before[:, :old], self._kept[:known]
        self.reused = int(self._cache.get_seq_length())
        return old

    def _question_end(self, ids: Tensor) -> int:
        """The column behind the last turn of a prompt, of whose answer it may give the beginning.

        Templates open an answer otherwise than they repeat it later, as with a mark for thinking.
        """
        words, ends = ids[0].tolist(), turn_ends(self._target)
        end = max((i + 1 for i, word in enumerate(words) if word in ends), default=0)
        # An end in front of a picture is that of an earlier turn.
        return end if end and not bool(self._target.visual(ids[:, end:]).any()) else len(words)

    def _read_question(
        self, given: dict[str, Any], kept: Tensor, ids: Tensor
    ) -> tuple[int, rollback.Saved] | None:
        """Let the model read a prompt up to its question's end, and save the states it has there.

        Returns the column of the prompt, and the states; None if it has read further before.
        """
        name = self._target.cache_name()
        cache = given.get(name)
        known = 0 if cache is None else int(cache.get_seq_length())
        count = min(int((kept < self._question_end(ids)).sum()), len(kept) - 1)
        column = int(kept[count])
        kind = generating.effective(self._target, given, "cache_implementation")
        inside = bool(self._target.visual(ids[:, column:]).any())  # a picture stands behind it
        if count < known or inside or kind not in (None, "dynamic"):
            return None
        if count == known:
            return column, rollback.save(cache)
        options = {} if cache is None else {name: cache}
        if given.get("mm_encoder_outputs") is not None:
            options["mm_encoder_outputs"] = given.pop("mm_encoder_outputs")
        with torch.no_grad():
            output = self._target.model(
                input_ids=given["input_ids"][:, known:count],
                attention_mask=given["attention_mask"][:, :count],
                position_ids=given["position_ids"][..., known:count],
                use_cache=True,
                logits_to_keep=1,
                **options,
            )
        given[name] = continuation.cache_in(output)
        return column, rollback.save(given[name])

    def _pruned(self, call: dict[str, Any], old: int) -> tuple[Tensor, Tensor, Any]:
        """Kept columns of the conversation, their positions, and the new pictures if any."""
        ids = call["input_ids"]
        columns = torch.arange(old, ids.shape[1], device=ids.device)
        encoded = None
        new = int(self._target.visual(ids[:, old:]).sum())
        if new:
            if not self._target.given(call):
                raise PlaceholderMismatchError(new, 0)
            with torch.no_grad():
                pruned = prune_batch(self._target, call, self._method, self._options, start=old)
            columns = pruned.index[0][pruned.index[0] >= old]
            visual = self._target.visual(ids[0]).nonzero().flatten()
            row = pruned.rows[0]
            encoded = rebuild(pruned.encoded, [row[visual.to(row.device)[row] >= old]])
        kept = columns if self._kept is None or not old else torch.cat((self._kept, columns))
        if encoded is not None:
            images = pruned.report.images
            while sum(image.before for image in images) > new:  # those of earlier turns
                images = images[1:]
            self.report = replace(
                pruned.report,
                images=images,
                prompt_after=[len(kept)],
                kv_bytes_after=kv_bytes(self._target, 1, len(kept)),
            )
        here = torch.arange(len(kept), device=ids.device)[None]
        if self._options.positions == "compact":
            return kept, here.expand(4, -1, -1) if self._target.arch.mrope else here, encoded
        full = full_positions(self._target, call, call["attention_mask"])
        if not self._target.arch.mrope:
            return kept, full[:, kept], encoded
        return kept, torch.cat((here[None], full[..., kept])), encoded
