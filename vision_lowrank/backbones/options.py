"""Options that belong to one library's family of backbones: what ``backbone: {options: …}`` may hold.

They are the keywords of the family's loading function, with its defaults.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from pydantic import Field

from ..config.schema import Section

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(Dtype)


class TimmOptions(Section):
    """Options of ``timm:…``."""

    pooler: bool = Field(False, description="ViTs: end with the tanh pooler of Hugging Face's ViT files")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="plain ViTs: share of samples that skip a residual branch in training, all blocks"
    )


class MultimodalOptions(Section):
    """Options of ``hf:…``."""

    dtype: Dtype | None = Field(None, description="type of the frozen weights; adapters stay fp32; null = float32")
    gradient_checkpointing: bool = Field(
        False, description="compute blocks again in the backward pass: less memory, same results"
    )
