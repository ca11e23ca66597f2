# SPDX-License-Identifier: Apache-2.0
"""select: core and diversity against the float64 oracle, on every backend."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable

import pytest
import torch

import zspa_kernels as zk
from python_tests.runners import (
    BACKENDS,
    each_backend,
    each_backend_and_dtype,
    fitting,
    select,
    strided_views,
)
from zspa_kernels.testing import (
    MODELS,
    bound,
    check_select,
    check_sorted,
    prompt,
    select64,
    special,
    tokens,
    two_textures,
    zspaprune_loop,
)
from zspa_kernels.testing.cases import (
    DTYPES,
    Case,
    judge_select,
    large_special_cases,
    model_cases,
    pooling_cases,
    special_cases,
)

Require = Callable[..., None]

_LAZY = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, named from Python 3.13


def _judge_all(backend: str, cases: list[Case]) -> None:
    run = select(backend)
    for case in fitting(backend, "select", cases):
        with case.named():
            judge_select(case, run, backend)


@each_backend
@pytest.mark.parametrize("model", MODELS)
def test_models(backend: str, model: str, require_backend: Require) -> None:
    require_backend(backend)
    cases = model_cases("small") + model_cases("wide")
    _judge_all(backend, [case for case in cases if case.tokens == model])


@each_backend
def test_special_inputs(backend: str, require_backend: Require) -> None:
    require_backend(backend)
    _judge_all(backend, special_cases())


@each_backend
def test_poolings(backend: str, require_backend: Require) -> None:
    require_backend(backend)
    _judge_all(backend, pooling_cases())


@pytest.mark.parametrize("model", MODELS)
def test_large(model: str, require_backend: Require) -> None:
    require_backend("cpp")
    _judge_all("cpp", [case for case in model_cases("large") if case.tokens == model])


def test_large_special_inputs(require_backend: Require) -> None:
    require_backend("cpp")
    _judge_all("cpp", [case for case in large_special_cases() if case.weights == "none"])


@each_backend
def test_offsets_beyond_32_bits(backend: str, require_backend: Require) -> None:
    """Rows 2**29 elements apart: 17 GB of addresses, of which nine pages are touched."""
    require_backend(backend)
    n, d, apart = 9, 40, 2**29
    visual, words = tokens("vlm", n, d), prompt("vlm", 2, d)
    with mmap.mmap(-1, 4 * n * apart, flags=_LAZY) as space:
        memory = torch.frombuffer(space, dtype=torch.float32)
        far = memory.as_strided((n, d), (apart, 1))
        far.copy_(visual)
        results = [
            zk.select(x, words, k_core=3, k_diverse=4, sorted=False, backend=backend)
            for x in (visual, far)
        ]
        del far, memory
    assert torch.equal(*results)


@each_backend
def test_core_lies_in_the_prompted_texture(backend: str, require_backend: Require) -> None:
    """A picture of two textures and a prompt about one: ZSPAPrune's core finds it."""
    require_backend(backend)
    picture = two_textures()
    k_core, k_diverse = 24, 10
    got = zk.select(
        picture.visual,
        picture.prompt,
        k_core=k_core,
        k_diverse=k_diverse,
        sorted=False,
        backend=backend,
    )
    assert bool(picture.region[got[:k_core]].all())
    # What the core covers already is no longer far from it: the rest is picked elsewhere.
    assert not bool(picture.region[got[k_core:]].any())
    alone = zk.select(picture.visual, k_core=0, k_diverse=34, backend=backend)
    assert 0 < int(picture.region[alone].sum()) < 34


@each_backend
@pytest.mark.parametrize("name", ["vlm", "masked", "nonfinite_rows", "all_masked", "zero_rows"])
def test_sorted_is_the_same_set_ascending(
    backend: str, name: str, require_backend: Require
) -> None:
    require_backend(backend)
    case = Case(name, 30, 33, 6, 12)
    for words in (case.prompt, None):
        k_core = 6 if words is not None else 0
        counts = {"k_core": k_core, "k_diverse": 18 - k_core}
        masks = {"visual_mask": case.mask}
        free = zk.select(case.visual, words, **counts, **masks, sorted=False, backend=backend)
        got = zk.select(case.visual, words, **counts, **masks, backend=backend)
        check_sorted(got, free)


@each_backend
def test_counts_at_the_ends(backend: str, require_backend: Require) -> None:
    """Every split of every K for a few tokens, with more asked for than are valid."""
    require_backend(backend)
    n, d = 5, 9
    visual, words = tokens("clusters", n, d), prompt("clusters", 2, d)
    for mask in (None, torch.tensor([True, False, True, True, False])):
        for k_core in range(n + 1):
            for k_diverse in {0, 1, n - k_core} - ({1} if k_core == n else set()):
                got = zk.select(
                    visual,
                    words,
                    k_core=k_core,
                    k_diverse=k_diverse,
                    visual_mask=mask,
                    sorted=False,
                    backend=backend,
                )
                check_select(
                    visual,
                    words,
                    k_core,
                    k_diverse,
                    got,
                    mask=mask,
                    bound=bound(d, backend),
                )


