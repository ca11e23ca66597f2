# SPDX-License-Identifier: Apache-2.0
"""`zspa prune` on a tiny model saved to a folder with its processor."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

import zspa_kernels as zk
from python_tests import vlms
from zspa_kernels import ask
from zspa_kernels.cli_app import app
from zspa_kernels.demo.errors import UsageError, share_or_count
from zspa_kernels.hf import architectures

WORDS = "what is in this picture"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a picture, and files that are neither."""
    here = tmp_path_factory.mktemp("prune")
    tiny = vlms.get("llava")
    tiny.model.save_pretrained(here / "model")
    tiny.processor.save_pretrained(here / "model")
    vlms.photograph("chelsea", (170, 112)).save(here / "photo.png")
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken" / "config.json").write_text('{"model_type": ')
    (here / "text").mkdir()
    (here / "text" / "config.json").write_text('{"model_type": "llama"}')
    (here / "bare").mkdir()  # a model without weights
    for file in (here / "model").iterdir():
        if file.suffix != ".safetensors":
            (here / "bare" / file.name).write_bytes(file.read_bytes())
    shutil.copytree(here / "bare", here / "torn")
    (here / "torn" / "model.safetensors").write_bytes(b"{}")
    shutil.copytree(here / "model", here / "mute")
    (here / "mute" / "chat_template.jinja").write_text("{{ messages[0]['content'] + '' }}")
    (here / "notes.png").write_text("not a picture")
    return here


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def call(*more: str, model: str = "model", image: str = "photo.png") -> Any:
    words = ["prune", "--model", model, "--image", image, "--prompt", WORDS]
    return CliRunner().invoke(app, [*words, "--max-new-tokens", "3", *more])


def expected(method: Any, **how: Any) -> tuple[str, Any]:
    """The same without the command."""
    tiny = vlms.get("llava")
    text = tiny.processor.tokenizer.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": WORDS}],
            }
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    inputs = tiny.processor(images=Image.open("photo.png"), text=text, return_tensors="pt")
    with method(tiny.model, processor=tiny.processor, **how) as handle, torch.no_grad():
        sequences = tiny.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    new = sequences[0, inputs["input_ids"].shape[1] :]
    return tiny.processor.decode(new, skip_special_tokens=True).strip(), handle.report


def test_it_answers_and_reports() -> None:
    result = call("--keep", "0.25", "--core-ratio", "0.5", "--full", "--out", "kept.png")
    assert result.exit_code == 0, result.output
    answer, report = expected(zk.ZSPAPrune(keep=0.25, core_ratio=0.5))
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if " " in line)
    before, after = report.prompt_before[0], report.prompt_after[0]
    assert lines["tokens"] == f"visual 64 -> 16, prompt {before} -> {after}"
    assert lines["pruned"].startswith("ZSPAPrune(keep=0.25, core_ratio=0.5")
    assert "64 -> 16 visual tokens (8 core)" in lines["pruned"]
    assert f"answer   {answer}\n" in result.stdout
    assert lines["picture"] == "170 x 112 pixels"
    assert lines["model"].startswith("LLaVA-1.5, ")
    assert result.stdout.count("first token") == 3  # the share of selection, and two answers
    assert "unpruned " in result.stdout
    with Image.open("kept.png") as picture:
        assert picture.format == "PNG"


def test_json_is_the_whole_report() -> None:
    result = call("--json", "--method", "divprune", "--keep", "7")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    answer, report = expected(zk.DivPrune(keep=7))
    assert found["report"]["images"][0]["indices"] == report.images[0].indices.tolist()
    assert found["pruned"]["text"] == answer
    assert found["pruned"]["tokens"] == 3
    assert 0 < found["pruned"]["first_s"] <= found["pruned"]["total_s"]
    assert (found["full"], found["out"], found["architecture"]) == (None, None, "LLaVA-1.5")


