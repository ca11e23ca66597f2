# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine with pruned models against transformers with the same ones.

`make vllm` runs these with every model; `make test` with some, in a process of their own, because
vLLM wants another transformers: see `test_vllm`.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding
from vllm.model_executor.models import ModelRegistry
from vllm.plugins import load_general_plugins

import zspa_kernels as zk
from python_tests import vllm_delta, vllm_gemma4, vllm_models
from python_tests.vlm_models import QWEN_IMAGE, QWENS, STATES
from python_tests.vlms import photograph, video
from zspa_kernels.vllm import ARCHITECTURES, models, options, overrides, processor
from zspa_kernels.vllm import model as pruned_model

ASKED = os.environ.get("ZSPA_VLLM_MODELS", "all")
NAMES = list(vllm_models.BUILDERS) if ASKED == "all" else ASKED.split()
KEEP = 0.3
STEPS = 5
QUESTIONS = ("what is in this picture", "count the objects on the table", "what colour is the cat")


#: Their positions have three axes.
MROPE = (*QWENS, *vllm_models.GLMS)
GEMMAS = ("gemma4", "gemma4_moe", "gemma4_unified")
#: Models with videos, beside those.
FILMS = ("llava_onevision", "internvl", "internvl_chat", *QWENS)
#: How a prompt says that here is a picture.
PLACES = {
    "gemma3": "image <boi>",  # without the word, line breaks around two pictures are one token
    **dict.fromkeys(("mistral3", "pixtral"), "[IMG]"),
    **dict.fromkeys(QWENS, QWEN_IMAGE),
    **dict.fromkeys(vllm_models.GLMS, vllm_models.GLM_IMAGE),
}


