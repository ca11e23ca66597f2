# SPDX-License-Identifier: Apache-2.0
"""The last question of a prompt, as chat templates and tokenizers of published models write it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from zspa_kernels.hf.template import Template

_PARTS = (
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}"
)
# Some names of turns and first words of answers, as short as in the templates of the models named.
GLM = (
    "<s>{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.role == 'assistant' %}<a>{% endif %}" + _PARTS + "{% if m.role == 'assistant' %}</a>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}<|user|>" + _PARTS + "</u>{% else %}"
    "{% if m.role == 'system' %}<|system|>{% endif %}" + _PARTS + "</a>{% endif %}{% endfor %}"
)
LLAVA = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role | upper }}: {% endif %}"
    + _PARTS
    + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
GEMMA = (
    "<s>{% for m in messages %}<|{{ m.role }}|>\n" + _PARTS.replace("<image>", "\n\n<image>\n\n")
    + "</u>{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)  # fmt: skip
SPECIAL = ["<s>", "<|user|>", "<|assistant|>", "<|system|>", "<a>", "</a>", "</u>", "<image>"]


@functools.cache
def tokenizer() -> Any:
    """As Llama's: a space in front of every text, and tokens that begin with their space."""
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    core.normalizer = normalizers.Sequence(spaces)
    said = "USER: ASSISTANT: What is this? Where: here who you are a cat"
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL])
    core.train_from_iterator([*said.split(), "  ", "\n\n", "\n\n\n"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", additional_special_tokens=SPECIAL
    )


def turns(*said: str) -> list[dict[str, Any]]:
    """User and assistant in turns; what begins with `!` is of the system, `@` is a picture."""
    roles = ["user", "assistant"] * len(said)
    messages = []
    for text in said:
        role = "system" if text[0] == "!" else roles.pop(0)
        picture = [{"type": "image"}] * text.count("@")
        content = [*picture, {"type": "text", "text": text.strip("!@")}]
        messages.append({"role": role, "content": content})
    return messages


@pytest.mark.parametrize("template", [GLM, MISTRAL, LLAVA, GEMMA])
@pytest.mark.parametrize(
    "said",
    [
        ["@What is this?"],
        ["!you are a cat", "@What is this?"],
        ["@who", "a cat", "What is this?"],
        ["@who", "a cat", "@What is this?"],
        ["@What <|user|>\n is this?"],  # in the user's own words it begins no turn
        ["!you are", "@who", "a cat", "What is this?"],
        ["!you are", "who", "a cat", "@What is this?"],
        ["@who", "a cat", "Where", "here", "What is this?"],
    ],
)
def test_the_last_question(template: str, said: Sequence[str]) -> None:
    tok = tokenizer()
    tok.chat_template = None

    class Processor:
        tokenizer = tok
        chat_template = template

        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            text: str = tok.apply_chat_template(messages, chat_template=template, **options)
            return text

    processor = Processor()
    found = Template.of(processor)
    assert found is not None
    text = processor.apply_chat_template(turns(*said), tokenize=False, add_generation_prompt=True)
    for answer in ("", " a cat"):  # the answer's first words may be given
        row = tok(text + answer, add_special_tokens=False)["input_ids"]
        left = [i for i in found.question(row) if i not in tok.all_special_ids]
        words = "".join(tok.convert_ids_to_tokens(left)).replace("▁", " ")
        assert words.split() == ["What", "is", "this?"]
        assert "@" in said[-1] or words[0] != "\n"  # which belongs to the name of the turn


def test_a_colon_alone_begins_no_turn() -> None:
    """It may stand in any question; a prompt that begins otherwise keeps it."""
    tok = tokenizer()

    class Colons:
        tokenizer = tok
        chat_template = "{% for m in messages %}{{ m.content[0].text }} {% endfor %}"

        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            first, answer, second = (one["content"][0]["text"] for one in messages)
            return f"<s>: {first}<a>{answer}</a>: {second}</u>"

    found = Template.of(Colons())
    assert found is not None
    row = tok("you : a cat</u>", add_special_tokens=False)["input_ids"]
    assert tok.convert_ids_to_tokens(found.question(row))[0] == "▁you"