def test_two_answers_are_timed_when_all_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    generate = ask._generate

    def noted(model: Any, processor: Any, inputs: Any, length: int, tick: Any) -> ask.Run:
        lengths.append(length)
        return generate(model, processor, inputs, length, tick)

    monkeypatch.setattr(ask, "_generate", noted)
    for more, asked in ((["--full"], [1, 3, 1, 3]), ([], [3])):
        lengths.clear()
        assert call("--json", *more).exit_code == 0
        assert lengths == asked


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (torch.OutOfMemoryError("Tried to allocate"), 1, "cpu has too little memory: OutOfMemory"),
        (ValueError("no such token"), 2, "no such token"),
    ],
)
def test_a_model_that_fails_unpruned_gets_one_line(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "_generate", MagicMock(side_effect=error))
    result = call("--full")
    assert (result.exit_code, result.stdout) == (code, "")
    assert f"zspa prune: {said}" in result.stderr


def test_methods_that_need_the_projector_are_given_it_and_others_refuse() -> None:
    rated = call("--json", "--method", "zooprune", "--keep", "7")
    assert rated.exit_code == 0, rated.output
    tiny = vlms.get("llava")
    method = zk.ZOOPrune(keep=7, projector=tiny.model.model.multi_modal_projector)
    report = expected(method)[1]
    indices = json.loads(rated.stdout)["report"]["images"][0]["indices"]
    assert indices == report.images[0].indices.tolist()
    merged = call("--method", "visionzip")
    assert merged.exit_code == 0, merged.output
    assert "others merged into them" in merged.stdout
    refused = call("--method", "fastv", "--full")
    assert refused.exit_code == 2
    assert "which needs scores [B, N] (attention from the last token" in refused.stderr


class ImageProcessor:
    """A tiny model's processor as AutoProcessor would give it.

    That of Qwen2.5-VL cannot be loaded without torchvision, which its video part needs.
    """

    def __init__(self, tiny: vlms.Tiny) -> None:
        self.tiny, self.tokenizer = tiny, tiny.processor.tokenizer
        self.decode = self.tokenizer.decode
        self.image_processor = tiny.processor.image_processor

    def __call__(self, images: Any, text: str, return_tensors: str) -> Any:
        return transformers.BatchFeature(
            dict(self.tiny.processor(images=images, text=text, return_tensors=return_tensors))
        )


