"""Sizes of multimodal LLMs by name: published checkpoints, and tiny ones of the same classes for tests.

A published name is that of its repository on the Hugging Face hub. The sizes build the architecture with random weights
where nothing can be downloaded, and count its parameters; a download brings its own configuration. ``tiny-…`` models
have 0.22 to 0.34 million parameters: an LLM of 4 layers and width 64 behind a tower of 2 or 3 blocks and width 32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .families import FAMILIES, Family


@dataclass(frozen=True)
class Size:
    """One architecture.

    Attributes:
        model_type: key of :data:`.families.FAMILIES`.
        text: keywords of the configuration of the LLM.
        vision: keywords of the configuration of the vision tower.
        top: keywords beside these two.
        tile: side of a tile in pixels where the family leaves it open.
    """

    model_type: str
    text: dict[str, Any]
    vision: dict[str, Any]
    top: dict[str, Any] = field(default_factory=dict)
    tile: int | None = None

    @property
    def family(self) -> Family:
        """Where the parts of the model are."""
        return FAMILIES[self.model_type]


def llm(width: int, layers: int, heads: int, kv: int, mlp: int, vocab: int, **more: Any) -> dict[str, Any]:
    """Return a decoder's configuration, with grouped-query attention: `heads` of queries, `kv` of keys and values."""
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
        "intermediate_size": mlp, "vocab_size": vocab,
    } | more  # fmt: skip


def tower(width: int, layers: int, heads: int, mlp: int, size: Any, patch: Any, **more: Any) -> dict[str, Any]:
    """Return the configuration of a plain ViT."""
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": mlp,
        "image_size": size, "patch_size": patch,
    } | more  # fmt: skip


def mrope(*section: int, theta: float = 1e6, **more: Any) -> dict[str, Any]:
    """Return rotary positions in time, row and column; `section` shares out the pairs of a head."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": list(section), **more}}


_QWEN2 = {"model_type": "qwen2"}
_QWEN3 = {"model_type": "qwen3", "head_dim": 128}
_THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
_INTERN_VIT = tower(1024, 24, 16, 4096, [448, 448], [14, 14])
_SO400M = tower(1152, 26, 16, 4304, 384, 14, model_type="siglip_vision_model", vision_use_head=False)
_SIGLIP_BASE = tower(768, 12, 12, 3072, 512, 16)
_QWEN_VIT = {"depth": 32, "num_heads": 16}
_QWEN3_VIT = {
    "depth": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096, "patch_size": 16,
    "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
_SPREAD = mrope(24, 20, 20, theta=5e6, mrope_interleaved=True) | {"head_dim": 128}
_SIDES = [384 * k for k in range(1, 7)]
_UNTIED, _TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
_SMOL = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}


def _intern(text: dict[str, Any]) -> Size:
    return Size("internvl", text | _THETA, _INTERN_VIT, _UNTIED)


PUBLISHED = {
    "OpenGVLab/InternVL3-1B-hf": _intern(llm(896, 24, 14, 2, 4864, 151674, **_QWEN2)),
    "OpenGVLab/InternVL3-2B-hf": _intern(llm(1536, 28, 12, 2, 8960, 151674, **_QWEN2)),
    "OpenGVLab/InternVL3_5-1B-HF": _intern(llm(1024, 28, 16, 8, 3072, 151936, **_QWEN3)),
    "OpenGVLab/InternVL3_5-2B-HF": _intern(llm(2048, 28, 16, 8, 6144, 151936, **_QWEN3)),
    "OpenGVLab/InternVL3_5-4B-HF": _intern(llm(2560, 36, 32, 8, 9728, 151936, **_QWEN3)),
    "OpenGVLab/InternVL3_5-8B-HF": _intern(llm(4096, 36, 32, 8, 12288, 151936, **_QWEN3)),
    "Qwen/Qwen2-VL-2B-Instruct": Size(
        "qwen2_vl", llm(1536, 28, 12, 2, 8960, 151936, **mrope(16, 24, 24)),
        _QWEN_VIT | {"embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4}, _TIED,
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": Size(
        "qwen2_5_vl", llm(2048, 36, 16, 2, 11008, 151936, **mrope(16, 24, 24)),
        _QWEN_VIT | {"hidden_size": 1280, "out_hidden_size": 2048, "intermediate_size": 3420, "window_size": 112,
                     "fullatt_block_indexes": [7, 15, 23, 31]}, _TIED,
    ),
    "Qwen/Qwen3-VL-2B-Instruct": Size(
        "qwen3_vl", llm(2048, 28, 16, 8, 6144, 151936, **_SPREAD), _QWEN3_VIT | {"out_hidden_size": 2048}, _TIED
    ),
    "Qwen/Qwen3-VL-4B-Instruct": Size(
        "qwen3_vl", llm(2560, 36, 32, 8, 9728, 151936, **_SPREAD), _QWEN3_VIT | {"out_hidden_size": 2560}, _TIED
    ),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": Size(
        "llava_onevision", llm(896, 24, 14, 2, 4864, 152000, **_QWEN2) | _THETA, _SO400M,
        {"image_grid_pinpoints": [[a, b] for a in _SIDES for b in _SIDES], **_TIED},
    ),
    "HuggingFaceTB/SmolVLM-256M-Instruct": Size(
        "smolvlm", llm(576, 30, 9, 3, 1536, 49280, **_SMOL), _SIGLIP_BASE, {"scale_factor": 4, **_UNTIED}
    ),
    "HuggingFaceTB/SmolVLM-500M-Instruct": Size(
        "smolvlm", llm(960, 32, 15, 5, 2560, 49280, **_SMOL), _SIGLIP_BASE, {"scale_factor": 4, **_UNTIED}
    ),
}  # fmt: skip

_LLM = llm(64, 4, 4, 2, 128, 0, max_position_embeddings=2048)
_VIT = {"num_heads": 2, "patch_size": 14}
_PLAIN = tower(32, 2, 2, 64, 56, 14)
_SQUARE = tower(32, 2, 2, 64, [56, 56], [14, 14])
_INTERN = {"image_seq_length": 4, **_UNTIED}

TINY = {
    "tiny-qwen2-vl": Size(
        "qwen2_vl", _LLM | mrope(2, 3, 3, theta=1e4),
        _VIT | {"depth": 2, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}, tile=56,
    ),
    "tiny-qwen2.5-vl": Size(
        "qwen2_5_vl", _LLM | mrope(2, 3, 3, theta=1e4),
        _VIT | {"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "window_size": 56,
                "fullatt_block_indexes": [1]}, tile=112,
    ),
    "tiny-qwen3-vl": Size(
        "qwen3_vl", _LLM | mrope(4, 2, 2, theta=1e4, mrope_interleaved=True) | {"head_dim": 16},
        {"depth": 3, "hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_heads": 2,
         "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}, tile=64,
    ),
    "tiny-internvl3": Size("internvl", _LLM | _QWEN2, _SQUARE, _INTERN),
    "tiny-internvl3_5": Size("internvl", _LLM | {"model_type": "qwen3", "head_dim": 16}, _SQUARE, _INTERN),
    "tiny-llava-onevision": Size(
        "llava_onevision", _LLM | _QWEN2, _PLAIN | {"model_type": "siglip_vision_model", "vision_use_head": False},
        {"image_grid_pinpoints": [[a, b] for a in (56, 112) for b in (56, 112)]},
    ),
    "tiny-smolvlm": Size(
        "smolvlm", _LLM | {"model_type": "llama"}, tower(32, 2, 2, 64, 64, 16), {"scale_factor": 2}
    ),
}  # fmt: skip

SIZES = PUBLISHED | TINY
