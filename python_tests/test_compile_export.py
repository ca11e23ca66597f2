# SPDX-License-Identifier: Apache-2.0
"""torch.compile in one graph with a dynamic N, and torch.export with a range of N."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

import zspa_kernels as zk
from python_tests.scenes import inputs
from zspa_kernels import primitives

B, D, M = 2, 6, 3


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def draw(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(B, n, D, generator=generator), torch.randn(B, M, D, generator=generator)


def keep_share(visual: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """What a model does: how many follows from the size, rows are gathered."""
    indices = zk.select(visual, prompt, keep=0.25, core_ratio=0.4)
    return indices, zk.gather(visual, indices)


def every_op(visual: Tensor, prompt: Tensor) -> list[Tensor]:
    k = zk.num_keep(visual.shape[1], 0.25, rounding="floor")
    core, scores = zk.relevance_topk(visual, prompt, k, pooling="none_max")
    picks = zk.diversity(visual, k, seeds=core, weights=scores.abs())
    packed, n = visual.flatten(0, 1), visual.shape[1]
    cu_seqlens = torch.arange(B + 1, device=visual.device) * n
    counts = torch.full((B,), 2, device=visual.device)
    varlen = torch.ops.zspa.select_varlen(
        packed, cu_seqlens, prompt[0], None, counts, counts, 4 * B, n
    )
    more = torch.ops.zspa.diversity_varlen(packed, cu_seqlens, counts, 2 * B, n)
    spanning = zk.dpp(visual, k, weights=scores.abs())
    spans = torch.ops.zspa.dpp_varlen(packed, cu_seqlens, counts, 2 * B, n)
    covering = zk.facility_location(visual, k, benefits=scores[:, None], temperature=0.2)
    covers = torch.ops.zspa.facility_location_varlen(packed, cu_seqlens, counts, 2 * B, n)
    apart = zk.min_sum(visual, k, seeds=core)
    aparts = torch.ops.zspa.min_sum_varlen(packed, cu_seqlens, counts, 2 * B, n)
    hard = zk.suppress(visual, scores, k, threshold=0.3)
    soft = zk.soft_suppress(visual, scores, k, sharpness=9.0, rule="scale")
    greedy = [hard, soft, spanning, spans, covering, covers, apart, aparts]
    return [core, scores, picks, varlen, more, *greedy]


def assert_same(found: object, expected: object) -> None:
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("function", [keep_share, every_op])
@pytest.mark.parametrize("dynamic", [True, None])
def test_one_graph_serves_every_n(
    function: Callable[[Tensor, Tensor], object], dynamic: bool | None
) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=count)
    for n in (9, 16, 23, 64):
        assert_same(compiled(*draw(n)), function(*draw(n)))
    assert len(graphs) == (1 if dynamic else 2)  # None: the first call is taken for static


def ragged(images: list[Tensor], prompt: Tensor) -> list[Tensor]:
    """Images of any lengths, listed and packed: the lengths are sizes, or ints on the host."""
    lengths = [len(image) for image in images]
    packed, quarter = torch.cat(images), [n // 4 for n in lengths]
    each = zk.select_varlen(images, prompt, keep=0.25)
    words = zk.select_varlen(images, [prompt, prompt[:2], prompt[:0]], keep=0.25)
    all_of_them = zk.select_varlen(packed, prompt, lengths=lengths, keep=0.25)
    return [
        *(zk.gather(image, indices) for image, indices in zip(images, each, strict=True)),
        zk.gather(packed, all_of_them),
        *words,
        *zk.diversity_varlen(images, quarter, weights=[image.norm(dim=1) for image in images]),
        *zk.dpp_varlen(images, [3, 2, 1]),
        *zk.facility_location_varlen(images, quarter),
        zk.min_sum_varlen(packed, 2, lengths=lengths),
    ]


LENGTHS = (9, 25, 16), (25, 36, 9), (16, 9, 49)


def test_images_of_any_lengths_are_one_graph() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(ragged, fullgraph=True, backend=count)
    for lengths in LENGTHS:
        given = [draw(n)[0][0] for n in lengths], draw(1)[1][0]
        assert_same(compiled(*given), ragged(*given))
    assert len(graphs) == 2  # the first call is taken for static


# One of each way to serve several images; docs/methods.md says which methods break a graph.
@pytest.mark.parametrize(
    "name",
    [
        "cenprune",
        "dart",
        "greedyprune",
        "holov",
        "mmtok",
        "todre",
        "trimtokenator",
        "visionzip",
        "zspaprune",
    ],
)
def test_methods_of_images_of_any_lengths_are_one_graph(name: str) -> None:
    method: Any = zk.methods.get(name, keep=0.25)
    compiled = torch.compile(
        lambda given: [picked.indices for picked in method.select_varlen(**given)],
        fullgraph=True,
        dynamic=True,
        backend="eager",
    )
    for lengths in LENGTHS[:2]:
        rows = [inputs(name, 1, n, D) for n in lengths]
        given = {key: [row[key][0] for row in rows] for key in rows[0]}
        assert_same(compiled(given), [x.indices for x in method.select_varlen(**given)])


@pytest.mark.parametrize("function", [keep_share, every_op])
def test_aot_eager(function: Callable[[Tensor, Tensor], object]) -> None:
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (9, 30):
        assert_same(compiled(*draw(n)), function(*draw(n)))


def test_gradients_flow_through_gather_in_a_compiled_graph() -> None:
    compiled = torch.compile(keep_share, fullgraph=True, dynamic=True, backend="aot_eager")
    grads = []
    for function in (keep_share, compiled):
        visual, prompt = draw(12)
        indices, kept = function(visual.requires_grad_(), prompt.requires_grad_())
        assert not indices.requires_grad
        (kept * kept).sum().backward()
        assert prompt.grad is None
        grads.append(visual.grad)
    assert_same(*grads)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by inductor's own imports
def test_inductor() -> None:
    compiled = torch.compile(keep_share, fullgraph=True, dynamic=True)
    for n in (9, 30):
        assert_same(compiled(*draw(n)), keep_share(*draw(n)))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("function", [keep_share, every_op])
def test_export_with_a_range_of_n(
    function: Callable[[Tensor, Tensor], object], strict: bool
) -> None:
    class Module(torch.nn.Module):
        def forward(self, visual: Tensor, prompt: Tensor) -> object:
            return function(visual, prompt)

    # num_keep of the smallest N is 2: PyTorch makes a size of 1 a case of its own.
    shapes = {"visual": {1: torch.export.Dim("N", min=8, max=4096)}, "prompt": None}
    program = torch.export.export(Module(), draw(16), dynamic_shapes=shapes, strict=strict)
    for n in (8, 16, 100):
        assert_same(program.module()(*draw(n)), function(*draw(n)))


def test_export_keeps_the_op_and_its_counts_symbolic() -> None:
    class Module(torch.nn.Module):
        def forward(self, visual: Tensor) -> Tensor:
            return zk.select(visual, keep=0.25)

    shapes = {"visual": {1: torch.export.Dim("N", min=8, max=64)}}
    program = torch.export.export(Module(), draw(16)[:1], dynamic_shapes=shapes)
    (node,) = (n for n in program.graph.nodes if n.target is torch.ops.zspa.select.default)
    assert isinstance(node.args[3], torch.fx.Node)  # k_diverse is computed from N


def test_export_sees_that_two_counts_of_a_share_are_equal() -> None:
    """One from N, one from the size of what was kept, as a method takes them."""

    class Module(torch.nn.Module):
        def forward(self, visual: Tensor, prompt: Tensor) -> Tensor:
            kept = zk.select(visual, prompt, keep=0.5)
            first = zk.split_core(zk.num_keep(visual.shape[-2], 0.5), 0.5)
            second = zk.split_core(kept.shape[-1], 0.5)
            return zk.diversity(visual, first) == zk.diversity(visual, second)

    shapes = {"visual": {1: torch.export.Dim("N", min=20, max=64)}, "prompt": None}
    program = torch.export.export(Module(), draw(32), dynamic_shapes=shapes)
    for n in (20, 47):
        assert bool(program.module()(*draw(n)).all())


# docs/methods.md names those that cannot.
@pytest.mark.parametrize(
    "name",
    [
        *("adaptprune", "allinrelevance", "cdpruner", "divprune", "fastv", "greedyprune"),
        *("holov", "idselection", "mmtok", "scope", "todre", "zooprune", "zspaprune"),
    ],
)
def test_methods_export_with_a_range_of_n(name: str) -> None:
    method: Any = zk.methods.get(name, keep=0.25)

    class Module(torch.nn.Module):
        def forward(self, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            picked = method.select(**given)
            return picked.indices, picked.core_mask

    n = torch.export.Dim("N", min=52, max=4096)  # a fifth of a quarter is at least 2
    given = inputs(name, B, 64, D)
    shapes = {
        key: {axis: n for axis, size in enumerate(x.shape) if size == 64}
        for key, x in given.items()
    }
    program = torch.export.export(Module(), (given,), dynamic_shapes=(shapes,))
    for size in (64, 100):
        given = inputs(name, B, size, D)
        assert_same(program.module()(given), method.select(**given)[:2])


def test_a_bad_call_fails_in_the_words_of_the_contract() -> None:
    compiled = torch.compile(
        lambda x: zk.diversity(x, 99), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match=r"diversity: k must be in \[0, N=9\], got 99"):
        compiled(draw(9)[0])


def test_a_named_backend_is_for_eager_mode() -> None:
    compiled = torch.compile(
        lambda x: zk.diversity(x, 2, backend="cpp"), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match=r"backend must be 'auto' under torch\.compile"):
        compiled(draw(9)[0])


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_named_backend_is_for_tensors_with_values(backend: str) -> None:
    def picks(visual: Tensor) -> Tensor:
        return zk.diversity(visual, 2, backend=backend)

    with pytest.raises(NotImplementedError, match=r"'auto' where torch records or fakes its calls"):
        make_fx(picks)(draw(9)[0])
    rule = f"^diversity: backend must be 'auto' for FakeTensor, got '{backend}'"
    with pytest.raises(NotImplementedError, match=rule):
        picks(FakeTensorMode().from_tensor(draw(9)[0]))
    assert picks(torch._efficientzerotensor((9, D))).tolist() == [0, 1]  # has no memory


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_graph_holds_what_primitives_compute() -> None:
    """Of native kernels torch would record the memory that they write to."""

    def composed(scores: Tensor, rows: Tensor) -> list[Tensor]:
        picks = primitives.topk(scores, 5, sorted=True)
        return [picks, primitives.merge(rows, picks, 4), primitives.centred(rows)]

    rows = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))
    first, other = ((x[:, 0], x) for x in rows)
    for graph in (make_fx(composed)(*first), torch.jit.trace(composed, first)):
        assert_same(graph(*other), composed(*other))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert primitives.topk(first[0], 2).shape == (2,)
    assert primitives.topk(torch._efficientzerotensor((3,)), 2).tolist() == [0, 1]
    method = zk.AllInRelevance(keep=2)  # looks at values where nobody records
    graph = make_fx(lambda visual, prompt: method.select(visual, prompt).indices)(rows[0], rows[1])
    nothing = torch.full_like(rows[1], torch.nan)
    assert_same(graph(rows[0], nothing), method.select(rows[0], nothing).indices)


@pytest.mark.parametrize(
    "name", ["adaptprune", "cenprune", "greedyprune", "idselection", "trimtokenator"]
)
def test_methods_are_one_graph(name: str) -> None:
    method = zk.methods.get(name, keep=0.25)
    compiled = torch.compile(
        lambda **given: method.select(**given)[:2], fullgraph=True, dynamic=True, backend="eager"
    )
    for n in (36, 49):
        given = inputs(name, B, n, D)
        assert_same(compiled(**given), method.select(**given)[:2])


# What torch says of the trace itself, and of `gather`, which is asked whether there are tokens.
@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_has_counts_and_refuses_shares() -> None:
    def counted(visual: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        indices = zk.select(visual, prompt, k_core=2, k_diverse=3)
        return zk.gather(visual, indices), zk.diversity(visual, 4)

    traced = torch.jit.trace(counted, draw(9))
    for n in (9, 23):
        assert_same(traced(*draw(n)), counted(*draw(n)))
    rule = "n must be an int, got the tensor that torch.jit.trace makes of a size: use torch.export"
    for op, function in {
        "select": keep_share,
        "num_keep": lambda visual, _: visual[:, : zk.num_keep(visual.shape[1], 4)],
    }.items():
        with pytest.raises(TypeError, match=f"^{op}: {rule}"):
            torch.jit.trace(function, draw(9))
