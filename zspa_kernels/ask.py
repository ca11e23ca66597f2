# SPDX-License-Identifier: Apache-2.0
"""One picture, one question: what `zspa prune` does (extras `demo` and `hf`)."""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from . import methods, pictures
from ._contract.values import place
from .demo.errors import DemoError, UsageError
from .demo.picture import read, replacing
from .hf import NothingPrunedWarning, PruneReport, PruningError, prune
from .hf.architectures import ARCHITECTURES, Target
from .hf.layout import SCOPES
from .hf.positions import POSITIONS
from .hf.query import QUERIES


@dataclass(frozen=True)
class Run:
    """One answer and its time.

    Attributes:
        text: the answer.
        tokens: how many the model generated.
        first_s: seconds to the first of them: encoding, selection and prefill.
        total_s: seconds to the last.
    """

    text: str
    tokens: int
    first_s: float
    total_s: float

    @property
    def token_s(self) -> float | None:
        """Seconds a further token; None for a single one."""
        return (self.total_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass(frozen=True)
class Answer:
    """What `ask` found.

    Attributes:
        architecture: of the model, as people call it.
        parameters: how many it has.
        dtype: of its weights.
        device: where it ran.
        load_s: seconds to load it.
        picture: (width, height) of the file.
        report: what was pruned.
        pruned: the answer of the pruned model.
        full: that of the unpruned one, where it was asked for.
        out: the picture written, if one was.
    """

    architecture: str
    parameters: int
    dtype: str
    device: str
    load_s: float
    picture: tuple[int, int]
    report: PruneReport
    pruned: Run
    full: Run | None
    out: Path | None

    def to_json(self) -> str:
        """Everything, the report included; times in seconds."""

        def run(one: Run | None) -> dict[str, Any] | None:
            return None if one is None else {**vars(one), "token_s": one.token_s}

        everything = {
            **vars(self),
            "report": json.loads(self.report.to_json()),
            "pruned": run(self.pruned),
            "full": run(self.full),
            "out": None if self.out is None else str(self.out),
        }
        return json.dumps(everything, indent=2)


#: Called with what is being done, and the share that is done or None.
Progress = Callable[[str, "float | None"], None]


def ask(
    model: str,
    image: Path,
    prompt: str,
    method: str = "zspaprune",
    options: Mapping[str, Any] | None = None,
    *,
    scope: str = "image",
    positions: str = "original",
    query: str = "question",
    max_new_tokens: int = 64,
    full: bool = False,
    out: Path | None = None,
    device: str | None = None,
    progress: Progress = lambda what, share: None,
) -> Answer:
    """Ask a pruned model about a picture.

    Args:
        model: a folder, or a name on the hub; its weights load by transformers' rules.
        image: a picture file.
        prompt: the question.
        method: one of `methods.available()`.
        options: of the method: `keep`, ...
        scope: what shares a budget; see `hf.prune`.
        positions: of kept tokens; see `hf.prune`.
        query: what relevance is measured against: `"question"`, `"all"` words, or a text.
        max_new_tokens: length of the answer at most.
        full: also ask the model without pruning, first; both once warm, by a token more.
        out: PNG of what was kept.
        device: where to run; by default the first GPU, or the CPU.
        progress: told what is being done.

    Raises:
        UsageError: an argument makes no sense.
        DemoError: the picture or the model cannot be used.
    """
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens must be at least 1, got {max_new_tokens}")
    _known(method, options or {})
    _one_of("--scope", scope, SCOPES)
    _one_of("--positions", positions, POSITIONS)
    where = _device(device)
    pixels = read(image)
    height, width = pixels.shape[:2]
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replacing(out, never=image)) if out else None
        start = time.perf_counter()
        progress("loading", None)
        processor, loaded = load(model, where)
        load_s = time.perf_counter() - start
        inputs = _inputs(processor, Image.fromarray(pixels), prompt).to(where, loaded.dtype)
        target = Target.of(loaded)

        def answer(what: str) -> Run:
            if full:  # two times are compared, without what only first calls of a process do
                _generate(loaded, processor, inputs, 1, lambda share: progress("warming up", None))
            return _generate(
                loaded, processor, inputs, max_new_tokens, lambda share: progress(what, share)
            )

        with _one_line(where), warnings.catch_warnings():
            # The report that is printed says so, in numbers.
            warnings.simplefilter("ignore", NothingPrunedWarning)
            handle = prune(
                loaded,
                methods.get(method, **(options or {})),
                scope=scope,
                positions=positions,
                query=query if query in QUERIES else [query],
                processor=processor,
            )
            whole = answer("answering, unpruned") if full else None
            with handle:
                pruned = answer("answering")
        if handle.report is None:
            raise DemoError("the prompt has no image token: nothing was pruned")
        if temporary is not None:
            progress("drawing", None)
            crops = len(handle.report.images)  # of the one picture
            figure = pictures.kept(
                loaded,
                inputs,
                handle.report,
                range(crops),
                processor=processor,
                across=_across(crops, width / height),
            )
            figure.savefig(temporary, format="png")
    return Answer(
        architecture=target.arch.name,
        parameters=sum(one.numel() for one in loaded.parameters()),
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(where),
        load_s=load_s,
        picture=(width, height),
        report=handle.report,
        pruned=pruned,
        full=whole,
        out=out,
    )


