"""The six families of multimodal LLMs: where their parts are, and how square tiles enter them.

Paths are inside the library's ``…ForConditionalGeneration``, as of transformers 5; ``model.`` comes before all of them.
S is the side of a tile, p of a patch, and the LLM sees a grid of g x g tokens per tile:

========================== ============ ===================================== ==================================
family                     g            what a tile becomes                   tokens of c tiles in the prompt
========================== ============ ===================================== ==================================
qwen2_vl, 2_5_vl, qwen3_vl S / p / 2    patches (4 g², 6 p²), cell by cell    c runs of g², each an image
internvl                   S / p / 2    itself                                one run of c g²: one image, tiled
llava_onevision            S // p       itself, without its own tiling        c runs of g² + 1 (a newline)
smolvlm                    S / p / r    itself, with a mask of ones           c runs of g² between fake tokens
========================== ============ ===================================== ==================================

Tokens of a run are in rows, top left first. The tower's own order differs: Qwen keeps the 2 x 2 patches of a cell
together, and Qwen2.5-VL the cells of a window; :meth:`Family.patches` puts patches back in rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """One family, told by ``config.model_type``.

    Attributes:
        model_type: such as ``internvl``.
        vision: path of the vision tower.
        blocks: path of its list of blocks.
        linears: logical name -> path inside a vision block, as published (Qwen's ``qkv`` is one).
        projector: paths of what maps the tower's output to the width of the LLM.
        llm: path of the language model, whose blocks are its ``layers``.
        image: the image token, of which a chat template prints one per image.
        around: what the prompt has before and after a run of image tokens, beside what the template prints.
        newline: tokens of a tile behind its grid.
        joined: whether the tiles of a picture are one image, and one run.
        tile: side of a tile where the tower has none of its own.
        resizable: whether the tower reads tiles of another size.
        template: chat template where a checkpoint brings none.
    """

    model_type: str
    vision: str
    blocks: str
    linears: dict[str, str]
    projector: tuple[str, ...]
    llm: str = "language_model"
    image: str = "<image>"
    around: tuple[str, str] = ("", "")
    newline: int = 0
    joined: bool = False
    tile: int | None = None
    resizable: bool = True
    template: str = ""

    @property
    def vision_regex(self) -> str:
        """Full-match regex of all linears of vision blocks, for PEFT's ``target_modules`` on the library's model."""
        names = "|".join(re.escape(name) for name in dict.fromkeys(self.linears.values()))
        return rf"model\.{re.escape(self.blocks)}\.\d+\.({names})"

    def split_linears(self) -> dict[str, str]:
        """Return ``linears`` as they are once attention is split."""
        fused = {name: f"{path}.{name}_proj" for name, path in self.linears.items() if path.endswith(".qkv")}
        return self.linears | fused

    def patch(self, config: Any) -> int:
        """Return the side of a patch in pixels."""
        size = config.vision_config.patch_size
        return size if isinstance(size, int) else size[0]

    def native(self, config: Any) -> int:
        """Return the side of a tile that the weights were made for."""
        size = self.tile or config.vision_config.image_size
        return size if isinstance(size, int) else size[0]

    def merge(self, config: Any) -> int:
        """Return the number of patches on a side of one token's cell."""
        vision = config.vision_config
        shuffle = round(1 / getattr(config, "downsample_ratio", 1))
        return getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", shuffle)

    def width(self, config: Any) -> int:
        """Return the channels of the tower's output; Qwen2-VL calls that of the LLM ``hidden_size``."""
        return getattr(config.vision_config, "embed_dim", None) or config.vision_config.hidden_size

    def first_safe_layer(self, config: Any) -> int:
        """Return the first l >= 1 whose recorded ``hidden_states[l]`` is layer l + 1's input: not in deepstack."""
        return len(getattr(config.vision_config, "deepstack_visual_indexes", ())) + 1

    def run(self, tokens: int, count: int) -> str:
        """Return what the prompt has for one printed image token, with `tokens` on a tile's grid and `count` tiles."""
        before, after = self.around
        return before + self.image * ((tokens + self.newline) * (count if self.joined else 1)) + after

    def inputs(self, model: nn.Module, tiles: Tensor) -> dict[str, Tensor]:
        """Return what the model's forward takes beside tokens, for tiles (M, 3, S, S)."""
        return {"pixel_values": tiles}

    def patches(self, model: nn.Module, tiles: Tensor) -> Tensor:
        """Compute the tower's output before the projector, in rows, without class token: (M, 3, S, S) -> (M, n, D)."""
        return model.get_submodule(f"model.{self.vision}")(pixel_values=tiles).last_hidden_state


class Qwen(Family):
    """Tiles are images of their own, cut into patches here as the processor cuts them."""

    def inputs(self, model: nn.Module, tiles: Tensor) -> dict[str, Tensor]:
        """Return patches (M n, 3 t p²), the 4 of a cell together, each t times in time, and the grid of every tile."""
        vision = model.config.vision_config
        p, m, side = vision.patch_size, vision.spatial_merge_size, tiles.shape[-1] // vision.patch_size
        cells = tiles.unflatten(3, (side // m, m, p)).unflatten(2, (side // m, m, p))  # M 3 | h m p | w m p
        patches = cells.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # M | h w | m m | 3 1 p p
        patches = patches.expand(*patches.shape[:6], vision.temporal_patch_size, p, p).flatten(5).flatten(0, 4)
        grid = torch.tensor([[1, side, side]], device=tiles.device).expand(len(tiles), -1)
        return {"pixel_values": patches, "image_grid_thw": grid}

    def patches(self, model: nn.Module, tiles: Tensor) -> Tensor:
        """Compute patches as in every family; the tower's order of cells and windows is undone."""
        inputs = self.inputs(model, tiles)
        visual = model.get_submodule(f"model.{self.vision}")
        states = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).last_hidden_state
        states = states.unflatten(0, (len(tiles), -1))
        return states[:, _numbers(model.config.vision_config, states.shape[1]).argsort().to(tiles.device)]


def _numbers(vision: Any, count: int) -> Tensor:
    """Return the row-major number of every patch of a tile of `count` patches, in the order of Qwen's tower."""
    m, side = vision.spatial_merge_size, round(count**0.5)
    cells = torch.arange(count).view(side // m, m, side // m, m).transpose(1, 2).flatten(2)  # h, w, m²
    if not hasattr(vision, "window_size"):
        return cells.flatten()
    step = vision.window_size // m // vision.patch_size
    return torch.cat([window.flatten() for rows in cells.split(step) for window in rows.split(step, dim=1)])


class InternVL(Family):
    """All tiles of a picture are tiles of one image; the tower has a class token."""

    def patches(self, model: nn.Module, tiles: Tensor) -> Tensor:
        """Compute patches as in every family."""
        return super().patches(model, tiles)[:, 1:]


class LlavaOnevision(Family):
    """Tiles are images of a prompt with several: then the model does not tile them again."""

    def inputs(self, model: nn.Module, tiles: Tensor) -> dict[str, Tensor]:
        """Return inputs as in every family; `batch_num_images` only decides about tiling, which one image would get."""
        sizes = torch.tensor([tiles.shape[-2:]], device=tiles.device).expand(len(tiles), -1)
        number = torch.tensor([max(2, len(tiles))], device=tiles.device)
        return {"pixel_values": tiles, "image_sizes": sizes, "batch_num_images": number}


class SmolVLM(Family):
    """Tiles are unsplit images of their own."""

    def inputs(self, model: nn.Module, tiles: Tensor) -> dict[str, Tensor]:
        """Return inputs as in every family; the model would take a tile of exact zeros for padding and drop it."""
        blank = (tiles == 0).flatten(1).all(1)[:, None, None, None]
        tiles = torch.where(blank, torch.full_like(tiles, 1e-6), tiles)[None]
        return {"pixel_values": tiles, "pixel_attention_mask": torch.ones_like(tiles[:, :, 0], dtype=torch.bool)}

    def patches(self, model: nn.Module, tiles: Tensor) -> Tensor:
        """Compute patches as in every family."""
        side = tiles.shape[-1] // self.patch(model.config)
        mask = torch.ones(len(tiles), side, side, dtype=torch.bool, device=tiles.device)
        tower = model.get_submodule(f"model.{self.vision}")
        return tower(pixel_values=tiles, patch_attention_mask=mask).last_hidden_state


def chat(image: str) -> str:
    """Build a chat template in ChatML that prints `image` for every image."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'image' %}"
        + image
        + "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


LLM = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj",
}  # fmt: skip
_FUSED = {"q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", "o": "attn.proj"}
_SEPARATE = {letter: f"self_attn.{letter}_proj" for letter in "qkv"} | {"o": "self_attn.out_proj"}
_INTERN = {letter: f"attention.{letter}_proj" for letter in "qkv"} | {"o": "attention.projection_layer"}
_MLP = {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_GATED = {"gate": "mlp.gate_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"}
_NUMBERED = {"fc1": "mlp.linear_fc1", "fc2": "mlp.linear_fc2"}
_QWEN: dict[str, Any] = {
    "image": "<|image_pad|>", "tile": 448, "template": chat("<|vision_start|><|image_pad|><|vision_end|>")
}  # fmt: skip
_SMOLVLM_CHAT = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)

FAMILIES = {
    family.model_type: family
    for family in (
        Qwen("qwen2_vl", "visual", "visual.blocks", _FUSED | _MLP, ("visual.merger",), **_QWEN),
        Qwen("qwen2_5_vl", "visual", "visual.blocks", _FUSED | _GATED, ("visual.merger",), **_QWEN),
        Qwen(
            "qwen3_vl", "visual", "visual.blocks", _FUSED | _NUMBERED,
            ("visual.merger", "visual.deepstack_merger_list"), **_QWEN,
        ),
        InternVL(
            "internvl", "vision_tower", "vision_tower.encoder.layer", _INTERN | _MLP, ("multi_modal_projector",),
            image="<IMG_CONTEXT>", around=("<img>", "</img>"), joined=True, template=chat("<IMG_CONTEXT>\n"),
        ),
        LlavaOnevision(
            "llava_onevision", "vision_tower", "vision_tower.encoder.layers", _SEPARATE | _MLP,
            ("multi_modal_projector", "image_newline"), newline=1, resizable=False, template=chat("<image>"),
        ),
        SmolVLM(
            "smolvlm", "vision_model", "vision_model.encoder.layers", _SEPARATE | _MLP, ("connector",),
            llm="text_model", around=("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
            resizable=False, template=_SMOLVLM_CHAT,
        ),
    )
}  # fmt: skip