@dataclass
class Engine:
    """One engine, and the same model in transformers."""

    name: str
    llm: Any
    model: Any
    processor: Any
    picked: list[Any] = field(default_factory=list)

    @property
    def image(self) -> str:
        return PLACES.get(self.name, "<image>")

    def prompt(self, words: str, pictures: int = 1) -> str:
        return f"<start> user {f'{self.image} ' * pictures}{words} <end> <start> assistant"

    def request(self, words: str, *pictures: Any, **asked: Any) -> dict[str, Any]:
        more = {"mm_processor_kwargs": {"zspa": asked}} if asked else {}
        prompt = self.prompt(words, len(pictures))
        return {"prompt": prompt, "multi_modal_data": {"image": list(pictures)}, **more}

    def answers(self, *requests: Any, **more: Any) -> list[Any]:
        sampling = SamplingParams(max_tokens=STEPS, temperature=0, logprobs=2, ignore_eos=True)
        return list(self.llm.generate(list(requests), sampling, use_tqdm=False, **more))

    def inputs(self, words: str, *pictures: Any, **how: Any) -> Any:
        """A prompt for transformers."""
        text = self.prompt(words, len(pictures))
        return self.processor(images=list(pictures), text=text, return_tensors="pt", **how)

    def tokens(self, words: str, *pictures: Any) -> int:
        """How many tokens the pictures have, unpruned."""
        mark = self.model.config.image_token_id
        return int((self.inputs(words, *pictures)["input_ids"] == mark).sum())

    def tokens_seen(self) -> int:
        """How many were chosen among, since `picked` was cleared."""
        return sum(len(visual) for _, visual, _ in self.picked)

    def expected(
        self, method: Any, words: str, *pictures: Any, **how: Any
    ) -> tuple[int, torch.Tensor]:
        """Length of the pruned prompt, and logits `[steps, V]`, by transformers."""
        return self.logits(method, self.inputs(words, *pictures), **how)

    def logits(self, method: Any, inputs: Any, **how: Any) -> tuple[int, torch.Tensor]:
        for name in ("token_type_ids", "mm_token_type_ids") if "gemma" in self.name else ():
            inputs.pop(name, None)  # vLLM has no bidirectional attention on CPUs
        how["positions"] = "original" if self.name in MROPE else "compact"
        with zk.hf.prune(self.model, method, processor=self.processor, **how) as handle:
            logits = self.whole(inputs)
        report: Any = handle.report
        return report.prompt_after[0], logits

    def whole(self, inputs: Any) -> torch.Tensor:
        """Logits `[steps, V]` by the model as it is."""
        made = self.model.generate(
            **inputs,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack(made.logits)[:, 0]


def agree(answer: Any, expected: tuple[int, torch.Tensor]) -> None:
    """Length and the probabilities of every step, until two tokens are as good as equal."""
    length, logits = expected
    assert len(answer.prompt_token_ids) == length
    steps = zip(answer.outputs[0].logprobs, logits.log_softmax(-1), strict=True)
    compared = 0
    for found, wanted in steps:
        for token, one in found.items():
            assert one.logprob == pytest.approx(float(wanted[token]), abs=1e-5)
        compared += 1
        best = wanted.topk(2).values
        if best[0] - best[1] < 1e-3:
            break
    assert compared


def load(folder: Path, **more: Any) -> LLM:
    arguments: dict[str, Any] = {
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": 256,
        "limit_mm_per_prompt": {"image": 3},
        "seed": 0,
        **more,
    }
    return LLM(str(folder), **arguments)


def here() -> None:
    """Has vLLM look at the models in this process, and not in one of its own for each.

    Those import everything anew. LLaVA stays as the plug-in registers it.
    """
    load_general_plugins()
    for name in ARCHITECTURES:
        if name != "LlavaForConditionalGeneration":
            ModelRegistry.register_model(f"Zspa{name}", getattr(models, f"Zspa{name}"))


@contextlib.contextmanager
def running(name: str, folder: Path, how: Any, **more: Any) -> Iterator[Engine]:
    """An engine with a model that lies in `folder`, pruned as `how` says."""
    here()
    more = {**vllm_models.SERVED.get(name, {}), **more}
    model, processor = vllm_models.save(name, folder)
    with pytest.MonkeyPatch.context() as patch:
        if name in STATES:
            vllm_delta.install(patch)
            # Beside the model, transformers takes it for Qwen3.5's own.
            processor.tokenizer.save_pretrained(folder / "tokenizer")
            more["tokenizer"] = str(folder / "tokenizer")
        vllm_gemma4.install(patch)
        llm = load(folder, hf_overrides=how, **more)
        made = Engine(name, llm, model, processor)
        try:
            yield made
        finally:
            del llm, made.llm
            gc.collect()
            cleanup_dist_env_and_memory()


@pytest.fixture(scope="module", params=NAMES)
def engine(request: Any, tmp_path_factory: Any) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp(request.param)
    with (
        running(request.param, folder, overrides(keep=KEEP)) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        choose = options.kept

        def noted(method: Any, visual: Any, prompt: Any) -> Any:
            chosen = choose(method, visual, prompt)
            made.picked += zip(chosen, visual, prompt or [None] * len(visual), strict=True)
            return chosen

        patch.setattr(pruned_model, "kept", noted)
        yield made


CAT, ROCKET, CUP = (
    photograph(name, size)
    for name, size in (("chelsea", (170, 112)), ("rocket", (120, 150)), ("coffee", (130, 100)))
)


def test_an_answer_is_that_of_transformers(engine: Engine) -> None:
    for words, pictures in ((QUESTIONS[0], [CAT]), (QUESTIONS[1], [ROCKET, CUP])):
        engine.picked.clear()
        (answer,) = engine.answers(engine.request(words, *pictures))
        method = zk.ZSPAPrune(keep=KEEP)
        agree(answer, engine.expected(method, words, *pictures))
        assert engine.tokens_seen() == engine.tokens(words, *pictures)
        for chosen, visual, prompt in engine.picked:
            assert chosen.tolist() == method.select(visual, prompt).indices.tolist()


def test_requests_of_one_batch_keep_what_each_asks_for(engine: Engine) -> None:
    asked = [0.2, 7, 1.0, 0.5]
    requests = [
        engine.request(QUESTIONS[i % 3], [CAT, ROCKET, CUP][i % 3], keep=keep)
        for i, keep in enumerate(asked)
    ]
    for i, (answer, keep) in enumerate(zip(engine.answers(*requests), asked, strict=True)):
        method = zk.ZSPAPrune(keep=keep)
        agree(answer, engine.expected(method, QUESTIONS[i % 3], [CAT, ROCKET, CUP][i % 3]))


def test_the_same_picture_is_chosen_from_anew_for_another_question(engine: Engine) -> None:
    engine.picked.clear()
    for words in (*QUESTIONS[:2], QUESTIONS[0]):
        engine.answers(engine.request(words, CUP, keep=0.4))
    # The third is the first again: nothing is encoded.
    assert engine.tokens_seen() == 2 * engine.tokens(QUESTIONS[0], CUP)
    half = len(engine.picked) // 2
    (_, picture, one), (_, again, other) = engine.picked[0], engine.picked[half]
    assert picture.equal(again)
    assert one.shape != other.shape or not one.equal(other)


@pytest.mark.parametrize(
    ("asked", "query"),
    [("all", "all"), ("the red cup", ["the red cup"])],
)
def test_relevance_to_other_words(engine: Engine, asked: str, query: Any) -> None:
    engine.picked.clear()
    (answer,) = engine.answers(engine.request(QUESTIONS[0], ROCKET, query=asked))
    if query == "all":  # without what processors write for pictures
        tokenizer = engine.processor.tokenizer
        sent = tokenizer(engine.prompt(QUESTIONS[0]))["input_ids"]
        places = tokenizer.convert_tokens_to_ids(
            ["<image>", "<boi>", "[IMG]", "<|image_pad|>", "<|image|>"]
        )
        words = [i for i in sent if i not in places or i == tokenizer.unk_token_id]
        embedded = engine.model.get_input_embeddings()(torch.tensor(words))
        assert engine.picked
        assert all(prompt.allclose(embedded) for _, _, prompt in engine.picked)
        ids = engine.inputs(QUESTIONS[0], ROCKET)["input_ids"]
        query = torch.isin(ids, torch.tensor(words))
    method = zk.ZSPAPrune(keep=KEEP)
    agree(answer, engine.expected(method, QUESTIONS[0], ROCKET, query=query))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keep": 0.0}, "keep must be a share in \\(0, 1\\]"),
        ({"keep": "many"}, "keep must be a float"),
        ({"keep": 10**400}, "keep must fit in 64 bits"),
        ({"query": 3}, "query must be a text"),
        ({"query": "word " * 1000}, "query must have at most \\d+ tokens, as a prompt, got 1000"),
        ({"core_ratio": 0.1}, "may have keep, query, got 'core_ratio'"),
    ],
)
def test_a_wrong_request_is_refused_and_the_next_one_answered(
    engine: Engine, asked: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        engine.answers(engine.request(QUESTIONS[0], CAT, **asked))
    engine.answers(engine.request(QUESTIONS[0], CAT))


@pytest.mark.parametrize(
    ("prompt", "pictures", "message"),
    [
        ("what is PAD PAD <end>", 2, "a token behind each picture, such as"),
        ("what is this PAD", 1, "a token behind each picture, such as"),
        ("<|video_pad|> what is PAD <end>", 1, "a placeholder for each picture"),
        ("PAD what is PAD <end>", 1, "a placeholder for each picture"),
    ],
)
def test_places_of_pictures(engine: Engine, prompt: str, pictures: int, message: str) -> None:
    """Positions with three axes: the model finds pictures by ids, and text behind them."""
    mark = engine.image.split()[1] if engine.name in MROPE else engine.image
    text = prompt.replace("PAD", mark)
    if engine.name in vllm_models.GLMS:
        text = text.replace("<|video_pad|>", "<|video|>")
    given = [CAT, CUP][:pictures]
    request = {"prompt": text, "multi_modal_data": {"image": given}}
    if engine.name not in MROPE:
        (answer,) = engine.answers(request)
        length, _ = engine.expected(zk.ZSPAPrune(keep=KEEP), QUESTIONS[0], *given)
        other = engine.prompt(QUESTIONS[0], pictures)
        assert len(answer.prompt_token_ids) == length + len(text.split()) - len(other.split())
        return
    with pytest.raises(ValueError, match=message):
        engine.answers(request)
    # Nothing of it is taken for sent to the engine, where the same pictures and words need it.
    words = " ".join(word for word in prompt.split() if word.islower() and word.isalpha())
    (answer,) = engine.answers(engine.request(words, *given))
    agree(answer, engine.expected(zk.ZSPAPrune(keep=KEEP), words, *given))


def test_the_first_request_finds_all_warm(engine: Engine) -> None:
    processor = engine.llm.llm_engine.renderer.mm_processor
    limits = processor.info.allowed_mm_limits
    made = processor.get_dummy_mm_inputs({name: 2 for name, most in limits.items() if most})
    assert {name: len(places) for name, places in made["mm_placeholders"].items()} == {
        name: 2 for name, most in limits.items() if most
    }
    # Pixels wait on the host; the model takes as many at once as vLLM reserved memory for.
    pictures = [item for name in ("image", "video") for item in made["mm_kwargs"].get(name, [])]
    held = [elem for item in pictures for name, elem in item.items() if "pixel" in name]
    assert held
    assert all(elem.field.keep_on_cpu for elem in held)


def test_positions_beyond_the_table_are_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = photograph("rocket", (500, 28))  # 18 columns of Qwen's, of which one token stays
    config = engine.llm.llm_engine.renderer.mm_processor.info.ctx.model_config
    [rows] = engine.llm.apply_model(
        lambda model: {len(m.cos_sin_cache) for m in model.modules() if type(m) is MRotaryEmbedding}
    )
    trained = config.hf_text_config.max_position_embeddings
    assert rows == ({processor._TABLE * trained} if engine.name in MROPE else set())
    monkeypatch.setattr(config.hf_text_config, "max_position_embeddings", 64)
    request = engine.request(QUESTIONS[2], wide, wide, keep=1)
    monkeypatch.setattr(config, "max_model_len", 64)
    monkeypatch.setattr(processor, "_TABLE", 1.5)
    if engine.name not in MROPE:  # kept tokens are renumbered
        engine.answers(request)
        return
    for _ in range(2):  # once more from the cache
        with pytest.raises(ValueError, match="up to 98 positions, got a model with 96"):
            engine.answers(request)
    engine.answers(engine.request(QUESTIONS[1], wide, keep=1))


def test_crops_of_gemma(engine: Engine) -> None:
    if engine.name != "gemma3":
        pytest.skip("others crop by themselves, or not at all")
    crops = {
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 40,
        "pan_and_scan_max_num_crops": 1,  # line breaks of two would be one token
        "pan_and_scan_min_ratio_to_activate": 1.4,
    }
    inputs = engine.inputs(QUESTIONS[0], CAT, **crops)
    assert len(inputs["pixel_values"]) == 2
    request = engine.request(QUESTIONS[0], CAT, CUP)
    request["mm_processor_kwargs"] = crops
    (answer,) = engine.answers(request)
    inputs = engine.inputs(QUESTIONS[0], CAT, CUP, **crops)
    words = [f"image image {QUESTIONS[0]}"]  # without those that the processor writes
    agree(answer, engine.logits(zk.ZSPAPrune(keep=KEEP), inputs, query=words))


def test_videos(engine: Engine) -> None:
    if engine.name in (*GEMMAS, *vllm_models.GLMS):
        pytest.skip("see below")
    # A film shorter than it is wide: behind a longer one, transformers and vLLM number text apart.
    film = np.stack([np.asarray(frame) for frame in video("coffee", 4)])
    told = {"fps": 4.0, "total_num_frames": 4, "frames_indices": list(range(4)), "duration": 1.0}
    about = {**told, "video_backend": "opencv", "do_sample_frames": False}
    timed = engine.name in QWENS and engine.name != "qwen2_vl"
    place = "<|vision_start|> <|video_pad|> <|vision_end|>" if engine.name in QWENS else "<video>"
    text = f"<start> user {place} what is in this film <end> <start> assistant"
    data: dict[str, Any] = {"video": [(film, about)] if timed else [film]}
    more: dict[str, Any] = {}
    if engine.name in QWENS:
        text = text.replace(place, f"{engine.image} {place}")
        data["image"] = more["images"] = [CAT]

    def asked(keep: float) -> Any:
        options = {"mm_processor_kwargs": {"zspa": {"keep": keep}}}
        return {"prompt": text, "multi_modal_data": data, **options}

    if engine.name not in FILMS:
        with pytest.raises(VLLMValidationError, match="At most 0 video"):
            engine.answers(asked(KEEP))
        return
    part, whole = engine.answers(asked(KEEP), asked(1.0))
    if engine.name == "llava_onevision":  # whose videos this transformers cannot prune
        words = len(text.split()) - 1
        tokens = len(whole.prompt_token_ids) - words
        assert len(part.prompt_token_ids) - words == zk.num_keep(tokens, KEEP)
        return
    if timed:
        more["video_metadata"] = [told]
    inputs = engine.processor(
        videos=[film], text=text, return_tensors="pt", do_sample_frames=False, **more
    )
    how: dict[str, Any] = {}
    if "internvl" in engine.name:  # to transformers, the numbers of its frames are words
        how["query"] = ["what is in this film"]
    elif engine.name.startswith("qwen3"):
        how["scope"] = "tile"
    agree(part, engine.logits(zk.ZSPAPrune(keep=KEEP), inputs, **how))
    agree(whole, engine.logits(zk.ZSPAPrune(keep=1.0), inputs))


@pytest.mark.parametrize("length", [1, 2])
def test_frames_of_glm(engine: Engine, length: int) -> None:
    """Videos are pictures with their times behind them, as which transformers is given them here.

    Two frames make one; a picture is two equal ones.
    """
    if engine.name not in vllm_models.GLMS:
        pytest.skip("others have videos of another kind")
    told = {"fps": 2.0, "total_num_frames": 2 * length, "duration": float(length)}
    about = {**told, "frames_indices": list(range(2 * length)), "do_sample_frames": False}
    pictures = video("coffee", length)
    film = np.stack([np.asarray(one) for one in pictures for _ in range(2)])
    text = f"<start> user {engine.image} FILM what is in this film <end> <start> assistant"
    begin, end = "<|begin_of_video|>", "<|end_of_video|>"
    given = {
        "prompt": text.replace("FILM", f"{begin} <|video|> {end}"),
        "multi_modal_data": {"image": [CAT], "video": [(film, about)]},
    }
    asked = (KEEP, 7, 1.0)
    requests = [{**given, "mm_processor_kwargs": {"zspa": {"keep": keep}}} for keep in asked]
    shown = " ".join(f"{engine.image} {second}" for second in range(length))
    text = text.replace("FILM", f"red {shown} table")
    number = engine.processor.tokenizer.convert_tokens_to_ids
    for answer, keep in zip(engine.answers(*requests), asked, strict=True):
        inputs = engine.processor(images=[CAT, *pictures], text=text, return_tensors="pt")
        for word, mark in (("red", begin), ("table", end)):  # behind its back: they are no film
            inputs["input_ids"][inputs["input_ids"] == number(word)] = number(mark)
        method = zk.ZSPAPrune(keep=keep)
        agree(answer, engine.logits(method, inputs, query=["what is in this film"]))


def test_frames_of_gemma(engine: Engine) -> None:
    """Videos are pictures with their times between them, by which transformers is asked here.

    This one cannot prune Gemma's videos.
    """
    if engine.name not in GEMMAS:
        pytest.skip("others have videos of another kind")
    told = {"fps": 2.0, "video_backend": "opencv", "do_sample_frames": False}
    lengths = (3, 1)
    films = [
        (np.stack([np.asarray(one) for one in frames]), {**told, "frames_indices": [0, 2, 4]})
        for frames in (video("coffee", lengths[0]), video("rocket", lengths[1]))
    ]
    text = "<start> user FILM what is FILM in this film <end> <start> assistant"
    given = {"prompt": text.replace("FILM", "<|video|>"), "multi_modal_data": {"video": films}}
    asked = (KEEP, 7, 1.0)
    requests = [{**given, "mm_processor_kwargs": {"zspa": {"keep": keep}}} for keep in asked]
    for length in lengths:
        shown = (f"00:0{second} {engine.image}" for second in range(length))
        text = text.replace("FILM", " ".join(shown), 1)
    pictures = [frame for film, _ in films for frame in film]
    for answer, keep in zip(engine.answers(*requests), asked, strict=True):
        inputs = engine.processor(images=pictures, text=text, return_tensors="pt")
        method = zk.ZSPAPrune(keep=keep)
        agree(answer, engine.logits(method, inputs, query=["what is in this film"]))


@pytest.mark.parametrize("query", ["question", "all"])
def test_sounds_stay_whole(engine: Engine, query: Any) -> None:
    if engine.name not in GEMMAS:
        pytest.skip("others hear nothing")
    rate = vllm_gemma4.RATE
    time = torch.arange(8 * vllm_gemma4.PIECE) / rate
    sounds = [(880 * time).sin().numpy(), (220 * time[: len(time) // 2]).sin().numpy()]
    alone = "<start> user <audio> what picture is <audio> in this <end> <start> assistant"
    text = alone.replace("picture", engine.image)
    heard = {"audio": [(one, rate) for one in sounds]}
    asked = {"mm_processor_kwargs": {"zspa": {"query": query}}}
    seen, unseen = engine.answers(
        {"prompt": text, "multi_modal_data": {"image": [CAT], **heard}, **asked},
        {"prompt": alone, "multi_modal_data": heard, **asked},
    )
    inputs = engine.processor(images=[CAT], audio=sounds, text=text, return_tensors="pt")
    if query == "all":  # without what processors write for pictures and sounds
        words = torch.tensor(engine.processor.tokenizer(alone)["input_ids"])
        query = torch.isin(inputs["input_ids"], words)
    agree(seen, engine.logits(zk.ZSPAPrune(keep=KEEP), inputs, query=query))
    inputs = engine.processor(audio=sounds, text=alone, return_tensors="pt")
    agree(unseen, (inputs["input_ids"].shape[1], engine.whole(inputs)))
