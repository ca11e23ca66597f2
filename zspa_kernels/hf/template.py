# SPDX-License-Identifier: Apache-2.0
"""What a chat template adds to the words of a user, told from what it makes of marked words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_WORDS = ("zspaquestionone", "zspaanswer", "zspaquestiontwo")


@dataclass(frozen=True)
class Template:
    """The ids that a chat template puts before and behind the last question of a prompt.

    Attributes:
        between: from the end of an answer to the next question, without the space in front of
            that, which a tokenizer may make one token with what follows; may be empty.
        before: from the start of the prompt to its first question.
        behind: from the last question to the end of the prompt, where the answer will begin.
        opening: what `behind` and the text before a given answer both begin with; may be empty.
        turn: what `before` and `between` both end with, the name of a user; may be empty.
        gap: the space behind `between`.
    """

    before: list[int]
    between: list[int]
    behind: list[int]
    opening: list[int]
    turn: list[int] = field(default_factory=list)
    gap: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, processor: Any) -> Template | None:
        """The template of a processor or tokenizer; None if it has none that shows its borders."""
        tokenizer = getattr(processor, "tokenizer", processor)
        own = getattr(processor, "chat_template", None) is not None and tokenizer is not processor
        source = processor if own else tokenizer
        if getattr(source, "chat_template", None) is None:
            return None
        first, answer, second = _WORDS
        messages = [
            # A processor's template takes parts, a tokenizer's takes a text.
            {"role": role, "content": [{"type": "text", "text": word}] if own else word}
            for role, word in (("user", first), ("assistant", answer), ("user", second))
        ]
        try:
            rendered = source.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a program of its author, which may refuse any messages but its own
            return None
        places = [rendered.find(word) for word in _WORDS]
        if places != sorted(places) or any(rendered.count(word) != 1 for word in _WORDS):
            return None  # one that repeats, drops or moves turns says nothing about their borders
        before, rest = rendered.split(first)
        answered, rest = rest.split(answer)
        between, behind = rest.split(second)

        def ids(text: str, behind: str = "") -> list[int]:
            # Many tokenizers put a space in front of a text, but not of what stands behind a word.
            words, known = (
                list(tokenizer(one, add_special_tokens=False)["input_ids"])
                for one in (behind + text, behind)
            )
            return words[len(known) :] if words[: len(known)] == known else ids(text)

        after = ids(behind, second)
        opening = after[: common(after, ids(answered, first))]
        border, spaced = (ids(text, answer) for text in (between.rstrip() or between, between))
        shared = common(border[::-1], ids(before.rstrip())[::-1])
        turn = border[len(border) - shared :]
        if turn and not any(letter.isalpha() for letter in tokenizer.decode(turn)):
            turn = []  # a colon alone is nobody's name
        gap = spaced[len(border) :] if spaced[: len(border)] == border else []
        return cls(ids(before), border, after, opening, turn, gap)

    def question(self, row: Sequence[int]) -> list[int]:
        """What is left of a prompt without padding: its last question, with its image tokens."""
        words = list(row)
        ended = common(words[::-1], self.behind[::-1])
        words = words[: len(words) - ended]
        begun = last(words, self.between)
        if begun is None:
            # A prompt may begin with what the tokenizer adds, such as one for its beginning.
            skip = next((i for i in range(2) if words[i : i + 1] == self.before[:1]), 0)
            known = common(words[skip:], self.before)
            words = words[skip + known :]
            if known < len(self.before) - len(self.gap):  # another begins, as of a system prompt
                begun = last(words, self.turn)
        if begun is not None:
            words = words[begun:]
            words = words[common(words, self.gap) :]
        if ended < len(self.behind):
            # Another end: it forbids the model to think, or gives the first words of the answer.
            begun = last(words, self.opening)
            words = words if begun is None else words[: begun - len(self.opening)]
        return words


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def last(row: Sequence[int], part: Sequence[int]) -> int | None:
    """Where the last occurrence of `part` ends; None if there is none."""
    for start in range(len(row) - len(part), -1, -1):
        if part and list(row[start : start + len(part)]) == list(part):
            return start + len(part)
    return None
