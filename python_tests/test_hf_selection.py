# SPDX-License-Identifier: Apache-2.0
"""What is chosen in a model: by which words, in which groups, with which ratings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests import vlm_models, vlms
from python_tests.colours import NAMES, colourful
from python_tests.hf_oracle import NEW, generate
from zspa_kernels.hf.architectures import Target
from zspa_kernels.hf.encode import encode
from zspa_kernels.hf.select import rate
from zspa_kernels.hf.template import Template


@dataclass
class Recorder:
    """A method of one's own, without a base: keeps the first tokens, and all it was asked."""

    keep: int = 2
    calls: list[tuple[list[Tensor], list[Tensor]]] = field(default_factory=list)

    def select_varlen(self, visual: Sequence[Tensor], prompt: Sequence[Tensor]) -> list[Any]:
        self.calls.append((list(visual), list(prompt)))
        chosen = []
        for tokens in visual:
            indices = torch.arange(min(self.keep, len(tokens)))
            chosen.append(zk.Selection(indices, torch.zeros(len(indices), dtype=torch.bool)))
        return chosen


def asked(tiny: vlms.Tiny, text: Sequence[str], **options: Any) -> list[list[str]]:
    """The words that count for each image of prompts with one picture each."""
    pictures = [[vlms.photograph("coffee", (60, 60))] for _ in text]
    inputs = tiny.processor(images=pictures, text=list(text), return_tensors="pt", padding=True)
    recorder = Recorder()
    with zk.hf.prune(tiny.model, recorder, **options) as handle:
        generate(tiny.model, inputs, max_new_tokens=1)
    ((_, prompts),) = recorder.calls
    assert handle.report is not None
    assert handle.report.query_tokens == [len(prompt) for prompt in prompts]
    table = tiny.model.get_input_embeddings().weight
    ids = [[int((table == row).all(-1).nonzero()[0]) for row in prompt] for prompt in prompts]
    return [tiny.processor.tokenizer.convert_ids_to_tokens(row) for row in ids]


@pytest.fixture(scope="module")
def tiny() -> vlms.Tiny:
    return vlms.get("llava")


USER, ASK = "<start> user", "<end> <start> assistant"


def test_the_question_alone_counts(tiny: vlms.Tiny) -> None:
    """P22: words of the chat template would enter the mean."""
    texts = [
        f"<start> system you are helpful <end> {USER} <image> what is this {ASK}",
        f"{USER} <image> who {ASK}",
    ]
    assert asked(tiny, texts) == [["what", "is", "this"], ["who"]]
    everything = asked(tiny, texts, query="all")
    assert everything[1] == ["<start>", "user", "who", "<end>", "<start>", "assistant"]
    assert asked(tiny, texts, query=torch.ones(2, 78, dtype=torch.bool)) == everything
    assert asked(tiny, ["<image> what is this"]) == [["what", "is", "this"]]
    assert asked(tiny, ["what <end> is <end> who <image>"]) == [["who"]]


def test_the_template_is_told_apart_where_the_tokenizer_is_known(tiny: vlms.Tiny) -> None:
    before = [f"{USER} what is <image> {ASK}"]
    # Without it nobody knows that these are no question.
    assert asked(tiny, before) == [["<start>", "user", "what", "is"]]
    earlier = f"<s> <start> system you are helpful <end> {before[0]}"
    for text in (earlier, f"<s> {before[0]}"):
        assert asked(tiny, [text]) == [["<start>", "user", "what", "is"]]
    inside = f"{USER} <image> who <start> is {ASK}"
    assert asked(tiny, [inside], processor=tiny.processor) == [["who", "is"]]
    qwen = vlms.get("qwen2_5_vl")  # which has a token before each picture
    text = f"{USER} what is {qwen.image} {ASK}"
    assert asked(qwen, [text]) == [["<start>", "user", "what", "is"]]
    around = f"{USER} compare <image> and where {ASK}"
    turns = f"{USER} <image> what is this <end> <start> assistant a cat <end> {USER} where {ASK}"
    system = f"<start> system you are helpful <end> {USER} who <image> is this {ASK}"
    expected = [["what", "is"], ["compare", "and", "where"], ["where"], ["who", "is", "this"]]
    for processor in (tiny.processor, tiny.processor.tokenizer):
        got = asked(tiny, [*before, around, turns, system], processor=processor)
        assert got == expected


