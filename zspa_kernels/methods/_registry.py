# SPDX-License-Identifier: Apache-2.0
"""Methods by name, and what each of them says about itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from torch import Tensor

from .._contract.values import say
from ..types import Selection

if TYPE_CHECKING:
    from ..hf import PruneHandle

_NAME = re.compile(r"[a-z][a-z0-9]*")


@dataclass(frozen=True)
class Input:
    """A tensor that a method's `select` takes.

    Attributes:
        name: of the argument of `select`.
        shape: of it, for example `[B, N]`.
        source: what it is and where a model has it.
        required: whether the method refuses to work without it.
        tensor: what it is where a model is pruned, which is then asked for it: `"attention"` (of
            [CLS], or received from all where there is none), `"cls attention"`, `"keys"` or
            `"features"`; empty for anything else.
    """

    name: str
    shape: str
    source: str
    required: bool = True
    tensor: str = ""


VISUAL = Input("visual", "[B, N, D]", "projected visual tokens, the language model's input")
PROMPT = Input("prompt", "[B, M, D]", "the language model's embeddings of the user's text tokens")
#: CLIP's embeddings, or the prompt instead, of a method that has a `space`.
IMAGE_EMBEDS = Input(
    "image_embeds",
    "[B, N, Dc]",
    "CLIP's visual projection of the patches, after its last layer norm",
)
TEXT_EMBEDS = Input(
    "text_embeds",
    "[B, S, Dc]",
    "CLIP's text embeddings of the instruction's parts; space='llm' needs none",
)
LLM_PROMPT = replace(PROMPT, source=f"with space='llm': {PROMPT.source}", required=False)


@dataclass(frozen=True)
class About:
    """Facts about a method: the table of docs/methods.md and the errors are made of them.

    Attributes:
        title: the method's own name.
        paper: where it was published.
        inputs: what `select` takes, masks apart.
        primitives: the public functions it is composed of.
        cost: of one image, with N tokens of width D and K kept.
        against: what its picks are tested against.
    """

    title: str
    paper: str
    inputs: tuple[Input, ...]
    primitives: tuple[str, ...]
    cost: str
    against: str

    def input(self, name: str) -> Input:
        """The input called `name`.

        Raises:
            KeyError: the method has no such input.
        """
        for candidate in self.inputs:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def require(self, name: str, value: object) -> Tensor:
        """`value` if it is a tensor.

        Raises:
            TypeError: it is not; the message says what the method needs and where it comes from.
        """
        if isinstance(value, Tensor):
            return value
        wanted = self.input(name)
        rule = f"a tensor {wanted.shape} ({wanted.source})"
        raise TypeError(f"{self.title}: {name} must be {rule}, got {say(value)}")


class Method(Protocol):
    """What every method is: options fixed when it is made, tokens given to `select`."""

    @property
    def select(self) -> Callable[..., Selection]:
        """Chooses tokens: `select(visual, prompt, *, visual_mask, prompt_mask, ...)`."""


class PublishedMethod(Method, Protocol):
    """What a type checker knows of the methods under `Published` names: they also prune models."""

    @property
    def select_varlen(self) -> Callable[..., list[Selection]]:
        """Chooses tokens of images of different lengths; see `MethodBase`."""

    def __call__(self, model: Any, **options: Any) -> PruneHandle:
        """Prune a transformers model; see `hf.prune`."""


#: Names of the methods of this package.
Published = Literal[
    "adaptprune",
    "allinrelevance",
    "anchorprune",
    "cdpruner",
    "cenprune",
    "dart",
    "divprune",
    "fastervlm",
    "fastv",
    "greedyprune",
    "holov",
    "idselection",
    "mmtok",
    "scope",
    "scoredtopk",
    "todre",
    "tome",
    "topv",
    "trimtokenator",
    "vflowopt",
    "visiondrop",
    "visionzip",
    "vispruner",
    "vitcop",
    "zooprune",
    "zspaprune",
]


@dataclass(frozen=True)
class _Entry:
    make: Callable[..., Any]
    about: About | None


_entries: dict[str, _Entry] = {}
_Make = TypeVar("_Make", bound=Callable[..., Any])


def available() -> tuple[str, ...]:
    """Names that `get` knows, in alphabetical order.

    Example:
        >>> "divprune" in available()
        True
    """
    return tuple(sorted(_entries))


@overload
def get(name: Published, /, **options: Any) -> PublishedMethod: ...
@overload
def get(name: str, /, **options: Any) -> Method: ...
def get(name: str, /, **options: Any) -> Method:
    """Make the method called `name`.

    Args:
        name: one of `available()`: lower case, without separators.
        **options: of the method, as its class takes them; all published ones take `keep`.

    Returns:
        The method; its `select` chooses tokens. A published one prunes a model when it is called
        with it; under a name that was registered it need not: `hf.prune(model, method)` takes any.

    Raises:
        TypeError: `name` is no string, the method has no such option, or what was registered makes
            something without a `select`.
        ValueError: no method has this name, or an option is out of range.

    Example:
        >>> import torch
        >>> method = get("divprune", keep=2)
        >>> method.select(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])).indices
        tensor([0, 2])
    """
    make = _entry("get", name).make
    _check_options(name, make, options)
    method: Method = make(**options)
    # A tensor has a `select` too: its own.
    if isinstance(method, Tensor) or not callable(getattr(method, "select", None)):
        raise TypeError(f"get: what {name} makes must have a `select`, got {say(method)}")
    return method


def _check_options(name: str, make: Callable[..., Any], options: dict[str, Any]) -> None:
    """`make` takes these `options`, and none that it needs is missing."""
    try:
        parameters = inspect.signature(make).parameters
    except ValueError:  # some builtins do not say
        return
    kinds = {x.kind for x in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for option in options:
            if option not in parameters:
                known = ", ".join(parameters) or "none"
                raise TypeError(f"get: options of {name} must be among {known}, got {option!r}")
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    for option, x in parameters.items():
        if x.default is x.empty and x.kind not in variable and option not in options:
            raise TypeError(f"get: option {option} of {name} must be given, got None")


def about(name: str) -> About:
    """What the method called `name` needs, costs and is tested against.

    Raises:
        TypeError: `name` is no string, or its method was registered without these facts.
        ValueError: no method has this name.

    Example:
        >>> [(x.name, x.required) for x in about("zspaprune").inputs]
        [('visual', True), ('prompt', False)]
    """
    facts = _entry("about", name).about
    if facts is None:
        raise TypeError(f"about: name must be of a method that has an `about`, got {name!r}")
    return facts


@overload
def register(name: str) -> Callable[[_Make], _Make]: ...
@overload
def register(name: str, make: _Make, about: About | None = None) -> _Make: ...
def register(name: str, make: Any = None, about: About | None = None) -> Any:
    """Make a method known under a name; also a decorator of its class.

    Args:
        name: a new name: lower-case letters and digits, starting with a letter. A class that is
            defined again (in a notebook, by a reload) takes the place it had.
        make: called with the options of `get`; returns something with a `select`. Without it, a
            decorator is returned.
        about: the method's facts; by default the attribute `about` of `make`, if it has one.

    Returns:
        `make`, unchanged.

    Raises:
        TypeError: `name` is no string, or `make` cannot be called or is a class without `select`.
        ValueError: `name` has other characters or is taken.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from zspa_kernels import Selection, num_keep
        >>> @register("everyother")
        ... @dataclass(frozen=True)
        ... class EveryOther:
        ...     keep: float
        ...     def select(self, visual, prompt=None, *, visual_mask=None, prompt_mask=None):
        ...         indices = torch.arange(0, visual.shape[-2], 2)
        ...         indices = indices[: num_keep(visual.shape[-2], self.keep)]
        ...         return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))
        >>> get("everyother", keep=2).select(torch.eye(4)).indices
        tensor([0, 2])
        >>> unregister("everyother")
    """
    if not isinstance(name, str):
        raise TypeError(f"register: name must be a string, got {type(name).__name__} {name!r:.60}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"register: name must be lower-case letters and digits, letter first, got {name!r}"
        )
    if make is None:
        return lambda decorated: register(name, decorated)
    if name in _entries and not _anew(_entries[name].make, make):
        raise ValueError(f"register: name must be none of {_known()}, got {name!r}")
    if not callable(make) or (isinstance(make, type) and not hasattr(make, "select")):
        raise TypeError(
            f"register: make must be a class with a `select`, or a function, got {make!r:.60}"
        )
    if about is None:
        about = getattr(make, "about", None)
    _entries[name] = _Entry(make, about)
    return make


def _anew(old: Any, new: Any) -> bool:
    """Whether `new` is the class `old` once more: a cell of a notebook that was run again."""
    places = [(x.__module__, x.__qualname__) for x in (old, new) if isinstance(x, type)]
    return len(places) == 2 and places[0] == places[1]


def unregister(name: str) -> None:
    """Forget a name.

    Raises:
        TypeError: `name` is no string.
        ValueError: no method has this name.
    """
    _entry("unregister", name)
    del _entries[name]


def _entry(caller: str, name: object) -> _Entry:
    if not isinstance(name, str):
        raise TypeError(
            f"{caller}: name must be a string, one of {_known()}, got {type(name).__name__}"
        )
    if name not in _entries:
        raise ValueError(f"{caller}: name must be one of {_known()}, got {name!r}")
    return _entries[name]


def _known() -> str:
    return ", ".join(available())
