# SPDX-License-Identifier: Apache-2.0
"""vLLM's models, with an encoder that returns the kept tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.lora.layers import VocabParallelEmbeddingWithLoRA
from vllm.multimodal import MULTIMODAL_REGISTRY

from .batches import Batches
from .options import KEY, Options, kept
from .processor import KEEP, WORDS, asked, pruning

_log = init_logger("vllm.zspa_kernels")  # vLLM shows what loggers below its own say

if TYPE_CHECKING:
    _Model: TypeAlias = Any  # what this is mixed into is known later
else:
    _Model = nn.Module


class PruningModel(_Model):
    """Mixed into a model of vLLM's; see `pruned`.

    Attributes:
        only_images: it cannot prune videos, so it takes none.
    """

    only_images: ClassVar[bool] = False

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        self._before(vllm_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self._options = Options.of(config)
        self._width: int = vllm_config.model_config.hf_text_config.hidden_size
        self._batches = Batches.of(config, vllm_config.scheduler_config.max_num_batched_tokens)
        _log.info("Visual tokens are pruned: %r", self._options.method)

    def _before(self, vllm_config: Any) -> None:
        """What has to be known before the model is made."""
        given = vllm_config.model_config.multimodal_config
        rate = given.video_pruning_rate
        if rate:
            raise ValueError(
                f"vllm: video_pruning_rate must be None where zspa_kernels prunes, got {rate}"
            )
        if KEY in (given.mm_processor_kwargs or {}):
            raise ValueError(
                f'vllm: mm_processor_kwargs of a server must not have "{KEY}", which belongs into '
                f"hf_overrides or a request's, got {given.mm_processor_kwargs[KEY]!r:.60}"
            )
        # vLLM would tell the size of an encoder's batch by the tokens that are left.
        if vllm_config.lora_config and vllm_config.lora_config.enable_tower_connector_lora:
            raise ValueError(
                "vllm: enable_tower_connector_lora must be False where zspa_kernels prunes, "
                "got True"
            )

    def embed_multimodal(self, **kwargs: Any) -> Sequence[Tensor]:
        """Embeddings of the kept tokens of each picture, `[k, C]`, in their order.

        C is the width of the language model, or more: features for its deeper layers stand behind.
        """
        fields = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith((KEEP, WORDS))}
        keep = next((asked(value) for name, value in fields.items() if name.startswith(KEEP)), [])
        words = next((value for name, value in fields.items() if name.startswith(WORDS)), None)
        chosen: list[Tensor] = []
        for start, stop, part in self._batches.split(kwargs, len(keep), words):
            encoded = list(super().embed_multimodal(**part))
            own = None if words is None else [self._embedded(row) for row in words[start:stop]]
            rows = self._rows(encoded, keep[start:stop], own)
            chosen += [
                self._cut(x, indices, place, part)
                for place, (x, indices) in enumerate(zip(encoded, rows, strict=True))
            ]
        return chosen

    def _embedded(self, words: Tensor) -> Tensor:
        language = self.get_language_model()
        table = language.embed_input_ids
        for module in language.modules():
            # With adapters, vLLM looks words up by their places in a batch; these have none.
            if isinstance(module, VocabParallelEmbeddingWithLoRA):
                table = module.base_layer
        rows: Tensor = table(words)
        return rows

    def _rows(
        self, encoded: list[Tensor], keep: Sequence[float], words: list[Tensor] | None
    ) -> list[Tensor | None]:
        """Which rows of each picture stay, None for all; one ragged call a number of them."""
        rows: list[Tensor | None] = [None] * len(encoded)
        groups: dict[int, list[int]] = {}
        for i, (x, share) in enumerate(zip(encoded, keep, strict=True)):
            count = self._options.keeping(share).count(len(x))
            if count < len(x):
                groups.setdefault(count, []).append(i)
        for count, alike in groups.items():
            picked = kept(
                self._options.keeping(count).method,
                [encoded[i][:, : self._width] for i in alike],
                None if words is None else [words[i] for i in alike],
            )
            for i, indices in zip(alike, picked, strict=True):
                rows[i] = indices
        return rows

    def _cut(
        self, tokens: Tensor, indices: Tensor | None, place: int, inputs: Mapping[str, Any]
    ) -> Tensor:
        """Rows of one picture's tokens, None for all; it is at `place` among the `inputs`."""
        return tokens if indices is None else tokens[indices]


def pruned(model: Any) -> Any:
    """Registers the processor of a model of vLLM's that prunes, in place of the stock one's."""
    stock = model._processor_factory

    def processor(info: Any, dummy_inputs: Any, **more: Any) -> Any:
        kind: Any = type(stock.processor(info, dummy_inputs, **more))
        return pruning(kind)(info, dummy_inputs, **more)

    def info(ctx: Any) -> Any:
        made = stock.info(ctx)
        if model.only_images:
            made.get_supported_mm_limits = lambda: {"image": None, "video": 0}
        return made

    register = MULTIMODAL_REGISTRY.register_processor(
        processor, info=info, dummy_inputs=stock.dummy_inputs
    )
    return register(model)
