# SPDX-License-Identifier: Apache-2.0
"""The models for lmms-eval: found by its entry point, pruned, and otherwise the stock ones.

lmms-eval depends on torchvision and some eighty other packages, so most tests use a stand-in with
its registry's rules; the last two ask the real one, whose models they read without importing them.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import logging
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

import zspa_kernels as zk
from python_tests import trees, vlms
from zspa_kernels import lmms

GROUP = "lmms_eval.models"


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class Simple:
    """As LlavaHf: unknown arguments are refused, answers are cut behind the prompt."""

    is_simple = True

    def __init__(self, pretrained: str = "", batch_size: int = 1, **kwargs: Any) -> None:
        assert kwargs == {}, f"Unexpected kwargs: {kwargs}"
        self.tiny = vlms.get(pretrained)
        self._image_processor = self.tiny.processor
        self._tokenizer = self.tiny.processor.tokenizer

    @property
    def model(self) -> Any:
        return self.tiny.model

    def generate_until(self, requests: list[str]) -> list[list[int]]:
        answers = []
        for words in requests:
            inputs = self.tiny.inputs(words=words)
            sequences = self.model.generate(**inputs, max_new_tokens=3, do_sample=False)
            answers.append(sequences[0, inputs["input_ids"].shape[1] :].tolist())
        return answers


class Chat(Simple):
    is_simple = False


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def module(name: str, **members: Any) -> None:
        made = types.ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    for name in ("", ".models", ".models.simple", ".models.chat"):
        module(f"lmms_eval{name}", __path__=[])
    module("lmms_eval.models.registry_v2", ModelManifest=Manifest)
    for name, (made, kinds) in lmms.STOCK.items():
        for kind in kinds:
            stock = {"simple": Simple, "chat": Chat}[kind]
            module(f"lmms_eval.models.{kind}.{name}", **{made: stock})
    lmms._pruned.cache_clear()


def distribution(folder: Path) -> None:
    """A distribution whose entry point is the one that this project declares."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    found = re.search(rf'\[project.entry-points."{GROUP}"\]\n(\w+) = "(.+)"', text)
    assert found
    made = folder / "fake-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
    (made / "entry_points.txt").write_text(f"[{GROUP}]\n{found[1]} = {found[2]}\n")


@pytest.mark.usefixtures("stand_in")
def test_the_entry_point_leads_to_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (entry,) = importlib.metadata.entry_points(group=GROUP)
    monkeypatch.undo()
    made = [importlib.metadata.EntryPoint(entry.name, entry.value, GROUP).load()]
    assert made == [lmms.manifests]


@pytest.mark.usefixtures("stand_in")
def test_manifests_name_classes_of_their_kind() -> None:
    manifests = lmms.manifests()
    assert [one.model_id for one in manifests] == [f"zspa_{name}" for name in lmms.STOCK]
    assert manifests[1].chat_class_path is None  # lmms-eval has no such class
    with pytest.raises(AttributeError, match="no attribute 'chat_qwen2_vl'"):
        lmms.chat_qwen2_vl  # noqa: B018
    for one in manifests:
        for path, stock in ((one.simple_class_path, Simple), (one.chat_class_path, Chat)):
            if path is None:
                continue
            module, _, name = path.rpartition(".")
            assert module == lmms.__name__
            made = getattr(lmms, name)
            assert issubclass(made, stock)
            assert made.is_simple == stock.is_simple
            assert getattr(lmms, name) is made
    with pytest.raises(AttributeError, match="no attribute 'simple_other'"):
        lmms.simple_other  # noqa: B018


@pytest.mark.usefixtures("stand_in")
def test_answers_are_those_of_the_pruned_model(caplog: pytest.LogCaptureFixture) -> None:
    words = ["what is in this picture", "where is the cat"]
    made = lmms.chat_llava_hf(
        pretrained="llava", batch_size=1, method="zspaprune", keep=9, core_ratio=0.5
    )
    with caplog.at_level(logging.WARNING):
        answers = made.generate_until(words)
    made.pruning.remove()
    tiny = vlms.get("llava")
    expected = []
    with zk.ZSPAPrune(keep=9, core_ratio=0.5)(tiny.model, processor=tiny.processor) as handle:
        for one in words:
            inputs = tiny.inputs(words=one)
            with torch.no_grad():
                new = tiny.model.generate(**inputs, max_new_tokens=3, do_sample=False)
            expected.append(new[0, inputs["input_ids"].shape[1] :].tolist())
    assert answers == expected
    assert handle.calls == made.pruning.calls == 2
    assert "2 requests, 2 pruned prompts, 128 -> 18 visual tokens" in caplog.text