def test_a_template_is_asked_for_texts_or_parts() -> None:
    """A tokenizer's takes a text, a processor's parts; neither counts what a tokenizer adds."""
    shape: list[type] = []

    def render(messages: list[dict[str, Any]], **options: bool) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        shape.append(type(messages[0]["content"]))
        said = [one["content"] for one in messages]
        first, answer, second = [x if isinstance(x, str) else x[0]["text"] for x in said]
        return f"a b {first} c {answer} d {second} e"

    class Words:
        chat_template: str | None = "its own"

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [0] * add_special_tokens + [ord(word[0]) for word in text.split()]}

        apply_chat_template = staticmethod(render)

    processor = SimpleNamespace(tokenizer=Words(), chat_template="x", apply_chat_template=render)
    expected = Template(before=[97, 98], between=[100], behind=[101], opening=[])
    assert Template.of(Words()) == Template.of(processor) == expected
    assert shape == [str, list]
    for row, left in (
        ([97, 98, 5, 6, 101], [5, 6]),
        ([1, 97, 98, 5, 101], [5]),  # the tokenizer adds a token in front
        ([97, 5, 6], [5, 6]),  # the answer is not asked for, and the beginning is another
        ([97, 98, 5, 100, 6, 100, 7, 101], [7]),
    ):
        assert expected.question(row) == left
    assert Template([97], [], [101], []).question([97, 5]) == [5]
    lines = Template(before=[97], between=[100], behind=[10], opening=[10])
    assert lines.question([97, 5, 10, 6, 10]) == [5, 10, 6]  # a line break in the question
    one, two, three = "zspaquestionone", "zspaanswer", "zspaquestiontwo"
    for rendered in ("the last turn only", f"a {three} c {two} d {one} e", f"{one} {two} {one}"):
        processor.apply_chat_template = lambda messages, text=rendered, **options: text
        assert Template.of(processor) is None

    def refused(*args: Any, **options: bool) -> str:
        raise ValueError("a conversation must begin with a system prompt")

    processor.apply_chat_template = refused
    assert Template.of(processor) is None
    silent = Words()
    silent.chat_template = None
    assert Template.of(silent) is None


def test_a_prompt_may_end_otherwise_than_its_template_says(tiny: vlms.Tiny) -> None:
    """One that forbids the model to think, gives the answer's first words, or asks for none."""

    class Thinking:
        """Writes `<end> <start> assistant <unk>` behind the last question."""

        chat_template = "its own"
        all_special_ids = ()
        decode = tiny.processor.tokenizer.decode

        def __call__(self, text: str, **options: bool) -> Any:
            return tiny.processor.tokenizer(text, **options)

        def apply_chat_template(self, messages: list[dict[str, Any]], **options: bool) -> str:
            turns = [f"<start> {one['role']} {one['content']} <end>" for one in messages]
            return " ".join([*turns, "<start> assistant <unk>"])

    first = f"{USER} <image> what is this"
    texts = [
        f"{first} <end> <start> assistant <unk>",
        f"{first} <end> <start> assistant <unk> <s> <unk>",
        f"{first} <end> <start> assistant a cat",
        f"{first} <end>",
        first,
        f"{first} <end> <start> assistant a cat <end> {USER} who <end>",
        f"{first} <end> <start> assistant a cat <end> {USER} where <end> <start> assistant left",
    ]
    got = asked(tiny, texts, processor=Thinking())
    assert got == [["what", "is", "this"]] * 5 + [["who"], ["where"]]


