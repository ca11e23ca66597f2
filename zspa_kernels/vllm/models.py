# SPDX-License-Identifier: Apache-2.0
"""The models that vLLM loads by name: its own, pruned."""

from __future__ import annotations

from vllm.model_executor.models.cohere2_vision import Cohere2VisionForConditionalGeneration
from vllm.model_executor.models.gemma3_mm import Gemma3ForConditionalGeneration
from vllm.model_executor.models.gemma4_mm import Gemma4ForConditionalGeneration
from vllm.model_executor.models.gemma4_unified import Gemma4UnifiedForConditionalGeneration
from vllm.model_executor.models.glm4_1v import (
    Glm4vForConditionalGeneration,
    Glm4vMoeForConditionalGeneration,
)
from vllm.model_executor.models.idefics3 import Idefics3ForConditionalGeneration
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration
from vllm.model_executor.models.internvl import InternVLChatModel
from vllm.model_executor.models.lfm2_vl import Lfm2VLForConditionalGeneration
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration
from vllm.model_executor.models.mistral3 import Mistral3ForConditionalGeneration
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen2_vl import Qwen2VLForConditionalGeneration
from vllm.model_executor.models.qwen3_5 import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration
from vllm.model_executor.models.smolvlm import SmolVLMForConditionalGeneration

from .model import PruningModel, pruned
from .mrope import PruningMRopeModel


@pruned
class ZspaLlavaForConditionalGeneration(PruningModel, LlavaForConditionalGeneration):
    """LLaVA-1.5, and Pixtral in the format of transformers."""


@pruned
class ZspaLlavaNextForConditionalGeneration(PruningModel, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT."""


@pruned
class ZspaLlavaOnevisionForConditionalGeneration(
    PruningModel, LlavaOnevisionForConditionalGeneration
):
    """LLaVA-OneVision."""


@pruned
class ZspaInternVLForConditionalGeneration(PruningModel, InternS1ForConditionalGeneration):
    """InternVL in the format of transformers, which vLLM reads with the code for Intern-S1."""

    apart = "video_num_patches"


@pruned
class ZspaInternVLChatModel(PruningModel, InternVLChatModel):
    """InternVL as its authors publish it."""

    apart = "video_num_patches"


@pruned
class ZspaQwen2VLForConditionalGeneration(PruningMRopeModel, Qwen2VLForConditionalGeneration):
    """Qwen2-VL."""


@pruned
class ZspaQwen2_5_VLForConditionalGeneration(  # noqa: N801
    PruningMRopeModel, Qwen2_5_VLForConditionalGeneration
):
    """Qwen2.5-VL."""


@pruned
class ZspaQwen3VLForConditionalGeneration(PruningMRopeModel, Qwen3VLForConditionalGeneration):
    """Qwen3-VL."""

    apart = "video_grid_thw"


@pruned
class ZspaQwen3VLMoeForConditionalGeneration(PruningMRopeModel, Qwen3VLMoeForConditionalGeneration):
    """Qwen3-VL with experts."""

    apart = "video_grid_thw"


@pruned
class ZspaQwen3_5ForConditionalGeneration(  # noqa: N801
    PruningMRopeModel, Qwen3_5ForConditionalGeneration
):
    """Qwen3.5."""

    apart = "video_grid_thw"


@pruned
class ZspaQwen3_5MoeForConditionalGeneration(  # noqa: N801
    PruningMRopeModel, Qwen3_5MoeForConditionalGeneration
):
    """Qwen3.5 with experts."""

    apart = "video_grid_thw"


@pruned
class ZspaGlm4vForConditionalGeneration(PruningMRopeModel, Glm4vForConditionalGeneration):
    """GLM-4.1V."""

    apart = "video_grid_thw"


@pruned
class ZspaGlm4vMoeForConditionalGeneration(PruningMRopeModel, Glm4vMoeForConditionalGeneration):
    """GLM-4.5V, GLM-4.6V."""

    apart = "video_grid_thw"


@pruned
class ZspaMistral3ForConditionalGeneration(PruningModel, Mistral3ForConditionalGeneration):
    """Mistral 3."""


@pruned
class ZspaCohere2VisionForConditionalGeneration(
    PruningModel, Cohere2VisionForConditionalGeneration
):
    """Cohere2 Vision."""

    apart = "num_patches"


@pruned
class ZspaGemma3ForConditionalGeneration(PruningModel, Gemma3ForConditionalGeneration):
    """Gemma 3."""

    apart = "num_patches"


@pruned
class ZspaGemma4ForConditionalGeneration(PruningModel, Gemma4ForConditionalGeneration):
    """Gemma 4, with experts or without."""

    apart = "video_num_soft_tokens"


@pruned
class ZspaGemma4UnifiedForConditionalGeneration(
    PruningModel, Gemma4UnifiedForConditionalGeneration
):
    """Gemma 4 without an encoder."""

    apart = "video_num_soft_tokens"


@pruned
class ZspaLfm2VlForConditionalGeneration(PruningModel, Lfm2VLForConditionalGeneration):
    """LFM2-VL."""

    apart = "num_patches"


@pruned
class ZspaIdefics3ForConditionalGeneration(PruningModel, Idefics3ForConditionalGeneration):
    """Idefics3."""

    apart = "num_patches"


@pruned
class ZspaSmolVLMForConditionalGeneration(PruningModel, SmolVLMForConditionalGeneration):
    """SmolVLM."""

    apart = "num_patches"
