"""Visual prompt tuning: learned tokens beside the picture's own, in every block or from the first one on.

Paper: "Visual Prompt Tuning" (VPT), arXiv 2203.12119. The input of block l is x (N, D): class token, patches, positions
added, no mask. With p prompts, everything else frozen::

    deep       [x_{l+1}; ·] = block_l([x_l; P_l])                P_l (p, D) trained in every block: L p D numbers
    shallow    [x_{l+1}; z_{l+1}] = block_l([x_l; z_l])          z_1 = P (p, D) trained in the first block only: p D

Deep prompts are dropped after their block, ``·``, and the next block has its own; shallow ones travel through all
chosen blocks and are dropped after the last of them, so that the rest of the model sees N tokens as before. There is no
ΔW: what the prompts do depends on the picture, and nothing can be merged or exported. p = 0 is the frozen model.

The paper puts the prompts between class token and patches; here they stand at the end, which is the same: without mask
and rotary positions attention is equivariant to permutations of its tokens, norms and MLPs act token by token, and
positions were added before, to the picture's tokens alone. Hence blocks are refused where the position counts or a
token has a meaning that a prompt lacks: windows, relative or rotary positions, masks (a text tower's causal one), keys
from elsewhere. LLMs and the towers of Qwen have these. What reads tokens *inside* the chosen blocks, such as
``hidden_states`` of transformers, sees the prompts after the picture's tokens; LLaVA-OneVision does, and is refused.

Start: uniform in ± sqrt(6 / (3 · 16 · 16 + D)), the paper's: Glorot's bound of an embedding of 16 x 16 patches, kept
for other patch sizes. The output at the start is not the base's. ``dropout`` acts on the prompts, as in the paper's
code. Learning rates are far above LoRA's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from transformers.models.vit.modeling_vit import ViTLayer

from ..errors import UserError
from ..registry import register
from .base import MethodConfig, WeightUpdate
from .tuner import AdapterLayer, register_method
from .whole import WholeLayer

# Blocks that treat all tokens alike -> a norm of theirs, which tells the width.
BLOCKS: dict[type[nn.Module], str] = {
    Block: "norm1",
    ResPostBlock: "norm1",
    ResidualAttentionBlock: "ln_1",
    CustomResidualAttentionBlock: "ln_1",
    ViTLayer: "layernorm_before",
}
# The same by name, so that none of these models is imported before it is asked for.
NAMED = {"InternVLVisionLayer": "layernorm_before", "SmolVLMEncoderLayer": "layer_norm1"}
REASONS = {"SiglipEncoderLayer": "LLaVA-OneVision reads what transformers records inside it, prompts among the tokens"}
PATCH_INPUTS = 3 * 16 * 16


@register(
    "adapter",
    "visual_prompt",
    summary="VPT: learned tokens in every block of a vision tower, or in the first (deep: false)",
    paper="arXiv 2203.12119",
)
@dataclass
class VisualPromptConfig(MethodConfig):
    """Options of visual prompt tuning.

    Raises:
        UserError: a value out of range.
    """

    beyond_linears: ClassVar[tuple[str, ...]] = ("block",)
    places: ClassVar[tuple[str, ...]] = ("block",)
    scale: ClassVar[float] = 1.0

    length: int = field(default=10, metadata={"help": "number of prompts p", "ge": 0})
    deep: bool = field(default=True, metadata={"help": "new prompts in every block; false: in the first one only"})
    dropout: float = field(default=0.0, metadata={"help": "dropout on the prompts", "ge": 0, "lt": 1})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.runs: dict[str, list[str]] = {}
        if self.length < 0 or not 0 <= self.dropout < 1:
            raise UserError(
                f"length = {self.length}, dropout = {self.dropout}: 0 or more prompts, and dropout from 0 to below 1."
            )

    def prepare(self, weights: Mapping[str, Tensor]) -> None:
        """Forget the blocks of another model."""
        self.runs = {}

    def inspect(self, name: str, module: nn.Module, parent: nn.Module) -> None:
        """Note the block, and refuse what prompts cannot enter.

        Raises:
            UserError: another kind of module, tokens not in the second dimension, or a gap between shallow blocks.
        """
        block = module.base_layer if isinstance(module, AdapterLayer) else module
        if norm_of(block) is None:
            kind = type(block).__name__
            plain = "it needs the blocks of a plain vision transformer, without windows, rotary positions or a cache"
            raise UserError(
                f"visual_prompt cannot enter '{name}', a {kind}: {REASONS.get(kind, plain)}; "
                "choose another tower, or a method such as kv_prefix."
            )
        if not getattr(getattr(block, "attn", None), "batch_first", True):
            raise UserError(f"visual_prompt cannot enter '{name}', which has tokens before samples: use batch_first.")
        tower, _, number = name.rpartition(".")
        run = self.runs.setdefault(tower, [])
        if not self.deep and run and int(number) != int(run[-1].rpartition(".")[2]) + 1:
            raise UserError(
                f"deep = False hands prompts on from block to block, and '{run[-1]}' is not followed by '{name}': "
                "choose layers without a gap, such as '3:'."
            )
        run.append(name)


class VisualPrompt(WeightUpdate):
    """P (p, D) of one block; None where the prompts come from an earlier block."""

    P: nn.Parameter | None

    def __init__(self, block: Any, config: VisualPromptConfig, name: str) -> None:
        super().__init__(config)
        self.name, self.length, self.deep = name, config.length, config.deep
        self.run = config.runs[name.rpartition(".")[0]]  # grows until all blocks have been seen
        norm = norm_of(block).weight
        like = {"device": norm.device, "dtype": torch.promote_types(norm.dtype, torch.float32)}
        self.register_parameter("P", None)
        if self.deep or self.run[0] == name:
            bound = math.sqrt(6 / (PATCH_INPUTS + len(norm)))
            self.P = nn.Parameter(torch.empty(config.length, len(norm), **like).uniform_(-bound, bound))

    def enter(self, x: Tensor) -> Tensor:
        """Put the prompts in: (B, N, D) -> (B, N + p, D), or x itself where it carries prompts already."""
        if self.P is None:
            return x
        return torch.cat([x, self.dropout(self.P).to(x.dtype).expand(len(x), -1, -1)], dim=1)

    def leave(self, y: Tensor) -> Tensor:
        """Take the prompts out: (B, N + p, D) -> (B, N, D), or y itself where a later block needs the prompts."""
        if not self.deep and self.run[-1] != self.name:
            return y
        return y[:, : y.shape[1] - self.length]

    def export_factors(self) -> None:
        """Return None: prompts are no factors of a weight."""

    def facts(self) -> dict[str, float]:
        """Compute the mean norm of the prompts that enter here."""
        return {} if self.P is None or not len(self.P) else {"prompt_norm": float(self.P.detach().norm(dim=1).mean())}


class VisualPromptLayer(WholeLayer):
    """A block whose tokens are joined by prompts."""

    no_weight = "works with prompts, which are tokens and no part of a weight"

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the block with its prompts: (B, N, D) -> (B, N, D); between shallow blocks (B, N + p, D)."""
        prompts: VisualPrompt | None = self.working()
        if prompts is None:
            return self.base_layer(x, *args, **kwargs)
        if kwargs.get("is_causal") or any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            raise UserError(
                f"visual_prompt cannot enter '{prompts.name}': the block is given a mask, rotary positions or other "
                "keys, which say nothing about prompts; adapt vision towers only, such as towers: [vision]."
            )
        return prompts.leave(self.base_layer(prompts.enter(x), *args, **kwargs))


def norm_of(block: nn.Module) -> Any:
    """Return a norm over the width of a plain vision transformer's block; None for other modules."""
    kind = type(block)
    library = kind.__module__.startswith("transformers.models.")
    name = BLOCKS.get(kind) or (NAMED.get(kind.__name__) if library else None)
    return None if name is None else getattr(block, name)


def wrap_block(module: nn.Module) -> type[AdapterLayer] | None:
    """Return :class:`VisualPromptLayer` for the blocks of plain vision transformers, None for anything else."""
    return None if norm_of(module) is None else VisualPromptLayer


register_method("visual_prompt", VisualPromptConfig, VisualPrompt, wrap_block)