def test_given_words_and_masks(tiny: vlms.Tiny) -> None:
    texts = [f"{USER} <image> who {ASK}", f"{USER} <image> what is this {ASK}"]
    one = asked(tiny, texts, query=["the cat"], processor=tiny.processor)
    assert one == [["the", "cat"]] * 2
    two = asked(tiny, texts, query=["the cat", "a cup"], processor=tiny.processor.tokenizer)
    assert two == [["the", "cat"], ["a", "cup"]]
    with pytest.raises(ValueError, match="one text, or one for each prompt, 2, got 3"):
        asked(tiny, texts, query=["a", "a", "a"], processor=tiny.processor)
    mask = torch.zeros(2, 72, dtype=torch.bool)
    mask[:, -4:] = True  # the last word, <end> <start> assistant
    got = asked(tiny, texts, query=mask)
    ending = ["<end>", "<start>", "assistant"]
    assert got == [["who", *ending], ["this", *ending]]
    for wrong in (mask[:, 1:], mask[:1]):
        with pytest.raises(ValueError, match=r"query must be \[2, 72\] like input_ids, got \["):
            asked(tiny, texts, query=wrong)


def test_words_of_a_tokenizer_that_adds_tokens(tiny: vlms.Tiny) -> None:
    """Such as one for the beginning, which is no word of a query."""

    def begun(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = tiny.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": [1] * add_special_tokens + ids}

    processor = SimpleNamespace(tokenizer=begun)
    assert asked(tiny, ["<image> who"], query=["the cat"], processor=processor) == [["the", "cat"]]


def test_any_token_that_ends_sequences_ends_the_turn(
    tiny: vlms.Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.model.generation_config
    other = tiny.processor.tokenizer.convert_tokens_to_ids("please")
    monkeypatch.setattr(config, "eos_token_id", [other])
    assert asked(tiny, ["<image> what is please who"]) == [["what", "is"]]
    assert asked(tiny, ["<image> what <end> is please who"]) == [["what"]]
    # Gemma 3's configuration names the marks around its pictures so.
    monkeypatch.setattr(config, "eos_token_id", (other,))
    mark = tiny.processor.tokenizer.convert_tokens_to_ids("what")
    monkeypatch.setattr(tiny.model.config, "boi_token_index", mark, raising=False)
    assert asked(tiny, ["<image> what is please who"]) == [["is"]]


def test_without_words_images_are_pruned_by_diversity(tiny: vlms.Tiny) -> None:
    picture = vlms.photograph("chelsea", (112, 112))
    inputs = tiny.processor(images=picture, text="<image>", return_tensors="pt")
    reports = []
    for method in (zk.ZSPAPrune(keep=9, core_ratio=0.5), zk.DivPrune(keep=9)):
        with method(tiny.model) as handle:
            generate(tiny.model, inputs, max_new_tokens=1)
        assert handle.report is not None
        assert (handle.report.query_tokens, handle.report.core) == ([0], 0)
        reports.append(handle.report.images[0].indices)
    assert torch.equal(*reports)


# ---- groups --------------------------------------------------------------------------------------


def kept(tiny: vlms.Tiny, method: Any, kind: str = "ragged", **options: Any) -> Any:
    with zk.hf.prune(tiny.model, method, **options) as handle:
        generate(tiny.model, tiny.inputs(kind), max_new_tokens=1)
    return handle.report


@pytest.mark.parametrize("name", ["llava_next", "smolvlm", "internvl", "qwen2_5_vl"])
def test_scopes(name: str) -> None:
    tiny = vlms.get(name)
    by_image = kept(tiny, zk.DivPrune(keep=0.3))
    assert [one.after for one in by_image.images] == [
        zk.num_keep(one.before, 0.3) for one in by_image.images
    ]
    by_sample = kept(tiny, zk.DivPrune(keep=0.3), scope="sample")
    first, second, third = by_sample.images
    assert first.after == zk.num_keep(first.before, 0.3)
    assert second.after + third.after == zk.num_keep(second.before + third.before, 0.3)
    by_tile = kept(tiny, zk.DivPrune(keep=0.3), scope="tile")
    assert [one.scope for one in (by_image, by_sample, by_tile)] == ["image", "sample", "tile"]
    for image in by_tile.images:
        tile = image.cell[:, 0].clone()
        for i in range(1, len(tile)):
            tile[i] = tile[i - 1] if tile[i] < 0 else tile[i]  # a newline follows its tile
        for number in tile.unique():
            count = int((tile[image.indices] == number).sum())
            assert count == zk.num_keep(int((tile == number).sum()), 0.3)


@pytest.mark.parametrize("name", [*vlms.QWENS, "lfm3_vl"])
def test_budgets_of_videos(name: str) -> None:
    """A video has one as an image has, each of its times, or shares that of its prompt."""
    tiny = vlms.get(name)
    times = tiny.inputs("video")["video_grid_thw"].tolist()
    report = kept(tiny, zk.DivPrune(keep=0.3), "video")
    assert [(one.sample, one.video) for one in report.images] == [(0, True), (0, False), (1, True)]
    assert "1 image and 2 videos, " in str(report)
    for one, grid in zip(report.images[::2], times, strict=True):
        frames, rows, columns = grid
        axes = (range(frames), range(rows // 2), range(columns // 2))
        assert one.cell.tolist() == [list(cell) for cell in itertools.product(*axes)]
        assert one.after == zk.num_keep(one.before, 0.3)
    by_time = kept(tiny, zk.DivPrune(keep=0.3), "video", scope="tile").images[0]
    for time in range(times[0][0]):
        size = by_time.before // times[0][0]
        assert int((by_time.cell[by_time.indices, 0] == time).sum()) == zk.num_keep(size, 0.3)
    film, picture, other = kept(tiny, zk.DivPrune(keep=0.3), "video", scope="sample").images
    assert picture.after + film.after == zk.num_keep(picture.before + film.before, 0.3)
    assert other.after == zk.num_keep(other.before, 0.3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [case for case in vlms.cases("ragged") if case.values[0] in (*vlms.FILMS, *vlms.GLMS)],
)
def test_one_may_lose_all_of_a_shared_budget(name: str, kind: str) -> None:
    """Its features are none, and no error; nor are there in beams, for which old versions count."""
    tiny = vlms.get(name)
    counts = {"video": [0, 2, 2], "ragged": [2, 0, 2]}[kind]

    class Last(Recorder):
        def select_varlen(self, visual: Sequence[Tensor], prompt: Sequence[Tensor]) -> list[Any]:
            last = [torch.arange(len(one) - self.keep, len(one)) for one in visual]
            core = torch.zeros(self.keep, dtype=torch.bool)
            return [zk.Selection(one, core) for one in last]

    with zk.hf.prune(tiny.model, Last(), scope="sample") as handle:
        both = generate(tiny.model, tiny.inputs(kind), num_beams=2, output_logits=False)
        assert handle.report is not None
        assert [one.after for one in handle.report.images] == counts
        for b, sequence in enumerate(both.sequences):
            alone = generate(tiny.model, tiny.alone(b, kind), num_beams=2, output_logits=False)
            assert torch.equal(alone.sequences[0, -NEW:], sequence[-NEW:])


@pytest.mark.parametrize("name", vlms.FILMS)
def test_times_of_frames_are_no_question(name: str) -> None:
    """Some models' prompts say when each frame was: these words are not the user's."""
    tiny = vlms.get(name)
    recorder = Recorder()
    asked = []
    options: Any
    for options in ({}, {"processor": tiny.processor}, {"query": "all"}):
        with zk.hf.prune(tiny.model, recorder, **options):
            generate(tiny.model, tiny.inputs("video"), max_new_tokens=1)
        table = tiny.model.get_input_embeddings()(torch.arange(vlm_models.VOCABULARY))
        words = [recorder.calls[-1][1][i] for i in (0, 2)]
        ids = [[int((table == row).all(-1).nonzero()[0]) for row in prompt] for prompt in words]
        asked.append([tiny.processor.tokenizer.convert_ids_to_tokens(row) for row in ids])
    assert asked[0] == [["and", "in", "please"], ["describe", "the", "cup"]]
    said = ["what", "time", "is", "in", "and", "in", "please"]  # that word is the user's
    assert asked[1] == [said, ["describe", "the", "cup"]]
    says_times = name.startswith(("qwen3", "lfm3")) or name in vlm_models.GEMMAS
    assert ("time" in asked[2][1]) == says_times


def test_newlines_of_llava_next() -> None:
    """P21: they are all the same vector, so diversity keeps few of them; or all, if asked for."""
    tiny = vlms.get("llava_next")
    free = kept(tiny, zk.DivPrune(keep=0.5), "single").images[0]
    beside = kept(tiny, zk.DivPrune(keep=0.5), "single", keep_newline=True).images[0]
    newline = free.cell[:, 0] < 0
    rows = int(free.cell[~newline & (free.cell[:, 0] > 0), 1].unique().numel())
    assert int(newline.sum()) == rows > 3
    assert int(newline[free.indices].sum()) < rows
    assert int(newline[beside.indices].sum()) == rows
    assert beside.after == rows + zk.num_keep(beside.before - rows, 0.5)
    tokens = tiny.model.model.image_newline
    recorder = Recorder(100)
    kept_all = zk.hf.prune(tiny.model, recorder).install()
    generate(tiny.model, tiny.inputs(), max_new_tokens=1)
    with pytest.warns(zk.hf.NothingPrunedWarning):
        kept_all.remove()
    ((visual, _),) = recorder.calls
    assert torch.equal((visual[0] == tokens).all(-1), newline)
    # Beside newlines every tile is given its own tokens, and keeps its own first two.
    by_tile = Recorder()
    image = kept(tiny, by_tile, "single", keep_newline=True, scope="tile").images[0]
    ((tiles, _),) = by_tile.calls
    left = newline.clone()
    for number, tile in enumerate(tiles):
        own = (image.cell[:, 0] == number).nonzero().flatten()
        assert torch.equal(tile, visual[0][own])
        left[own[:2]] = True
    assert len(tiles) > 2
    assert torch.equal(image.indices, left.nonzero().flatten())


# ---- ratings -------------------------------------------------------------------------------------


# Their projectors are of another form; LLaVA-OneVision's ratings have tests in test_hf_tiles.py.
UNLIKE = (
    "aya_vision", "cohere2_vision", "gemma3", "idefics3", "lfm2_vl", "lfm3_vl", "llava_onevision",
    "mistral3", "ovis2", "smolvlm", *vlms.GLMS,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [case for case in vlms.cases("ragged") if case.values[0] not in UNLIKE],
)
def test_zooprune_rates_what_the_projector_is_given(name: str, kind: str) -> None:
    """Ratings follow their tokens through packing, padding, windows, pictures beside videos."""
    tiny = vlms.get(name)
    target = Target.of(tiny.model)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = target.projector().register_forward_hook(
        lambda _, x, named, y: seen.append(((*x, *named.values())[0], y)), with_kwargs=True
    )
    method = zk.ZOOPrune(keep=0.3, projector=target.projector())
    inputs = tiny.inputs(kind)
    with torch.no_grad():
        encoded = encode(target, inputs, need_features=True)
        ratings = rate(method, target, inputs, encoded)
    handle.remove()
    scores = torch.cat([method.rate(features).flatten() for features, _ in seen])
    projected = torch.cat([made.reshape(-1, made.shape[-1]) for _, made in seen])
    assert ratings is not None
    found = 0
    for token, rating in zip(encoded.tokens, ratings, strict=True):
        same = (projected == token).all(-1).nonzero().flatten()
        if len(same):
            assert rating in scores[same]
            found += 1
        else:
            assert rating.isnan()  # a newline, which the projector has not made
    assert found == int((~ratings.isnan()).sum()) > 0
    report = kept(tiny, method, kind)
    first = report.images[0]
    alone = method.select(encoded.tokens[: first.before], sensitivity=ratings[: first.before])
    assert torch.equal(first.indices, alone.indices)


def test_other_methods() -> None:
    tiny = vlms.get("llava")
    counts = {}
    for method in (zk.ZOOPrune(keep=7, score="norm"), zk.AllInRelevance(7), zk.methods.ToDRE(7)):
        report = kept(tiny, method)
        counts[type(method).__name__] = report.core
        assert [image.after for image in report.images] == [7, 7, 7]
    assert counts == {"ZOOPrune": 0, "AllInRelevance": 21, "ToDRE": 0}


FIVE, NONE = torch.arange(5), torch.zeros(5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (FIVE, "what Fixed selects must be a zk.Selection, got a Tensor"),
        (None, "what Fixed selects must be a zk.Selection, got a NoneType"),
        (zk.Selection(FIVE.float(), NONE), r"indices of Fixed .* got torch.float32 \[5\]"),
        (zk.Selection(~NONE, NONE), r"indices of Fixed must be torch.int64 .* got torch.bool"),
        (zk.Selection(FIVE[None], NONE), r"indices of Fixed must be .* got torch.int64 \[1, 5\]"),
        (zk.Selection(FIVE, FIVE), r"core_mask of Fixed must be torch.bool .* got torch.int64"),
        (zk.Selection(FIVE, NONE[:4]), r"core_mask of Fixed must be .* got torch.bool \[4\]"),
        (zk.Selection(FIVE + 60, NONE), "must be below the number of tokens, 64, got 64"),
    ],
)
def test_what_a_method_of_ones_own_returns_is_checked(
    tiny: vlms.Tiny, returned: Any, text: str
) -> None:
    class Fixed:
        def select(self, visual: Tensor, prompt: Tensor) -> Any:
            return returned

    refused = pytest.raises(zk.hf.UnsupportedMethodError, match=f"^prune: .*{text}")
    with refused, zk.hf.prune(tiny.model, Fixed()):
        generate(tiny.model, tiny.inputs("ragged"), max_new_tokens=1)


def test_one_selection_for_each_image(tiny: vlms.Tiny) -> None:
    class Few:
        def select_varlen(self, visual: Sequence[Tensor], prompt: Sequence[Tensor]) -> Any:
            return [zk.Selection(FIVE, NONE)] * (len(visual) + 1)

    wanted = r"Few\.select_varlen must return a seq"
    refused = pytest.raises(zk.hf.UnsupportedMethodError, match=wanted)
    with refused, zk.hf.prune(tiny.model, Few()):
        generate(tiny.model, tiny.inputs(), max_new_tokens=1)


@pytest.mark.parametrize("name", ["llava", "gemma3", "smolvlm"])
def test_a_method_may_keep_nothing(name: str) -> None:
    tiny = vlms.get(name)
    assert kept(tiny, Recorder(keep=0)).after == 0
    with zk.hf.prune(tiny.model, Recorder(keep=0)):  # features are repeated, one for each beam
        generate(tiny.model, tiny.inputs(), max_new_tokens=1, num_beams=2)


@pytest.mark.parametrize("other", [7, 63])
def test_padding_of_a_selection_is_no_token(tiny: vlms.Tiny, other: int) -> None:
    class Padded:
        def select(self, visual: Tensor, prompt: Tensor) -> Any:
            return zk.Selection(torch.tensor([3, other, -1]), torch.tensor([True, False, True]))

    for image in kept(tiny, Padded()).images:
        assert image.indices.tolist() == [3, other]
        assert image.core_mask.tolist() == [True, False]


# ---- a model that understands colours ------------------------------------------------------------


@pytest.mark.parametrize("colour", NAMES)
def test_the_core_is_the_region_the_prompt_asks_for(colour: str) -> None:
    tiny, inputs, regions = colourful(colour)
    model = tiny.model
    with zk.ZSPAPrune(keep=12, core_ratio=0.5)(model) as handle:
        generate(model, inputs, max_new_tokens=1)
    assert handle.report is not None
    image = handle.report.images[0]
    top, left, bottom, right = regions[colour]
    wanted = [[0, row, column] for row in range(top, bottom) for column in range(left, right)]
    assert image.cell[image.indices[image.core_mask]].tolist() == wanted
    others = image.cell[image.indices[~image.core_mask]].tolist()
    for name in set(NAMES) - {colour}:  # diversity finds the other regions
        top, left, bottom, right = regions[name]
        assert any(top <= row < bottom and left <= column < right for _, row, column in others)