@pytest.mark.usefixtures("stand_in")
def test_options_and_what_they_refuse() -> None:
    made = lmms.simple_llava_hf(pretrained="llava", method="zooprune", keep=5, positions="compact")
    made.generate_until(["what"])
    report = made.pruning.report
    made.pruning.remove()
    assert (report.after, report.positions) == (5, "compact")
    for wrong, said in (
        ({"method": "best"}, "name must be one of"),
        ({"keep": 1.5}, "keep must"),
        ({"method": "divprune", "core_ratio": 0.5}, "Unexpected kwargs: {'core_ratio': 0.5}"),
        ({"other": 1}, "Unexpected kwargs: {'other': 1}"),
        ({"scope": "world"}, "scope must be one of"),
    ):
        with pytest.raises((ValueError, AssertionError), match=re.escape(said)):
            lmms.simple_llava_hf(**{"pretrained": "llava", **wrong})
    assert "generate" not in vars(vlms.get("llava").model)  # nothing is left installed


@pytest.mark.usefixtures("stand_in")
def test_the_question_is_told_apart_by_the_template_that_was_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = "{% for m in messages %}{{ m['role'] }} : {{ m['content'][0]['text'] }} {% endfor %}"
    monkeypatch.setattr(vlms.get("llava").processor, "chat_template", other)
    counts = []
    for name in ("simple_llava_hf", "chat_llava_hf"):
        made = getattr(lmms, name)(pretrained="llava", keep=5)
        made.generate_until(["where is the red cup"])
        counts += made.pruning.report.query_tokens
        made.pruning.remove()
    assert counts[0] == 5  # the words, as the prompt was made by the tokenizer's template
    assert counts[1] > 5


@pytest.mark.usefixtures("stand_in")
def test_a_task_without_pictures_is_said(caplog: pytest.LogCaptureFixture) -> None:
    made = lmms.simple_llava_hf(pretrained="llava")
    made.generate_until([])
    assert "nothing was pruned in 0 requests" in caplog.text
    with pytest.warns(zk.hf.NothingPrunedWarning):
        made.pruning.remove()


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lmms-eval itself, installed or in its folder."""
    if importlib.util.find_spec("lmms_eval") is None:
        if not trees.mark(trees.LMMS_EVAL).exists():
            pytest.skip(f"lmms-eval is not installed: {trees.HOW}")
        monkeypatch.syspath_prepend(trees.TREES / trees.LMMS_EVAL)
    yield
    for name in [one for one in sys.modules if one.partition(".")[0] == "lmms_eval"]:
        del sys.modules[name]


@pytest.mark.usefixtures("real")
def test_the_real_registry_resolves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry_v2 = importlib.import_module("lmms_eval.models.registry_v2")
    registry = registry_v2.ModelRegistryV2()
    distribution(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    registry.load_entrypoint_manifests(overwrite=True)
    for name, (_, kinds) in lmms.STOCK.items():
        best = registry.resolve(f"zspa_{name}")
        assert best.class_path == f"zspa_kernels.lmms.{kinds[-1]}_{name}"
        if "simple" in kinds:
            simple = registry.resolve(f"zspa_{name}", force_simple=True)
            assert simple.class_path == f"zspa_kernels.lmms.simple_{name}"


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for name, (_, kinds) in lmms.STOCK.items() for kind in kinds]
)
def test_the_real_classes_are_as_expected(kind: str, name: str) -> None:
    """Importing them needs all of lmms-eval's dependencies; their text says enough."""
    methods: dict[str, ast.FunctionDef] = {}
    written = ""
    for one in reversed(lineage(f"lmms_eval.models.{kind}.{name}", lmms.STOCK[name][0])):
        methods |= {node.name: node for node in one.body if isinstance(node, ast.FunctionDef)}
        written += ast.unparse(one)
    assert [one.arg for one in methods["generate_until"].args.args] == ["self", "requests"]
    assert "model" in methods
    assert "self.processor = " in written or "self._image_processor = " in written
    taken = {one.arg for one in (*methods["__init__"].args.args,)}
    ours = {"method", "keep", "core_ratio", "scope", "positions", "keep_newline"}
    assert not taken & ours


def lineage(module: str, name: str) -> list[ast.ClassDef]:
    """A class of lmms-eval's and those it derives from, of which one is imported from each."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    (found,) = [x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == name]
    bases = {base.id for base in found.bases if isinstance(base, ast.Name)}
    classes = [found]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lmms_eval.models."):
            for alias in node.names:
                if (alias.asname or alias.name) in bases:
                    classes += lineage(str(node.module), alias.name)
    return classes


def test_a_tenth_is_kept_where_nothing_is_said() -> None:
    arguments: dict[str, Any] = {"pretrained": "x", "scope": "tile"}
    assert lmms._options("divprune", arguments) == (zk.DivPrune(keep=0.1), {"scope": "tile"})
    assert arguments == {"pretrained": "x"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"scope": "world"}, "scope must be one of"),
        ({"merge": True}, "merge must be False or None"),
    ],
)
def test_nothing_is_loaded_for_a_way_of_pruning_that_is_none(wrong: Any, said: str) -> None:
    loaded = MagicMock()
    made = lmms.with_pruning(type("Stock", (), {"__init__": loaded, "generate_until": None}))
    with pytest.raises(ValueError, match=said):
        made(method="divprune", **wrong)
    loaded.assert_not_called()
