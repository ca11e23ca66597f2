# SPDX-License-Identifier: Apache-2.0
"""What the processors of `official_processors` are made of: prompts, a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from python_tests.vlm_models import VOCABULARY


@dataclass(frozen=True)
class Style:
    """How a prompt is written: its beginning, a turn of the user, where the answer begins.

    `stop` is the token that ends an answer, and in most models every turn. `thought` opens an
    answer and is left out where that is repeated.
    """

    begin: str
    user: str
    end: str
    answer: str
    image: str
    video: str = ""
    stop: str = "</s>"
    thought: str = ""

    @property
    def template(self) -> str:
        """For messages of parts."""
        texts = {"image": self.image, "video": self.video}
        shown = "".join(
            f"{{% elif part.type == '{kind}' %}}{text}" for kind, text in texts.items() if text
        )
        return (
            f"{self.begin}{{% for m in messages %}}"
            f"{{% if m.role == 'user' %}}{self.user}{{% else %}}{self.answer}{{% endif %}}"
            "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
            f"{shown}{{% endif %}}{{% endfor %}}{self.end}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{self.answer}{self.thought}{{% endif %}}"
        )


@dataclass(frozen=True, eq=False)
class Official:
    """A processor.

    Attributes:
        processor: with a chat template.
        style: of that template.
        tokens: what names of ids in the model's configuration stand for.
    """

    processor: Any
    style: Style
    tokens: Mapping[str, str | list[str]]

    def prompt(self, *parts: str) -> str:
        """A question of texts, of which `"image"` and `"video"` stand for one."""
        return self.conversation(parts)

    def conversation(self, *turns: Sequence[str]) -> str:
        """The same with questions and answers in turns."""
        messages = [
            {
                "role": role,
                "content": [
                    {"type": part} if part in ("image", "video") else {"type": "text", "text": part}
                    for part in parts
                ],
            }
            for role, parts in zip(("user", "assistant") * len(turns), turns, strict=False)
        ]
        text: str = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return text


def tokenizer(marks: Sequence[str], **named: str) -> Any:
    """Of bytes and special tokens, of which it knows some by the names of their roles."""
    ordinary = ["<pad>", "<s>", "</s>", "<unk>"]
    words = dict.fromkeys(
        [*ordinary, *marks, *named.values(), *pre_tokenizers.ByteLevel.alphabet()]
    )
    assert len(words) <= VOCABULARY, len(words)
    core = Tokenizer(
        models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    pad, begin, end, unknown = ordinary
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        unk_token=unknown,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=named,
    )
    made.add_tokens(list(marks), special_tokens=True)
    return made


def square(kind: Any, side: int, **options: Any) -> Any:
    return kind(size={"height": side, "width": side}, **options)


VICUNA = Style("", "USER: ", " ", "ASSISTANT:", "<image>\n", "<video>\n")
TURNS = ["<|im_start|>", "<|im_end|>"]


def chatml(image: str, video: str = "", begin: str = "", gap: str = "\n") -> Style:
    user, answer = f"<|im_start|>user{gap or ' '}", "<|im_start|>assistant\n"
    return Style(begin, user, f"<|im_end|>{gap}", answer, image, video, "<|im_end|>")
