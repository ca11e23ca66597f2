# SPDX-License-Identifier: Apache-2.0
"""The native CPU kernels beyond the contract: instruction sets, work done, memory taken."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import time

import pytest
import torch

import zspa_kernels as zk
from python_tests import fuzz_native
from python_tests.runners import threads
from zspa_kernels import _native, primitives
from zspa_kernels.testing.tokens import MODELS, tokens

PASSES, DOTS, SEED_DOTS = 0, 1, 2


@pytest.fixture
def native(require_backend):
    require_backend("cpp")
    module = _native.module()
    yield module
    module.use_isa("auto")


def work(visual, k_core, k_diverse):
    """(indices, [passes, dots, seed dots]) of one native call on unbatched tokens."""
    from zspa_kernels.backends.cpp.select import select

    stats = torch.zeros(3, dtype=torch.int64)
    prompt = visual[None, :3].contiguous() if k_core else None
    indices = select(visual[None], prompt, k_core, k_diverse, None, None, "mean", False, stats)
    return indices[0].tolist(), stats.tolist()


def test_portable_kernels_are_always_there_and_last(native):
    assert native.isas()[-1] == "portable"
    assert native.isa() == native.isas()[0]


def test_an_unknown_instruction_set_is_refused(native):
    with pytest.raises(ValueError, match=r"name must be one of auto, .*portable, got avx1024"):
        native.use_isa("avx1024")
    assert native.isa() == native.isas()[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [1, 4, 7, 16, 31, 33, 511, 1023, 1025, 1040, 2049])
def test_every_instruction_set_gives_the_exact_cosine(native, dtype, d):
    """Entries that are small integers: sums are exact in any order, so bits must agree.

    D crosses every boundary of the packing: steps of 8, 16, 32 channels, blocks of 1024, 2048.
    """
    from zspa_kernels.backends.cpp.relevance_topk import relevance_topk

    generator = torch.Generator().manual_seed(d)
    visual = torch.randint(-3, 4, (1, 37, d), generator=generator, device="cpu").to(dtype)
    prompt = torch.randint(-3, 4, (1, 1, d), generator=generator, device="cpu").to(dtype)
    expected = None
    for isa in native.isas():
        native.use_isa(isa)
        _, scores = relevance_topk(visual, prompt, 5, None, None, "mean")
        picks = work(visual[0], 0, 37)[0]
        if expected is None:
            expected = scores, picks
        assert torch.equal(scores, expected[0]), isa
        assert picks == expected[1], isa
    native.use_isa("auto")


def test_every_half_is_read(native):
    """One to a row, and in rows of 256, which are converted in vectors."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    for isa in native.isas():
        native.use_isa(isa)
        for rows in (halves[:, None], halves.view(256, 256)):
            weights = torch.full((len(rows),), 2.0**-4)  # so that 65536 is not infinite
            read = primitives.merge(rows, torch.arange(len(rows)), len(rows), weights=weights)
            right = (rows.float() * 2.0**-4).half()
            torch.testing.assert_close(read, right, rtol=0.0, atol=0.0, equal_nan=True)


def test_small_halves_are_read_where_subnormal_floats_count_as_zero(native):
    """Rows of float16 below 6e-5; one is twice another, so that float64 decides as well."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(1, 400, (40, 64), generator=generator, dtype=torch.int16)
    bits[1] = 2 * bits[3]
    rows = bits.view(torch.float16)
    for isa in native.isas():
        native.use_isa(isa)
        _, owner = primitives.match(rows, 10)
        expected = zk.relevance_topk(rows, rows[:2], 40)
        torch.set_flush_denormal(True)
        try:
            flushed = zk.relevance_topk(rows, rows[:2], 40)
            assert torch.equal(primitives.match(rows, 10)[1], owner), isa
            assert all(map(torch.equal, flushed, expected)), isa
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.parametrize("model", MODELS)
def test_greedy_does_less_than_the_plain_greedy(native, model):
    n, k = 1296, 130
    _, (passes, dots, seed_dots) = work(tokens(model, n, 64), 52, 78)
    assert seed_dots == 0
    assert passes <= 30
    assert dots <= 1.05 * n * k


def test_the_seed_on_random_tokens_stays_within_half_the_matrix(native):
    n = 1296
    _, (_, _, seed_dots) = work(tokens("iid", n, 512), 0, 2)
    assert 0 < seed_dots <= n * n / 2


@pytest.mark.parametrize("model", ["smooth", "vlm", "video"])
def test_the_seed_on_image_like_tokens_needs_a_fraction(native, model):
    n = 1296
    _, (_, _, seed_dots) = work(tokens(model, n, 512), 0, 2)
    assert 0 < seed_dots <= 0.2 * n * n / 2


@pytest.mark.parametrize("distinct", [1, 40])
def test_duplicates_do_not_cost_more_than_the_plain_greedy(native, distinct):
    n, k = 1000, 100
    visual = tokens("iid", distinct, 64).repeat(n // distinct, 1)
    indices, (_, dots, _) = work(visual, 40, 60)
    assert len(set(indices)) == k
    assert dots <= 1.2 * n * k


def test_one_pick_a_pass_does_not_blow_up(native):
    """A chain in which every pick spoils its neighbours most: few candidates survive a pass."""
    n, k = 512, 128
    angle = torch.arange(n, dtype=torch.float64) * (2.0 * torch.pi / n)
    visual = torch.stack([angle.cos(), angle.sin()], 1).float()
    indices, (_, dots, _) = work(visual, 1, k - 1)
    assert len(set(indices)) == k
    assert dots <= 1.5 * n * k


@pytest.mark.usefixtures("native")
def test_thinning_tokens_that_are_all_alike_looks_closely_once():
    """Float32 orders none of their cosines; a second look in every round took 60 times as long."""
    n = 400
    rows, scores = tokens("iid", n, 64), torch.arange(float(n))

    def seconds(features):
        began = time.perf_counter()
        primitives.thin(features, scores, n // 10, step=1)
        return time.perf_counter() - began

    with threads(1):  # which wait for nobody
        plain = min(seconds(rows) for _ in range(3))
        assert min(seconds(1 + 1e-3 * rows) for _ in range(3)) < 15 * plain


def test_random_calls(native):
    """A few seconds' worth of what `make sanitize` goes on with."""
    before = torch.get_num_threads()
    kinds = {fuzz_native.check(seed) for seed in range(150)}
    torch.set_num_threads(before)
    assert kinds == {kind.__name__ for kind in fuzz_native.KINDS}


def test_scratch_of_a_long_video_is_small(require_backend):
    """16384 tokens of 3584 channels, 1638 kept: under 64 MB beside the tokens."""
    require_backend("cpp")
    script = textwrap.dedent(
        """
        import resource
        import torch
        import zspa_kernels

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        torch.set_num_threads(2)
        select = torch.ops.zspa.select
        few = torch.randn(600, 3584).bfloat16()
        select(few, few[:4], 20, 40)  # the libraries' own memory is paid before
        visual = torch.empty(16384, 3584, dtype=torch.bfloat16)
        for rows in visual.split(1024):
            rows.copy_(torch.randn(rows.shape) + 0.5)
        before = peak()
        for k_core in (655, 0):
            select(visual, visual[:8], k_core, 1638 - k_core)
        print(peak() - before)
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 64.0


@pytest.mark.usefixtures("native")
def test_a_module_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _native._load.__wrapped__()[1] is None
    monkeypatch.setattr(_native, "__version__", "0.0.1")
    module, why = _native._load.__wrapped__()
    assert module is None
    assert re.search("was built from version .*, this is 0.0.1; rebuild with", str(why))
