# SPDX-License-Identifier: Apache-2.0
"""Pruning in vLLM: its parts here, its engine in a process with vLLM's own dependencies."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import zspa_kernels as zk
from python_tests.trees import HOW, VLLM, mark, passed
from zspa_kernels import vllm
from zspa_kernels.hf import UnsupportedMethodError, UnsupportedModelError
from zspa_kernels.methods import _registry
from zspa_kernels.vllm.batches import Batches
from zspa_kernels.vllm.options import Options, kept

# One of each kind: positions of one axis and of three, features for deeper layers, text inside.
MODELS = "llava qwen2_5_vl qwen3_vl mistral3"
FILES = [f"python_tests/vllm_{name}.py" for name in ("engine", "settings", "parts")]
SERVED: dict[str, dict[str, Any]] = {
    "allinrelevance": {},
    "cdpruner": {"space": "llm"},
    "cenprune": {},
    "dart": {},
    "divprune": {},
    "mmtok": {},
    "todre": {},
    "trimtokenator": {},
    "zooprune": {"score": "norm"},
    "zspaprune": {},
}


@pytest.mark.slow
def test_the_engine() -> None:
    if not mark(VLLM).exists():
        pytest.skip(f"vLLM is not installed: {HOW}")
    count = passed(
        VLLM,
        FILES,
        ZSPA_VLLM_MODELS=os.environ.get("ZSPA_VLLM_MODELS", MODELS),
        OMP_NUM_THREADS="1",
        VLLM_CPU_KVCACHE_SPACE="1",  # GiB
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="WARNING",
        VLLM_NO_USAGE_STATS="1",
    )
    assert count >= 30


@pytest.mark.parametrize("name", zk.methods.available())
def test_a_method_is_served_if_tokens_and_words_are_all_it_needs(name: str) -> None:
    if name in SERVED:
        assert Options.read({"method": name, **SERVED[name]}).count(50) == 5
    if name in SERVED and not SERVED[name]:
        return
    with pytest.raises(
        (UnsupportedMethodError, TypeError), match=r"which needs|must be given|merges"
    ):
        Options.read({"method": name})


def test_the_page_lists_the_methods_that_are_served() -> None:
    page = (Path(__file__).parents[1] / "docs" / "vllm.md").read_text()
    _, _, text = page.partition("Those that choose by tokens and words: ")
    listed = text.partition(". ")[0].replace("`", "").split()
    names = {word.strip(",").lower() for word in listed} & set(zk.methods.available())
    assert names == set(SERVED)


@pytest.mark.parametrize("name", SERVED)
def test_as_many_tokens_as_there_are_places(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    visual = [torch.randn(n, 16, generator=generator) for n in (40, 25)]
    visual[1][::2] = torch.nan  # 12 tokens that can be chosen, 15 places
    prompt = [torch.randn(m, 16, generator=generator) for m in (3, 0)]
    options = Options.read({"method": name, "keep": 15, **SERVED[name]})
    assert [options.count(len(x)) for x in visual] == [15, 15]
    first, second = kept(options.method, visual, prompt if options.reads else None)
    alone = options.method.select(visual[0], prompt[0] if options.reads else None)
    assert first.tolist() == alone.indices.tolist()
    assert len(second) == len(set(second.tolist())) == 15
    assert second.tolist() == sorted(second.tolist())


def test_a_share_is_counted_as_the_method_does() -> None:
    assert Options.read({"method": "divprune", "keep": 0.5}).count(7) == zk.num_keep(7, 0.5)
    options = Options.read({"method": "mmtok", "keep": 0.5})
    assert options.count(7) == zk.num_keep(7, 0.5, "floor") != zk.num_keep(7, 0.5)
    assert options.asked({"keep": 3}).count(7) == 3
    assert options.asked({"keep": 30}).count(7) == 7
    assert options.asked(None) is options


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, TypeError, 'hf_overrides must have a "zspa"'),
        ({"method": "fastest"}, ValueError, "fastest"),
        ({"keep": 2.0}, ValueError, "keep must be a share"),
        ({"method": "divprune", "core_ratio": 0.4}, TypeError, "core_ratio"),
        ({"query": ["a"]}, TypeError, "query must be a text"),
    ],
)
def test_wrong_options_of_a_server(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Options.of(SimpleNamespace(zspa=given))


def test_a_method_of_ones_own_says_how_many_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half:
        def __init__(self, keep: float) -> None: ...

        def select(self, visual: Any, prompt: Any = None) -> Any: ...

    monkeypatch.setattr(_registry, "_entries", dict(_registry._entries))
    zk.methods.register("half", Half)
    with pytest.raises(UnsupportedMethodError, match="a dataclass with `keep`"):
        Options.read({"method": "half"})


def test_overrides_are_of_known_models() -> None:
    how = vllm.overrides("divprune", keep=64)
    config = SimpleNamespace(architectures=["Qwen2_5_VLForConditionalGeneration"])
    assert how(config).architectures == ["ZspaQwen2_5_VLForConditionalGeneration"]
    assert config.zspa == {"method": "divprune", "keep": 64}
    assert how(SimpleNamespace(architectures=None)).architectures is None
    with pytest.raises(UnsupportedModelError, match="got MolmoForCausalLM"):
        how(SimpleNamespace(architectures=["MolmoForCausalLM"]))
    with pytest.raises(UnsupportedMethodError, match="attention"):
        vllm.overrides("fastervlm")


def test_no_more_pictures_are_encoded_at_once_than_unpruned() -> None:
    tiles = Batches(limit=100, tile=16)
    pixels = [torch.zeros(n, 3, 8, 8) for n in (2, 3, 1, 7, 1)]  # 32, 48, 16, 112, 16 tokens
    inputs = {"pixel_values": pixels, "image_sizes": torch.arange(10).view(5, 2)}
    parts = list(tiles.split(inputs, 5))
    assert [(start, stop) for start, stop, _ in parts] == [(0, 3), (3, 4), (4, 5)]
    assert [x.shape[0] for x in parts[0][2]["pixel_values"]] == [2, 3, 1]
    assert parts[1][2]["image_sizes"].tolist() == [[6, 7]]
    words = [torch.zeros(n, dtype=torch.long) for n in (5, 16, 0, 0, 200)]
    parts = list(tiles.split(inputs, 5, words))
    assert [(start, stop) for start, stop, _ in parts] == [(0, 1), (1, 3), (3, 4), (4, 5)]

    grids = Batches(limit=10, merged=4)
    grid = torch.tensor([[1, 4, 4], [1, 4, 6], [2, 4, 4]])  # 4, 6, 8 tokens
    rows = torch.arange(72)
    parts = list(grids.split({"pixel_values_videos": rows, "video_grid_thw": grid}, 3))
    assert [(start, stop) for start, stop, _ in parts] == [(0, 2), (2, 3)]
    assert parts[1][2]["pixel_values_videos"].tolist() == list(range(40, 72))
    assert parts[1][2]["video_grid_thw"].tolist() == [[2, 4, 4]]

    # Tiles one behind the other, those of all pictures, and an id that all of them share.
    flat = {"pixel_values_flat": torch.arange(7), "pixel_mask": torch.arange(7) + 10}
    shared = {"image_num_patches": torch.tensor([4, 2, 1]), "image_token_id": torch.tensor(3)}
    parts = list(tiles.split({**flat, **shared}, 3))
    assert [(start, stop) for start, stop, _ in parts] == [(0, 2), (2, 3)]
    assert {name: value.tolist() for name, value in parts[1][2].items()} == {
        "pixel_values_flat": [6],
        "pixel_mask": [16],
        "image_num_patches": [1],
        "image_token_id": 3,
    }

    # LFM2-VL's tiles of different sizes: 4 + 1, 6, and 9 + 2 + 1 tokens.
    shapes = torch.tensor([[4, 4], [2, 2], [4, 6], [6, 6], [2, 4], [2, 2]])
    counts = {"num_patches": torch.tensor([2, 1, 3]), "spatial_shapes": shapes}
    parts = list(Batches(limit=11, merged=4).split({"pixel_values": torch.arange(6), **counts}, 3))
    assert [(start, stop) for start, stop, _ in parts] == [(0, 2), (2, 3)]
    assert parts[1][2]["pixel_values"].tolist() == [3, 4, 5]
    assert parts[1][2]["spatial_shapes"].equal(shapes[3:])

    pixels = [torch.zeros(3, 28 * rows, 56) for rows in (2, 3, 4)]  # 6, 9, 12 with ends of rows
    for limit, wanted in ((15, [(0, 2), (2, 3)]), (14, [(0, 1), (1, 2), (2, 3)])):
        parts = list(Batches(limit, square=28).split({"pixel_values": pixels}, 3))
        assert [(start, stop) for start, stop, _ in parts] == wanted

    # Gemma 4's lists of patches, with padding: of a picture, and of each frame of a video.
    patches = [torch.zeros(n, 2) for n in (90, 36, 54, 36)]  # 10, 4, 6, 4 tokens
    lists = Batches(limit=10, merged=9)
    parts = list(lists.split({"pixel_values": patches, "pixel_position_ids": patches}, 4))
    assert [(start, stop) for start, stop, _ in parts] == [(0, 1), (1, 3), (3, 4)]
    frames = torch.arange(6 * 18).view(6, 18, 1)  # 2 tokens
    films = {
        "pixel_position_ids_videos": frames,
        "pixel_values_videos": frames + 1,
        "video_frame_counts": torch.tensor([2, 3, 1]),
        "video_num_soft_tokens": [[2, 2], [2, 1, 2], [1]],
    }
    parts = list(lists.split(films, 3))
    assert [(start, stop) for start, stop, _ in parts] == [(0, 2), (2, 3)]
    assert parts[0][2]["pixel_values_videos"].equal(frames[:5] + 1)
    assert parts[1][2]["pixel_position_ids_videos"].equal(frames[5:])
    assert parts[1][2]["video_num_soft_tokens"] == [[1]]

    encoded = {"image_embeds": torch.zeros(3, 400, 8)}
    assert [(start, stop) for start, stop, _ in tiles.split(encoded, 3)] == [(0, 3)]


def test_tokens_of_a_tile() -> None:
    def tile(image: Any, patch: Any, **more: Any) -> Batches:
        vision = SimpleNamespace(image_size=image, patch_size=patch)
        return Batches.of(SimpleNamespace(vision_config=vision, **more), 9)

    assert tile(112, 14) == Batches(9, tile=64)
    assert tile([112, 112], [14, 14], downsample_ratio=0.5) == Batches(9, tile=16)
    assert tile(448, 14, force_image_size=112, downsample_ratio=0.5) == Batches(9, tile=16)
    assert tile(112, 14, scale_factor=2) == Batches(9, tile=16)
    assert tile(112, 14, downsample_factor=2) == Batches(9, tile=16)
    assert tile(112, 14, mm_tokens_per_image=4) == Batches(9, tile=4)
    rows = SimpleNamespace(image_size=1540, patch_size=14, model_type="pixtral")
    for more, square in (({"spatial_merge_size": 2}, 28), ({}, 14)):
        config = SimpleNamespace(vision_config=rows, **more)
        assert Batches.of(config, 9) == Batches(9, square=square)
    for kind, merged in (("gemma4_vision", 9), ("gemma4_unified_vision", 1)):
        patches = SimpleNamespace(patch_size=16, pooling_kernel_size=3, model_type=kind)
        assert Batches.of(SimpleNamespace(vision_config=patches), 9) == Batches(9, merged=merged)
    shapes = SimpleNamespace(vision_config=SimpleNamespace(patch_size=16), downsample_factor=2)
    assert Batches.of(shapes, 9) == Batches(9, merged=4)
    grid = SimpleNamespace(spatial_merge_size=2)
    assert Batches.of(SimpleNamespace(vision_config=grid), 9) == Batches(9, merged=4)