def load(model: str, device: torch.device) -> tuple[Any, Any]:
    """(processor, model) by transformers' Auto classes.

    The configuration is looked at first: nobody waits for weights that cannot be used.

    Raises:
        DemoError: files are missing or damaged, there is no network, the architecture is not
            supported, or not by this transformers, or the device has too little memory.
    """
    import transformers

    if model.startswith((".", "/")) and not Path(model).is_dir():
        raise DemoError(f"cannot load {model}: no such folder")
    processors: Any = transformers.AutoProcessor
    models: Any = transformers.AutoModelForImageTextToText
    try:
        config = transformers.AutoConfig.from_pretrained(model)
        if config.model_type not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            raise DemoError(f"{model} is a {config.model_type!r}; supported are {known}")
        ARCHITECTURES[config.model_type].check_version()
        processor = processors.from_pretrained(model)
        loaded = models.from_pretrained(model, dtype="auto").to(device).eval()
    except DemoError:
        raise
    except PruningError as error:
        raise DemoError(_line(error)) from error
    # Each of the libraries that read these files has errors of its own for damaged ones.
    except Exception as error:
        where = "" if Path(model).is_dir() else "no folder here, and "
        raise DemoError(f"cannot load {model}: {where}{_line(error)}") from error
    return processor, loaded


@contextlib.contextmanager
def _one_line(where: torch.device) -> Iterator[None]:
    """What prevents an answer, told as other errors of the command are."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DemoError(f"{where} has too little memory: {_line(error)}") from error
    except (PruningError, TypeError, ValueError) as error:
        raise UsageError(_line(error)) from error


def _line(error: Exception) -> str:
    """An error's text on one line; of others' errors without the advice that does not fit there."""
    text = " ".join(str(error).split())
    if isinstance(error, PruningError):
        return text
    if not isinstance(error, OSError | ValueError | TypeError | ImportError):
        text = f"{type(error).__name__}: {text}"  # such as a key
    return text if len(text) <= 300 else text[:297] + "..."


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return place("prune", "--device", name)
    except ValueError as error:
        raise UsageError(str(error).removeprefix("prune: ")) from error


def _one_of(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{flag} must be one of {', '.join(known)}, got {value!r}")


def _known(method: str, options: Mapping[str, Any]) -> None:
    """Raise for options that a method does not take, before anything is loaded."""
    _one_of("--method", method, methods.available())
    try:
        methods.get(method, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--method {method}: {_line(error).removeprefix('get: ')}") from error


def _across(crops: int, shape: float) -> int:
    """How many crops to draw in a line: the last shows the whole picture, the others its parts.

    Args:
        crops: of a picture.
        shape: its width as a share of its height.
    """
    parts = max(1, crops - 1)
    lines = (count for count in range(1, parts + 1) if parts % count == 0)
    return min(lines, key=lambda wide: abs(math.log(wide * wide / parts / shape)))


def _inputs(processor: Any, picture: Image.Image, prompt: str) -> Any:
    """What the processor makes of the question, by the model's chat template if it has one.

    Raises:
        UsageError: the prompt has placeholders of its own.
        DemoError: the template is not for pictures, or fails.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    source = processor if getattr(processor, "chat_template", None) else tokenizer
    once: dict[str, Any] = {}
    if getattr(source, "chat_template", None):
        parts = [{"type": "image"}, {"type": "text", "text": prompt}]
        try:
            text = source.apply_chat_template(
                [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program, which raises what it likes
            raise DemoError(f"the model's chat template fails: {_line(error)}") from error
        begin = getattr(tokenizer, "bos_token", None)
        if begin and text.startswith(begin):  # Gemma's template writes what its tokenizer adds too
            once["add_special_tokens"] = False
    else:
        text = f"{getattr(processor, 'image_token', '<image>')}\n{prompt}"
    try:
        return processor(images=[picture], text=text, return_tensors="pt", **once)
    except ValueError as error:
        raise UsageError(f"--prompt {prompt!r:.60} with one picture: {_line(error)}") from error


def _generate(
    model: Any, processor: Any, inputs: Any, max_new_tokens: int, tick: Callable[[float], None]
) -> Run:
    """Greedy decoding, with the time of every token."""
    import transformers

    times = []

    def note(ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        if ids.is_cuda:
            torch.cuda.synchronize(ids.device)
        times.append(time.perf_counter())
        tick(len(times) / max_new_tokens)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    start = time.perf_counter()
    with torch.no_grad():
        sequences = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            stopping_criteria=transformers.StoppingCriteriaList([note]),
        )
    new = sequences[0, inputs["input_ids"].shape[1] :]
    text = processor.decode(new, skip_special_tokens=True).strip()
    return Run(text, len(new), times[0] - start, times[-1] - start)
