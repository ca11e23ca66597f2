# SPDX-License-Identifier: Apache-2.0
"""Processors for the tiny models: what the official ones make of photographs and words.

Those need torchvision or files of a model hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
QWEN_MARKS = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
QWEN_IMAGE = "<|vision_start|> <|image_pad|> <|vision_end|>"
QWEN_VIDEO = "<|vision_start|> <|video_pad|> <|vision_end|>"


def _flat(images: Any) -> list[Image.Image]:
    grouped = images if isinstance(images, list) else [images]
    return [one for group in grouped for one in (group if isinstance(group, list) else [group])]


class SquareProcessor:
    """Every picture is resized to a square and becomes `count` tokens."""

    def __init__(self, tok: Any, image: str, size: int, count: int, types: str | None = None):
        self.tokenizer, self.image, self.size, self.count = tok, image, size, count
        self.types = types

    def pixels(self, images: Any) -> torch.Tensor:
        resized = [np.asarray(one.resize((self.size, self.size))) for one in _flat(images)]
        return torch.stack(
            [torch.from_numpy(one.copy()).permute(2, 0, 1).float() / 127.5 - 1 for one in resized]
        )

    def __call__(self, images: Any, text: Any, **options: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        shown = " ".join([self.image] * self.count)
        encoded = _words(self.tokenizer, [one.replace(self.image, shown) for one in texts])
        if self.types:
            mark = self.tokenizer.convert_tokens_to_ids(self.image)
            encoded[self.types] = (encoded["input_ids"] == mark).long()
        encoded["pixel_values"] = self.pixels(images)
        return encoded


class SmolProcessor(SquareProcessor):
    """Pictures of a prompt are padded to the largest number of pictures in the batch."""

    def __call__(self, images: Any, text: Any, **options: Any) -> dict[str, Any]:
        encoded = super().__call__(images, text)
        groups = [group if isinstance(group, list) else [group] for group in images]
        pixels = iter(encoded["pixel_values"])
        padded = torch.zeros(len(groups), max(map(len, groups)), 3, self.size, self.size)
        for b, group in enumerate(groups):
            for i in range(len(group)):
                padded[b, i] = next(pixels)
        encoded["pixel_values"] = padded
        return encoded


class MarkedProcessor(SquareProcessor):
    """Ovis2's: pictures stand between marks."""

    def __call__(self, images: Any, text: Any, **options: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        whole = f"<start_of_image> {self.image} <grid> <end_of_image>"
        return super().__call__(images, [one.replace(self.image, whole) for one in texts])


class FramesProcessor(SquareProcessor):
    """Video-LLaVA's: a frame has a token more than a picture, and pictures a name of their own."""

    frames = 3  # of a video; all of a batch have as many

    def __call__(
        self, images: Any, text: Any, videos: Sequence[Any] = (), **options: Any
    ) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        shown = " ".join(["<video>"] * self.frames * (self.count + 1))
        texts = [one.replace("<video>", shown) for one in texts]
        encoded: dict[str, Any] = {}
        if _flat(images):
            encoded["pixel_values_images"] = self.pixels(images)
        if videos:
            films = [self.pixels(list(frames[: self.frames])) for frames in videos]
            encoded["pixel_values_videos"] = torch.stack(films)
        shown = " ".join([self.image] * self.count)
        return {**encoded, **_words(self.tokenizer, [x.replace(self.image, shown) for x in texts])}


class QwenProcessor:
    """The official one; its part for videos needs torchvision and is written out here.

    `times`: how a model learns when a frame was. `"said"` in front of it (Qwen3-VL), `"given"` as
    seconds (Qwen2.5-VL), by another name (`"omni"`), or not at all (Qwen2-VL). `types`: it says
    which tokens are pictures.
    """

    merge = 2  # rows and columns of patches in a token

    def __init__(self, tok: Any, patch: int, pixels: int, times: str, types: bool = True):
        self.tokenizer, self.times = tok, times
        self.types = types and VERSION >= (5, 3)  # generate of older versions refuses them
        kind = getattr(transformers, "Qwen2VLImageProcessor", None)
        options: dict[str, Any] = {
            "patch_size": patch,
            "merge_size": self.merge,
            "temporal_patch_size": 2,
            "do_convert_rgb": True,
        }
        limits = {"shortest_edge": 56 * 56, "longest_edge": pixels}
        self.image_processor = kind(  # type: ignore[misc]
            **options, size=limits, min_pixels=56 * 56, max_pixels=pixels
        )

    def __call__(
        self, images: Any, text: Any, videos: Sequence[Any] = (), **options: Any
    ) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        encoded: dict[str, Any] = {}
        if _flat(images):
            seen = self.image_processor(images=_flat(images), return_tensors="pt")
            encoded.update(pixel_values=seen["pixel_values"], image_grid_thw=seen["image_grid_thw"])
            counts = (seen["image_grid_thw"].prod(-1) // self.merge**2).tolist()
            shown = [" ".join(["<|image_pad|>"] * count) for count in counts]
            texts = _fill(texts, "<|image_pad|>", shown)
        if videos:
            films = [self.film(frames) for frames in videos]
            encoded["pixel_values_videos"] = torch.cat([pixels for pixels, _ in films])
            encoded["video_grid_thw"] = torch.tensor([grid for _, grid in films])
            if self.times in ("given", "omni"):
                slow = [1.5 if len(frames) > 4 else 1.0 for frames in videos]
                name = "second_per_grid_ts" if self.times == "given" else "video_second_per_grid"
                encoded[name] = torch.tensor(slow)
            texts = _fill(texts, QWEN_VIDEO, [self.said(grid) for _, grid in films])
        encoded.update(_words(self.tokenizer, texts))
        if self.types:
            picture, film = self.tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
            ids = encoded["input_ids"]
            encoded["mm_token_type_ids"] = (ids == picture).int() + 2 * (ids == film).int()
        return encoded

    def film(self, frames: Sequence[Image.Image]) -> tuple[torch.Tensor, list[int]]:
        """Patches `[n, C * 2 * P * P]` of pairs of frames, and their grid."""
        seen = self.image_processor(images=list(frames), return_tensors="pt")
        _, rows, columns = seen["image_grid_thw"][0].tolist()
        # A still picture is a pair of equal frames.
        still = seen["pixel_values"].reshape(len(frames), rows * columns, 3, 2, -1)
        pairs = torch.cat((still[0::2, :, :, :1], still[1::2, :, :, :1]), dim=3)
        return pairs.reshape(-1, still[0, 0].numel()), [len(frames) // 2, rows, columns]

    def said(self, grid: Sequence[int]) -> str:
        """What stands in a prompt for a video of this grid."""
        times, rows, columns = grid
        first, _, last, film = QWEN_MARKS
        count = rows * columns // self.merge**2
        if self.times != "said":
            return " ".join([first, *[film] * (times * count), last])
        pads = " ".join([film] * count)
        names = ("one", "two", "three")
        return " ".join(f"time {name} seconds {first} {pads} {last}" for name in names[:times])


class TilesProcessor:
    """LLaVA-NeXT-Video's. Its own class needs torchvision, but for the part that counts tokens."""

    frames = 3  # of a video; all of a batch have as many

    def __init__(self, tok: Any, size: int, patch: int, pins: list[list[int]]):
        self.tokenizer, self.size, self.side = tok, size, size // patch
        self.image_processor = self._images(pins)
        kind = self._kind()
        self._counts = kind.__new__(kind)
        self._counts.image_processor, self._counts.patch_size = self.image_processor, patch
        self._counts.num_additional_image_tokens = 0

    def _images(self, pins: list[list[int]]) -> Any:
        size = {"height": self.size, "width": self.size}
        return transformers.LlavaNextImageProcessor(
            size={"shortest_edge": self.size}, crop_size=size, image_grid_pinpoints=pins
        )

    def _kind(self) -> Any:
        return transformers.LlavaNextVideoProcessor

    def __call__(
        self, images: Any, text: Any, videos: Sequence[Any] = (), **options: Any
    ) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        encoded: dict[str, Any] = {}
        if _flat(images):
            groups = [group if isinstance(group, list) else [group] for group in images]
            groups = [group for group in groups if group]
            seen = self.image_processor(images=groups, return_tensors="pt")
            sizes = iter(seen["image_sizes"].tolist())
            counts = [self.count(next(sizes), len(group)) for group in groups for _ in group]
            encoded.update(seen)
            encoded.update(self.groups([len(group) for group in groups]))
            texts = _fill(texts, "<image>", [" ".join(["<image>"] * count) for count in counts])
        if videos:
            films = [
                self.image_processor(images=[list(frames[: self.frames])], return_tensors="pt")
                for frames in videos
            ]
            # The first tile is the whole picture.
            frames = [film["pixel_values"][:, 0] for film in films]
            encoded["pixel_values_videos"] = torch.stack(frames)
            texts = _fill(texts, "<video>", [" ".join(["<video>"] * self.moving())] * len(films))
        return {**encoded, **_words(self.tokenizer, texts)}

    def groups(self, lengths: list[int]) -> dict[str, Any]:
        """What it says of how many pictures the prompts have."""
        return {}

    def count(self, size: list[int], pictures: int) -> int:
        """Tokens of a picture among those of its prompt."""
        height, width = size
        number: int = self._counts._get_number_of_features(height, width, self.size, self.size)
        return number

    def moving(self) -> int:
        """Tokens of a video."""
        return self.frames * (self.side // 2) ** 2


class OneVisionProcessor(TilesProcessor):
    """LLaVA-OneVision's, likewise."""

    def __init__(self, tok: Any, size: int, patch: int, pins: list[list[int]], ratio: str):
        super().__init__(tok, size, patch, pins)
        self._counts.num_image_tokens, self._counts.vision_aspect_ratio = self.side**2, ratio

    def _images(self, pins: list[list[int]]) -> Any:
        size = {"height": self.size, "width": self.size}
        return transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pins)

    def _kind(self) -> Any:
        return transformers.LlavaOnevisionProcessor

    def groups(self, lengths: list[int]) -> dict[str, Any]:
        return {"batch_num_images": torch.tensor(lengths)}

    def count(self, size: list[int], pictures: int) -> int:
        return self.side**2 + 1 if pictures > 1 else super().count(size, pictures)

    def moving(self) -> int:
        return self.frames * (-(-self.side // 2)) ** 2 + 1


class MistralProcessor:
    """Pictures keep their shape: [IMG] for each square of pixels, and an end to each row."""

    def __init__(self, tok: Any, square: int, longest: int):
        self.tokenizer, self.square, self.longest = tok, square, longest

    def __call__(self, images: Any, text: Any, **options: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        pictures, shown = [], []
        for one in _flat(images):
            picture = _in_squares(one, self.square, self.longest)
            rows, columns = (edge // self.square for edge in picture.shape[:2])
            pictures.append(picture.permute(2, 0, 1))
            lines = [" ".join(["[IMG]"] * columns)] * rows
            shown.append(" [IMG_BREAK] ".join(lines) + " [IMG_END]")
        sizes = torch.tensor([list(one.shape[1:]) for one in pictures])
        padded = torch.zeros(len(pictures), 3, *sizes.amax(0).tolist())
        for picture, into in zip(pictures, padded, strict=True):
            into[:, : picture.shape[1], : picture.shape[2]] = picture
        texts = _fill(texts, "[IMG]", shown)
        return {**_words(self.tokenizer, texts), "pixel_values": padded, "image_sizes": sizes}


class GemmaProcessor:
    """Gemma 4's: pictures keep their shape, and their patches say where they are.

    `merged`: the patches of a token are one, as the model without an encoder is given them.
    """

    pool, most = 3, 20  # rows and columns of patches in a token; tokens of a picture

    def __init__(self, tok: Any, patch: int, merged: bool):
        self.tokenizer, self.side, self.merged = tok, self.pool * patch, merged
        self.patch = self.side if merged else patch

    def __call__(
        self, images: Any, text: Any, videos: Sequence[Any] = (), **options: Any
    ) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        encoded: dict[str, Any] = {}
        if _flat(images):
            pixels, places, counts = self.patches(_flat(images))
            encoded.update(pixel_values=pixels, image_position_ids=places)
            texts = _fill(texts, "<image>", [self.said("<image>", count) for count in counts])
        if videos:
            pixels, places, counts = self.patches(_flat(list(videos)))
            encoded.update(pixel_values_videos=pixels, video_position_ids=places)
            encoded["num_frames_per_video"] = torch.tensor([len(frames) for frames in videos])
            left, shown = iter(counts), []
            for frames in videos:
                times = zip(("one", "two", "three", "there", "right", "left"), frames, strict=False)
                said = [f"time {time} {self.said('<video>', next(left))}" for time, _ in times]
                shown.append(" ".join(said))
            texts = _fill(texts, "<video>", shown)
        encoded.update(_words(self.tokenizer, texts))
        picture, film = self.tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
        ids = encoded["input_ids"]
        encoded["mm_token_type_ids"] = (ids == picture).int() + 2 * (ids == film).int()
        return encoded

    def said(self, mark: str, count: int) -> str:
        return " ".join(["<boi>", *[mark] * count, "<eoi>"])

    def patches(
        self, pictures: Sequence[Image.Image]
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Values `[n, most, 3 * P * P]` with padding, their columns and rows, numbers of tokens."""
        most = self.most * (self.side // self.patch) ** 2
        pixels = torch.zeros(len(pictures), most, 3 * self.patch**2)
        places = torch.full((len(pictures), most, 2), -1)
        counts = []
        for one, values, place in zip(pictures, pixels, places, strict=True):
            scale = (self.most / (one.width * one.height)) ** 0.5
            wide, high = (int(scale * edge) * self.side for edge in one.size)
            small = np.asarray(one.resize((wide, high)), dtype=np.float32) / 255
            rows, columns = high // self.patch, wide // self.patch
            blocks = torch.from_numpy(small).reshape(rows, self.patch, columns, self.patch, 3)
            values[: rows * columns] = blocks.permute(0, 2, 1, 3, 4).flatten(2).flatten(0, 1)
            grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
            place[: rows * columns] = grid.flip(1)
            counts.append(high * wide // self.side**2)
        return pixels, places, counts


class LiquidProcessor:
    """LFM2-VL's: pictures keep their shape, and are lists of patches."""

    def __init__(self, tok: Any, patch: int, longest: int):
        self.tokenizer, self.patch, self.longest = tok, patch, longest

    def __call__(self, images: Any, text: Any, **options: Any) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        lists, shapes = [], []
        for one in _flat(images):
            picture = _in_squares(one, 2 * self.patch, self.longest)
            rows, columns = (edge // self.patch for edge in picture.shape[:2])
            blocks = picture.reshape(rows, self.patch, columns, self.patch, 3).transpose(1, 2)
            lists.append(blocks.reshape(rows * columns, -1))
            shapes.append([rows, columns])
        pixels = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)
        counts = torch.tensor([len(one) for one in lists])
        shown = [" ".join(["<image>"] * (len(one) // 4)) for one in lists]
        return {
            **_words(self.tokenizer, _fill(texts, "<image>", shown)),
            "pixel_values": pixels,
            "pixel_attention_mask": (torch.arange(pixels.shape[1]) < counts[:, None]).long(),
            "spatial_shapes": torch.tensor(shapes),
        }


def _in_squares(picture: Any, square: int, longest: int) -> torch.Tensor:
    """A picture `[H, W, 3]` from -1 to 1, of whole squares, its long edge near `longest`."""
    scale = longest / max(picture.size)
    width, height = (max(1, round(edge * scale / square)) * square for edge in picture.size)
    small = np.asarray(picture.resize((width, height)))
    return torch.from_numpy(small.copy()).float() / 127.5 - 1


def _words(tok: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Ids and mask of a padded batch."""
    return dict(tok(list(texts), return_tensors="pt", padding=True, return_token_type_ids=False))


def _fill(texts: Sequence[str], mark: str, shown: Sequence[str]) -> list[str]:
    """Each `mark` in turn replaced by what is shown."""
    pieces = iter(shown)
    full = []
    for one in texts:
        first, *others = one.split(mark)
        for other in others:
            first += next(pieces) + other
        full.append(first)
    return full