@each_backend
def test_prompt_without_valid_tokens(backend: str, require_backend: Require) -> None:
    """There is no core, so all K are taken by diversity from the seed."""
    require_backend(backend)
    visual = tokens("vlm", 30, 12)
    right = zk.diversity(visual, 11, backend=backend)
    nothing = (
        (torch.empty(0, 12), None),
        (torch.full((3, 12), math.nan), None),
        (torch.ones(3, 12), torch.zeros(3, dtype=torch.bool)),
    )
    for words, mask in nothing:
        got = zk.select(
            visual,
            words,
            k_core=4,
            k_diverse=7,
            prompt_mask=mask,
            sorted=False,
            backend=backend,
        )
        assert torch.equal(got, right)
        check_select(visual, words, 4, 7, got, prompt_mask=mask, bound=bound(12, backend))


@each_backend
def test_zero_prompt_takes_the_first_tokens(backend: str, require_backend: Require) -> None:
    require_backend(backend)
    visual = special("zero_rows", 20, 8).visual
    got = zk.select(
        visual, torch.zeros(2, 8), k_core=15, k_diverse=0, sorted=False, backend=backend
    )
    directed = [i for i in range(20) if i % 3]
    assert got.tolist() == [*directed, 0, 3][:15]


@each_backend
def test_batches_with_rows_of_every_kind(backend: str, require_backend: Require) -> None:
    require_backend(backend)
    n, d = 37, 33
    names = ("vlm", "masked", "nonfinite_rows", "all_masked", "duplicates", "one_valid")
    cases = [Case(name, n, d, 8, 10, torch.bfloat16) for name in names]
    visual = torch.stack([case.visual for case in cases])
    words = torch.stack([prompt("iid", 4, d, seed=i) for i in range(len(cases))])
    words[4] = math.nan
    every = torch.ones(n, dtype=torch.bool)
    mask = torch.stack([every if case.mask is None else case.mask for case in cases])
    words_mask = torch.ones(len(cases), 4, dtype=torch.bool)
    words_mask[0, 2:] = False
    got = zk.select(
        visual,
        words,
        k_core=8,
        k_diverse=10,
        visual_mask=mask,
        prompt_mask=words_mask,
        sorted=False,
        backend=backend,
    )
    for b in range(len(cases)):
        check_select(
            visual[b],
            words[b],
            8,
            10,
            got[b],
            mask=mask[b],
            prompt_mask=words_mask[b],
            bound=bound(d, backend),
        )
    assert zk.select(visual[:0], words[:0], k_core=2, k_diverse=1, backend=backend).shape == (0, 3)
    none = zk.select(visual[:, :0], words, k_core=0, k_diverse=0, backend=backend)
    assert none.shape == (len(cases), 0)


@each_backend_and_dtype
def test_strides(backend: str, dtype: torch.dtype, require_backend: Require) -> None:
    require_backend(backend)
    visual = torch.stack([tokens("smooth", 23, 21, seed=s, dtype=dtype) for s in range(2)])
    words = torch.stack([prompt("smooth", 3, 21, seed=s) for s in range(2)])
    counts = {"k_core": 3, "k_diverse": 4}
    plain = zk.select(visual, words, **counts, sorted=False, backend=backend)
    for name, view in strided_views(visual).items():
        got = zk.select(view, words, **counts, sorted=False, backend=backend)
        assert torch.equal(got, plain), name
    for name, view in strided_views(words).items():
        got = zk.select(visual, view, **counts, sorted=False, backend=backend)
        assert torch.equal(got, plain), name


def test_exact_picks_are_the_same_everywhere(require_backend: Require) -> None:
    poolings = ("mean", "max", "none_mean", "none_max")
    sizes = ((300, 64), (200, 33), (99, 100), (130, 17))
    for pooling, (n, d), dtype in zip(poolings, sizes, (*DTYPES, DTYPES[2]), strict=True):
        visual, words = tokens("exact", n, d, dtype=dtype), prompt("exact", 4, d, dtype=dtype)
        right = select64(visual, words, 20, 16, pooling=pooling).tolist()
        for backend in BACKENDS:
            require_backend(backend)
            got = zk.select(
                visual,
                words,
                k_core=20,
                k_diverse=16,
                pooling=pooling,
                sorted=False,
                backend=backend,
            )
            assert got.tolist() == right, (backend, pooling)


def test_the_op_itself(require_backend: Require) -> None:
    """What a caller of torch.ops gets is judged like a named backend."""
    require_backend("cpp")
    case = Case("vlm", 150, 33, 20, 30, torch.bfloat16)
    got = torch.ops.zspa.select(case.visual, case.prompt, 20, 30, sorted=False)
    check_select(case.visual, case.prompt, 20, 30, got, bound=bound(33, "cpp"))
    check_sorted(torch.ops.zspa.select(case.visual, case.prompt, 20, 30), got)


@each_backend
def test_equals_the_paper_read_plainly(backend: str, require_backend: Require) -> None:
    """Where no pick is a near tie, the plain loop chooses the same tokens."""
    require_backend(backend)
    visual, words = tokens("iid", 120, 100, seed=5), prompt("iid", 4, 100, seed=5)
    got = zk.select(visual, words, k_core=12, k_diverse=20, sorted=False, backend=backend)
    replay = check_select(visual, words, 12, 20, got, bound=bound(100, backend))
    assert replay.decided == 32
    assert torch.equal(got, zspaprune_loop(visual, words, 12, 20))