@pytest.mark.parametrize(
    ("name", "title", "visual"),
    [
        ("llava_next", "LLaVA-NeXT", "70 -> 9"),
        ("qwen2_5_vl", "Qwen2.5-VL", "24 -> 9"),
        ("lfm3_vl", "LFM3-VL", "20 -> 9"),  # does not convert pixels itself
    ],
)
def test_other_architectures(
    name: str, title: str, visual: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tiles with newlines, and grids of merged patches, in bfloat16: an answer and a picture."""
    tiny = vlms.get(name)
    copy.deepcopy(tiny.model).bfloat16().save_pretrained(tmp_path)
    if name == "llava_next":
        tiny.processor.save_pretrained(tmp_path)
    else:
        monkeypatch.setattr(
            transformers.AutoProcessor, "from_pretrained", lambda model: ImageProcessor(tiny)
        )
    result = call("--keep", "9", "--out", str(tmp_path / "kept.png"), model=str(tmp_path))
    assert result.exit_code == 0, result.output
    assert f"model    {title}, " in result.stdout
    assert " bfloat16 on cpu, " in result.stdout
    assert f"tokens   visual {visual}, " in result.stdout
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.width > 600


@pytest.mark.parametrize("written", ["", "{{ bos_token }}"])
def test_a_prompt_begins_once(written: str) -> None:
    """Of the templates some begin with the token that the tokenizer puts in front as well."""
    processor = copy.deepcopy(vlms.get("llava").processor)
    tokenizer = processor.tokenizer
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin[0]} $A", special_tokens=[begin]
    )
    tokenizer.chat_template = written + tokenizer.chat_template
    ids = ask._inputs(processor, vlms.photograph("chelsea"), WORDS)["input_ids"][0]
    assert (ids == begin[1]).nonzero().flatten().tolist() == [0]


def test_options_of_a_method_are_given_by_name() -> None:
    words = ["--keep", "9", "--option", "pooling=none_max", "--option", "core_ratio=0.5"]
    result = call("--json", *words, "--option", "sorted=False")
    assert result.exit_code == 0, result.output
    report = expected(zk.ZSPAPrune(9, core_ratio=0.5, pooling="none_max", sorted=False))[1]
    assert json.loads(result.stdout)["report"]["method"] == report.method
    told = call("--method", "cdpruner", "--option", "space=llm")
    assert told.exit_code == 0, told.output
    assert "CDPruner(keep=0.1, space='llm'" in told.stdout


@pytest.mark.parametrize("query", ["all", "the red cup"])
def test_it_prunes_as_models_are_pruned(query: str) -> None:
    words = ["--scope", "sample", "--positions", "compact", "--query", query]
    result = call("--json", "--core-ratio", "1", *words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    how = {"scope": "sample", "positions": "compact", "query": query if query == "all" else [query]}
    answer, report = expected(zk.ZSPAPrune(keep=0.1, core_ratio=1.0), **how)
    assert (found["report"]["scope"], found["report"]["positions"]) == ("sample", "compact")
    assert found["report"]["query_tokens"] == report.query_tokens
    assert found["report"]["images"][0]["indices"] == report.images[0].indices.tolist()
    assert found["pruned"]["text"] == answer


def test_nothing_pruned_is_said() -> None:
    result = call("--keep", "1.0")
    assert result.exit_code == 0
    assert "\nwarning  nothing was pruned\n" in result.stdout


FAILURE, USAGE = 1, 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "empty"], FAILURE, "cannot load empty: "),
        (["--model", "broken"], FAILURE, "cannot load broken: "),
        (
            ["--model", "text"],
            FAILURE,
            "text is a 'llama'; supported are aya_vision, cohere2_vision, deepseek_vl, gemma3",
        ),
        (["--model", "bare"], FAILURE, "cannot load bare: "),
        (["--model", "torn"], FAILURE, "cannot load torn: SafetensorError: "),
        (["--model", "mute"], FAILURE, "the model's chat template fails: can only concatenate"),
        (["--model", "./nowhere"], FAILURE, "cannot load ./nowhere: no such folder"),
        (
            ["--model", "nobody/nothing"],
            FAILURE,
            "cannot load nobody/nothing: no folder here, and ",
        ),
        (["--out", "nowhere/kept.png"], FAILURE, "cannot write nowhere/kept.png"),
        (["--out", "photo.png"], USAGE, "is the picture itself"),
        (["--out", "kept.jpg"], USAGE, "--out must end in .png"),
        (["--keep", "much"], USAGE, "zspa prune: --keep must be a share in (0, 1] such as 0.1, or"),
        (["--keep", "0"], USAGE, "or a count of at least 1, got '0'"),
        (["--keep", "1.5"], USAGE, "zspa prune: --keep must be "),
        (["--keep", "-3"], USAGE, "zspa prune: --keep must be "),
        (["--core-ratio", "-1"], USAGE, "core_ratio must"),
        (["--method", "divprune", "--core-ratio", "0.5"], USAGE, "core_ratio"),
        (
            ["--method", "best"],
            USAGE,
            f"--method must be one of {', '.join(zk.methods.available())}",
        ),
        (["--scope", "world"], USAGE, "--scope must be one of image, tile, sample, got 'world'"),
        (["--positions", "new"], USAGE, "--positions must be one of original, compact, got 'new'"),
        (["--max-new-tokens", "0"], USAGE, "--max-new-tokens must be at least 1, got 0"),
        (["--device", "abacus"], USAGE, "--device must be a device's name, such as cpu or cuda:0"),
        (
            ["--device", "meta"],
            USAGE,
            "zspa prune: --device must be one that holds values, got meta",
        ),
        (["--prompt", "an <image>"], USAGE, "--prompt 'an <image>' with one picture: "),
        (["--method", "fastv"], USAGE, "zspa prune: method must not need what LLaVA-1.5 cannot"),
        (["--option", "pooling"], USAGE, "zspa prune: --option must be NAME=VALUE, got 'pooling'"),
        (["--option", "=max"], USAGE, "zspa prune: --option must be NAME=VALUE, got '=max'"),
        (["--option", "speed=3"], USAGE, "options of zspaprune must be among keep, core_ratio, "),
        (["--option", "name=x"], USAGE, "--method zspaprune: options of zspaprune must be among"),
        (
            ["--keep", "0.5", "--option", "keep=4"],
            USAGE,
            "zspa prune: keep must be given once, got --keep 0.5 and --option keep=4",
        ),
        (
            ["--option", "core_ratio=1", "--core-ratio", "0.5"],
            USAGE,
            "core_ratio must be given once, got --core-ratio 0.5 and --option core_ratio=1",
        ),
        (
            ["--option", "pooling=max", "--option", "pooling=mean"],
            USAGE,
            "pooling must be given once, got --option pooling=max and --option pooling=mean",
        ),
        (["--image", "x.png"], USAGE, "--image must be given once, got photo.png, x.png"),
        (["--option", "pooling=7"], USAGE, "pooling must be one of mean, max, none_mean, none_max"),
        (["--method", "cdpruner"], USAGE, "not collected from a model; `select` can be given it"),
        (["--device", "cuda:99"], USAGE, "--device must be a device that this machine and this"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_calls_get_one_line(
    arguments: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = sorted(path.name for path in Path().iterdir())
    result = call(*arguments)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    (line,) = [one for one in result.stderr.splitlines() if one.startswith("zspa prune: ")]
    assert said in line
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == before


def test_nobody_waits_for_weights_that_this_transformers_cannot_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(architectures, "transformers_version", lambda: "4.56.2")
    weights = MagicMock()
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", weights)
    result = call()
    assert (result.exit_code, result.stdout) == (FAILURE, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("zspa prune: transformers must be 4.57 or newer for LLaVA-1.5, got 4.5")
    weights.assert_not_called()


@pytest.mark.parametrize(
    ("image", "said"), [("gone.png", "cannot read gone.png: No such"), ("notes.png", "not a pict")]
)
def test_pictures_that_cannot_be_read(image: str, said: str) -> None:
    result = call(image=image)
    assert (result.exit_code, result.stdout) == (FAILURE, "")
    (line,) = result.stderr.splitlines()
    assert said in line


def test_without_transformers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = call()
    assert result.exit_code == FAILURE
    assert 'pip install "zspa_kernels[demo,hf]"' in result.stderr
    assert transformers.__name__ not in result.stdout


def test_a_count_is_told_from_a_share() -> None:
    """`--keep 1` is one token and `--keep 1.0` all of them."""
    for text, keep in (("1", 1), ("64", 64), ("1.0", 1.0), ("0.1", 0.1), ("1e-1", 0.1)):
        found = share_or_count(text)
        assert (type(found), found) == (type(keep), keep)
    for text in ("10%", "", "\u00b2", "all"):
        with pytest.raises(UsageError, match=r"--keep must be a share in .* or a count .*, got"):
            share_or_count(text)


def test_crops_are_laid_out_as_the_picture_is() -> None:
    """The last is the whole picture: 4, 6 and 12 parts, of wide, square and tall pictures."""
    assert [ask._across(5, shape) for shape in (4.0, 1.3, 0.2)] == [4, 2, 1]
    assert [ask._across(7, shape) for shape in (1.5, 0.7, 8.0)] == [3, 2, 6]
    assert [ask._across(13, shape) for shape in (1.3, 0.75)] == [4, 3]
    assert ask._across(1, 1.5) == ask._across(2, 1.5) == 1
