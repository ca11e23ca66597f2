# SPDX-License-Identifier: Apache-2.0
"""Methods by name: what is available, what each says of itself, and the page made of it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from python_tests import scenes
from zspa_kernels.methods import Input
from zspa_kernels.methods import __main__ as page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
METHODS = zk.methods.available()
#: Arguments that say how many tokens come from where, as `primitives.topk` takes them.
TOPK = ("force_keep", "segments", "quotas")


class Nothing:
    """Keeps no token."""

    def select(self, visual: Tensor) -> zk.Selection:
        indices = torch.empty(0, dtype=torch.int64)
        return zk.Selection(indices, indices > 0)


@pytest.fixture
def names() -> Iterator[None]:
    yield
    for name in set(zk.methods.available()) - set(METHODS):
        zk.methods.unregister(name)


def test_a_type_checker_knows_every_published_name() -> None:
    assert typing.get_args(zk.methods.Published) == METHODS
    assert all(isinstance(zk.methods.get(name, keep=1), zk.MethodBase) for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_described(name: str) -> None:
    about = zk.methods.about(name)
    assert about.paper
    assert about.cost
    assert about.against
    assert "visual" in [x.name for x in about.inputs]
    method = zk.methods.get(name, keep=0.5)
    takes = inspect.signature(method.select).parameters
    assert list(takes)[:2] == ["visual", "prompt"]
    for x in about.inputs:
        assert x.name in takes
        assert x.shape.startswith("[")
        assert x.source
    named = {"visual", "prompt", *(x.name for x in about.inputs)}
    assert {"visual_mask", "prompt_mask"} <= set(takes)
    for parameter in takes.values():
        if parameter.name not in ("visual", "prompt"):
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert parameter.default is None, "optional in the signature, refused by name if needed"
    undescribed = set(takes) - named - {"visual_mask", "prompt_mask", "tiles", *TOPK}
    assert not undescribed, undescribed
    # What it is composed of exists.
    for primitive in about.primitives:
        places = (zk, torch.ops.zspa, getattr(zk, "primitives", None))
        assert any(hasattr(place, primitive) for place in places), primitive


@pytest.mark.parametrize("name", METHODS)
def test_an_input_that_is_missing_is_named(name: str) -> None:
    about = zk.methods.about(name)
    method = zk.methods.get(name, keep=0.5)
    visual = torch.eye(4)
    for x in about.inputs:
        if x.name == "visual" or not x.required:
            continue
        given = {y.name: torch.ones(4, 4) for y in about.inputs if y.name not in ("visual", x.name)}
        with pytest.raises(TypeError) as raised:
            method.select(visual, **given)
        message = f"{about.title}: {x.name} must be a tensor {x.shape} ({x.source}), got None"
        assert str(raised.value) == message
        with pytest.raises(TypeError, match=f"{x.name} must be a tensor .* got int 3"):
            method.select(visual, **given, **{x.name: 3})


@pytest.mark.parametrize("name", METHODS)
def test_inputs_of_a_token_have_its_shape_and_any_float_dtype(name: str) -> None:
    given = scenes.inputs(name, 2, 6, 5)
    method: Any = zk.methods.get(name, keep=3)
    if name == "zooprune":
        del given["features"]  # for a projector
    title = zk.methods.about(name).title
    select = getattr(method, "assign", method.select)  # merging takes what selecting leaves alone
    for key in set(scenes.per_token(name)) & set(given) - {"visual"}:
        x = given[key]
        with pytest.raises(ValueError, match=rf"^{title}: {key} must .*, got \[2, 5"):
            select(**{**given, key: x[:, 1:]})
        if x.ndim == 2:
            for dtype in (torch.bfloat16, torch.float16, torch.float64):
                narrow = x.to(dtype)
                got = select(**{**given, key: narrow})
                right = select(**{**given, key: narrow.float()})
                got, right = (getattr(x, "selection", x) for x in (got, right))
                assert torch.equal(got.indices, right.indices)
                if got.scores is not None and right.scores is not None:
                    assert got.scores.dtype is torch.float32
                    assert torch.equal(got.scores, right.scores)
        elif key != "positions":
            with pytest.raises(ValueError, match=rf"^{title}: {key} must have C >= 1, got \[2, 6"):
                select(**{**given, key: x[..., :0]})


#: What the papers or their code use; a preset's is in its name.
DEFAULTS: dict[str, dict[str, Any]] = {
    "adaptprune": {
        "similarity_sigma": 0.05,
        "distance_sigma": 1.5,
        "distance_limit": 5.0,
        "center_sigma": 1.0,
    },
    "allinrelevance": {"pooling": "mean"},
    "anchorprune": {"space": "clip", "least": 10 / 64, "cap": 0.5, "novelty": 0.2, "patience": 3},
    "cdpruner": {"space": "clip", "emphasis": None},
    "cenprune": {"process": "distance"},
    "dart": {"pivots": 4, "text_pivots": 4, "by_keys": False},
    "greedyprune": {"threshold": 0.9, "fill": True},
    "holov": {"crops": 16, "variance": 0.0, "sharpness": 1.0},
    "idselection": {"gamma": 20.0},
    "mmtok": {
        "text_temperature": 0.02,
        "vision_temperature": 0.2,
        "balance": 0.5,
        "rounding": "floor",
    },
    "scope": {"alpha": 0.5},
    "scoredtopk": {"preset": None},
    "trimtokenator": {"align": 0.8},
    "visionzip": {"contextual": 10 / 64},
    "vispruner": {"important": 0.5, "step": 8},
    "zooprune": {
        "score": "closed_form",
        "rank": None,
        "directions": 64,
        "seed": 0,
        "radius": 0.01,
        "rounding": "floor",
    },
    "zspaprune": {"core_ratio": 0.2, "pooling": "mean"},
}


@pytest.mark.parametrize("name", METHODS)
def test_defaults(name: str) -> None:
    method: Any = zk.methods.get(name, keep=1)
    expected = {"sorted": True, "rounding": "round", "compat": False, **DEFAULTS.get(name, {})}
    for field in dataclasses.fields(method):
        if field.init and field.name not in ("keep", "preset", "projector"):
            assert getattr(method, field.name) == expected[field.name], field.name


def test_get_makes_what_the_class_makes() -> None:
    assert zk.methods.get("divprune", keep=0.1) == zk.DivPrune(keep=0.1)
    assert zk.methods.get("zspaprune", keep=9, core_ratio=0.4) == zk.ZSPAPrune(9, 0.4)


@pytest.mark.parametrize("call", [zk.methods.get, zk.methods.about, zk.methods.unregister])
def test_unknown_names(call: Any) -> None:
    known = ", ".join(METHODS)
    with pytest.raises(ValueError, match=f"{call.__name__}: name must be one of {known}, got 'No'"):
        call("No")
    with pytest.raises(TypeError, match=f"{call.__name__}: name must be a string, one of {known}"):
        call(7)


def test_options_are_those_of_the_class() -> None:
    rule = "get: options of divprune must be among keep, sorted, got 'size'"
    with pytest.raises(TypeError, match=rule):
        zk.methods.get("divprune", keep=0.1, size=3)
    rule = "get: options of fastv must be among keep, rounding, sorted, got 'preset'"
    with pytest.raises(TypeError, match=rule):
        zk.methods.get("fastv", keep=0.1, preset="topv")
    with pytest.raises(TypeError, match="get: option keep of fastv must be given, got None"):
        zk.methods.get("fastv")
    for name in METHODS:
        title = zk.methods.about(name).title
        with pytest.raises(ValueError, match=rf"^{title}: keep must be a share in \(0, 1\]"):
            zk.methods.get(name, keep=0.0)


@pytest.mark.parametrize("name", METHODS)
def test_options_are_checked_when_a_method_is_made(name: str) -> None:
    title = zk.methods.about(name).title
    fields = dataclasses.fields(type(zk.methods.get(name, keep=1)))
    flags = [field.name for field in fields if isinstance(field.default, bool)]
    assert ("sorted" in flags) == (name != "tome"), "ToMe has no order but that of the tokens"
    for flag in flags:
        for value in (1, None, "yes"):
            with pytest.raises(TypeError, match=rf"^{title}: {flag} must be a bool, got"):
                zk.methods.get(name, keep=1, **{flag: value})
    for option in {"pooling", "rounding", "space"} & {field.name for field in fields}:
        with pytest.raises(ValueError, match=rf"^{title}: {option} must be one of .*, got str 'x'"):
            zk.methods.get(name, keep=1, **{option: "x"})


#: Just outside of what an option may be.
OUTSIDE: dict[str, dict[str, tuple[float, ...]]] = {
    "adaptprune": {
        "similarity_sigma": (0.0, 1.1e6),
        "distance_sigma": (0.0,),
        "distance_limit": (-0.1,),
        "center_sigma": (0.0,),
    },
    "anchorprune": {
        "least": (-0.1, 1.1),
        "cap": (-0.1, 1.1),
        "novelty": (-0.1, 2.1),
        "patience": (0,),
    },
    "cdpruner": {"emphasis": (-0.1, 1.0)},
    "dart": {"pivots": (0,), "text_pivots": (-1,)},
    "greedyprune": {"threshold": (-1.01, 1.01)},
    "holov": {"crops": (0,), "variance": (-0.1, 1.1e6), "sharpness": (-0.1, 101.0)},
    "idselection": {"gamma": (0.0, 1.1e6)},
    "mmtok": {"text_temperature": (0.0,), "vision_temperature": (0.0,), "balance": (-0.1,)},
    "scope": {"alpha": (-0.1,)},
    "trimtokenator": {"align": (0.0, 1.1)},
    "visionzip": {"contextual": (-0.1, 1.1)},
    "vispruner": {"important": (-0.1, 1.1), "step": (0,)},
    "zspaprune": {"core_ratio": (-0.1,)},
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_ranges_are_checked_when_a_method_is_made(name: str) -> None:
    title = zk.methods.about(name).title
    for option, values in OUTSIDE[name].items():
        for value in (*values, float("nan")):
            with pytest.raises((TypeError, ValueError), match=rf"^{title}: {option} must "):
                zk.methods.get(name, keep=1, **{option: value})


@pytest.mark.parametrize("name", METHODS)
def test_images_of_a_ragged_call_are_checked(name: str) -> None:
    inputs = zk.methods.about(name).inputs
    options = {"space": "llm"} if name in ("anchorprune", "cdpruner") else {}
    method: Any = zk.methods.get(name, keep=1, **options)
    given: dict[str, Any] = {
        x.name: [
            torch.ones(4, 2 if x.name == "positions" else 8)
            if "C]" in x.shape or "2]" in x.shape
            else torch.ones(4)
        ]
        for x in inputs
        if x.name not in ("visual", "prompt")
    }
    prompt = [torch.ones(2, 8)]
    if name == "zooprune":
        given = {"sensitivity": [torch.ones(4)]}
    assert len(method.select_varlen([torch.eye(4, 8)], prompt, **given)) == 1
    wrong: list[Any] = [3, None, "ab", torch.tensor(1.0), [3], [torch.eye(4, 8).numpy()]]
    for visual in wrong:
        with pytest.raises(TypeError, match=r"\w: visual.* must be a .*tensor.*, got "):
            method.select_varlen(visual, prompt, **given)
    wrong = [[torch.ones(8)], [torch.eye(4, 8)[None, None]], torch.eye(4, 8)]
    for visual in wrong:
        with pytest.raises(ValueError, match=r"\w: .* must .*, got "):
            method.select_varlen(visual, prompt, **given)
    with pytest.raises(TypeError, match="visual must be float32, float16 or bfloat16, got"):
        method.select_varlen([torch.eye(4, 8).double()], [prompt[0].double()], **given)


@pytest.mark.usefixtures("names")
def test_register() -> None:
    assert zk.methods.register("nothing", Nothing) is Nothing
    assert isinstance(zk.methods.get("nothing"), Nothing)
    assert "nothing" in zk.methods.available()
    with pytest.raises(TypeError, match="about: name must be of a method that has an `about`"):
        zk.methods.about("nothing")
    with pytest.raises(ValueError, match=r"register: name must be none of .*nothing.*, got 'noth"):
        zk.methods.register("nothing", zk.DivPrune)
    assert zk.methods.register("half", lambda: zk.DivPrune(0.5))() == zk.DivPrune(0.5)
    zk.methods.register("loose", lambda *rest, **options: zk.DivPrune(*rest, **options))
    assert zk.methods.get("loose", keep=0.5) == zk.DivPrune(0.5)
    facts = zk.methods.about("divprune")
    zk.methods.register("facts", Nothing, facts)
    assert zk.methods.about("facts") is facts
    assert facts.input("visual") is facts.inputs[0]
    with pytest.raises(KeyError, match="weights"):
        facts.input("weights")
    zk.methods.unregister("nothing")
    assert "nothing" not in zk.methods.available()
    zk.methods.register("tokens", lambda: torch.eye(3))
    with pytest.raises(TypeError, match=r"get: what tokens makes must have a `select`, got Tensor"):
        zk.methods.get("tokens")


def test_a_method_of_ones_own_with_inputs_takes_several_images() -> None:
    class Attended(zk.methods.EachByItself):
        about = zk.methods.About("Attended", "", (Input("attention", "[B, N]", ""),), (), "", "")

        def select(self, visual: Tensor, prompt: Any = None, *, attention: Any = None) -> Any:
            attention = self.about.require("attention", attention)
            return zk.Selection(zk.primitives.topk(attention, 1), torch.ones(1) > 0)

    images, attention = [torch.eye(3), torch.eye(2)], [torch.rand(3), torch.rand(2)]
    picked = Attended().select_varlen(images, attention=attention)
    assert [x.indices for x in picked] == [a.argmax() for a in attention]
    with pytest.raises(TypeError, match=r"Attended: attention must be a tensor \[B, N\]"):
        Attended().select_varlen(images)


@pytest.mark.usefixtures("names")
def test_a_class_that_is_defined_again_takes_its_place() -> None:
    """As a cell of a notebook does; any other class of that name in the registry is refused."""
    cell = "@register('again')\nclass Again:\n    size = {}\n    def select(self): ...\n"
    for size in (1, 2):
        exec(cell.format(size), {"__name__": "cell", "register": zk.methods.register})
        made: Any = zk.methods.get("again")
        assert made.size == size
    for make in (Nothing, lambda: zk.DivPrune(0.5)):
        with pytest.raises(ValueError, match=r"register: name must be none of .*again.*, got"):
            zk.methods.register("again", make)
    with pytest.raises(ValueError, match=r"register: name must be none of .*, got 'divprune'"):
        zk.methods.register("divprune")(Nothing)


@pytest.mark.parametrize("name", ["Upper", "with_separator", "with-hyphen", "7", "", "é", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match="register: name must be lower-case letters and digits"):
        zk.methods.register(name, Nothing)


def test_bad_registrations() -> None:
    with pytest.raises(TypeError, match="register: name must be a string, got int 3"):
        zk.methods.register(3, Nothing)
    bad: tuple[Any, ...] = (3, int)
    for make in bad:
        with pytest.raises(TypeError, match="register: make must be a class with a `select`"):
            zk.methods.register("bad", make)
    assert "bad" not in zk.methods.available()


#: What a line of "Which one fits?" says the user has, as a rule for inputs; and whether every
#: method whose required inputs pass it must be in that line.
FITS: dict[str, tuple[Callable[[Input], bool], bool]] = {
    "nothing else": (lambda x: False, True),
    "the prompt's embeddings": (lambda x: x.name == "prompt", True),
    "attention from [CLS] in the vision tower": (lambda x: "attention" in x.tensor, True),
    "keys of the vision tower": (lambda x: x.tensor == "keys", True),
    "the projector and its inputs": (lambda x: x.name == "features", False),
    "CLIP's embeddings of image and text": (lambda x: x.name.endswith("_embeds"), True),
    "attention or states of a layer of the language model": (
        lambda x: x.name in ("attention", "positions", "saliency", "scores"),
        False,
    ),
    "a score of your own": (lambda x: x.name in ("importance", "scores", "sensitivity"), False),
}


def fitting() -> dict[str, dict[str, str]]:
    """Of each line of the page the methods that need no more, with what stands in brackets."""
    text = PAGE.read_text().partition("## Which one fits?")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "]
    found = {}
    for have, cell in lines[1:]:
        names = re.findall(r"`(\w+)`(?: \((.*?)\))?", cell.partition(";")[0])
        found[have] = dict(names)
    return found


@pytest.mark.parametrize("have", FITS)
def test_methods_that_fit_need_nothing_beyond(have: str) -> None:
    passes, complete = FITS[have]
    page = fitting()[have]
    for name, said in page.items():
        inputs = scenes.inputs(name, 1, 9, 6)
        options = dict(re.findall(r'(\w+)="(\w+)"', said))
        about = zk.methods.about(name)
        given = {
            x.name: inputs[x.name]
            for x in about.inputs
            if x.name == "visual" or (passes(x) and (x.required or x.name in said or options))
        }
        assert all(word in (*given, "projector") for word in re.findall(r"(\w+)=`", said)), name
        if "projector" in said:
            layers = torch.nn.Linear(12, 8), torch.nn.GELU(), torch.nn.Linear(8, 6)
            options["projector"] = torch.nn.Sequential(*layers)
        picked = zk.methods.get(name, keep=3, **options).select(**given)
        assert picked.indices.shape == (1, 3)
    for name in METHODS if complete else ():
        needs = [x for x in zk.methods.about(name).inputs[1:] if x.required]
        if all(map(passes, needs)) and bool(needs) == (have != "nothing else"):
            assert name in page


def test_every_method_fits_somebody() -> None:
    page = fitting()
    assert page.keys() == FITS.keys()
    text = PAGE.read_text().partition("## Which one fits?")[2].partition("\n## ")[0]
    assert {name for name in METHODS if f"`{name}`" not in text} == set()
    merging = {name for name in METHODS if hasattr(zk.methods.get(name, keep=1), "assign")}
    assert merging == {"tome", "visionzip"}  # as the page says


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert page.rewrite(text) == text, "run: python -m zspa_kernels.methods docs/methods.md"


def test_the_page_is_rewritten_between_its_marks(tmp_path: Path) -> None:
    old = tmp_path / "page.md"
    old.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.main([str(old)])
    assert old.read_text() == f"before\n{page.BEGIN}\n{page.table()}\n{page.END}\nafter\n"
    for bad in ("", page.BEGIN, f"{page.END}{page.BEGIN}", 2 * old.read_text()):
        with pytest.raises(ValueError, match="page must have"):
            page.rewrite(bad)


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page.main([])
    assert capsys.readouterr().out == page.table() + "\n"


def test_backends_are_those_of_all_ops() -> None:
    assert page.backends(("select",)) == "cpp, reference, triton"
    assert page.backends(("merge", "topk")) == "any"
    assert page.backends(("topk", "diversity", "merge")) == "cpp, reference, triton"
