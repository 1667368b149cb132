"""Pretraining on regions that match: how the shipped tiny-vit is made.

Two views of a scene, of which the data tells where every cell of the first lies in the second (:mod:`..data.regions`),
go through the trunk each on its own. With normalised final tokens a_i of cells whose place is seen, b_j of all cells of
all second views of the batch, and temperature τ, the loss is a cross-entropy over places::

    P_ij = w_ij, the bilinear weights of the place of i between the four cells of its own view next to it, sum 1
    loss = - mean_i sum_j P_ij log softmax_j(a_i · b_j / τ)

So cells of the same surface become alike across light, scale, turn and what lies behind, and unlike everything else: a
dense form of contrastive learning (DenseCL, arXiv 2011.09157) with places that are known, not guessed. The gate for a
tracker's base is the share of cells whose most similar cell of the other view lies at their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from ...backbones.load import load_backbone
from ...backbones.weights import RANDOM, half_state
from ...config.marks import FileOrTag
from ...config.schema import RunConfig, Section
from ...data.gives import read_data
from ...data.regions import RegionPairs
from ...data.transforms import Preprocess
from ...engine.task import Batch, Outputs, Stage, Task, count
from ...registry import register
from ..saved import add_parts
from .decay import decay_groups
from .encoder import Encoder
from .teacher import Teacher
from .whitening import whiten_patches

STATISTICS = 128  # pairs that patches are whitened and the teacher's channels standardised by
HELD_OUT = 2**31  # seed of held-out pairs, apart from those of training


class PretrainRegionsConfig(Section):
    """Options of ``task: {type: pretrain_regions}``."""

    type: Literal["pretrain_regions"] = "pretrain_regions"
    temperature: float = Field(0.07, gt=0, le=10, description="of the softmax over places")
    cells: int = Field(64, ge=1, le=10**5, description="most cells of a first view that the loss looks at")
    teacher: str = Field("", description="a timm model whose maps the tokens learn too: `timm:<model>`; empty = none")
    teacher_weights: FileOrTag = Field("pretrained", description="its weights, as `backbone.weights`")
    teacher_maps: tuple[int, ...] = Field((2, 3), min_length=1, description="which of its maps, as timm numbers them")
    teacher_weight: float = Field(30.0, gt=0, le=1e3, description="of the teacher's loss beside that of places")


class RegionViews(Dataset):
    """Pairs as tensors: ``{"views": (2, 3, s, s) normalised, "places": (h, w, 2) in pixels}``.

    A pair is a function of the seed, its position and its photograph.
    """

    def __init__(self, pairs: RegionPairs, preprocess: Preprocess, cell: int, seed: int) -> None:
        self.pairs, self.cell, self.seed, self.side = pairs, cell, seed, preprocess.size
        self.mean, self.std = (torch.tensor(value).view(3, 1, 1) for value in (preprocess.mean, preprocess.std))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Tensor]:
        position, index = item if isinstance(item, tuple) else (item, item)
        pair = self.pairs.pair(self.seed, position, index, self.side, self.cell)
        views = torch.from_numpy(pair.views).permute(0, 3, 1, 2).float() / 255
        return {"views": (views - self.mean) / self.std, "places": torch.from_numpy(pair.places.astype(np.float32))}


def place_weights(places: Tensor, grid: tuple[int, int], cell: int) -> tuple[Tensor, Tensor]:
    """Divide places among the cells next to them.

    Args:
        places: (n, 2) x and y in pixels, inside the view.
        grid: rows and columns of cells.
        cell: side of a cell in pixels.

    Returns:
        Numbers (n, 4) of cells, row by row, and their bilinear weights (n, 4), sum 1; at the border cells repeat.
    """
    rows, columns = grid
    at = places / cell - 0.5  # in cells, from the centre of the first
    low = at.floor()
    part = at - low
    found, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            column = (low[:, 0] + right).clamp(0, columns - 1)
            row = (low[:, 1] + down).clamp(0, rows - 1)
            found.append((row * columns + column).long())
            x, y = (part[:, axis] if step else 1 - part[:, axis] for axis, step in ((0, right), (1, down)))
            weights.append(x * y)
    return torch.stack(found, dim=1), torch.stack(weights, dim=1)


def matching_loss(
    first: Tensor, second: Tensor, places: Tensor, grid: tuple[int, int], cell: int, temperature: float, cells: int
) -> Tensor:
    """Compute the loss of the module docstring.

    Args:
        first: (B, N, d) tokens of the first views; `second` likewise of the second ones.
        second: see `first`.
        places: (B, N, 2) in pixels, NaN where a cell is not seen.
        grid: rows and columns, N of them.
        cell: side of a cell in pixels.
        temperature: τ.
        cells: most cells of each first view, drawn from torch's generator.
    """
    seen = places.isfinite().all(dim=-1)
    drawn = torch.rand(seen.shape, device=seen.device).masked_fill(~seen, 2).argsort(dim=1)[:, :cells]
    chosen = torch.zeros_like(seen).scatter(1, drawn, True) & seen
    if not chosen.any():
        return 0 * (first.sum() + second.sum())
    view = chosen.nonzero()[:, 0]
    numbers, weights = place_weights(places[chosen], grid, cell)
    keys = F.normalize(second.float(), dim=-1).flatten(0, 1)
    logits = F.normalize(first.float(), dim=-1)[chosen] @ keys.T / temperature
    likely = logits.log_softmax(dim=1).gather(1, numbers + view[:, None] * first.shape[1])
    return -(weights * likely).sum(dim=1).mean()


def hits(first: Tensor, second: Tensor, places: Tensor, grid: tuple[int, int], cell: int) -> Tensor:
    """Tell of every pair which share of its seen cells (B,) is most similar to a cell at its place.

    At its place means a centre at most one cell away. Arguments are those of :func:`matching_loss`.
    """
    columns = grid[1]
    similar = F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).transpose(1, 2)
    best = similar.argmax(dim=-1)
    centres = torch.stack([best % columns, best // columns], dim=-1) * cell + cell / 2
    near = (centres - places).norm(dim=-1) <= cell
    seen = places.isfinite().all(dim=-1)
    return (near & seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)


@register(
    "task", "pretrain_regions", summary="pretraining on regions of photographs that match", paper="arXiv 2011.09157",
    config=PretrainRegionsConfig,
)  # fmt: skip
class PretrainRegions(Task):
    """Trains all of a plain ViT; evaluates how many cells of held-out pairs find their place."""

    headline = "hit_rate"
    columns = ("hit_rate", "colour_rate", "loss")
    selects_by = "val/hit_rate"
    adapts = False

    def __init__(self, config: RunConfig, seed: int) -> None:
        self._build(Encoder(load_backbone(**config.backbone.arguments)), config)
        self.seed = seed
        backbone, drawn = self.model.backbone, config.backbone.weights == RANDOM
        if not drawn and not config.task.teacher:
            return
        views = self._views("train", seed)
        looked = torch.cat([views[number, number]["views"] for number in range(STATISTICS)])
        if drawn:
            whiten_patches(backbone.trunk.patch_embedding, looked)
        if config.task.teacher:
            teacher = load_backbone(config.task.teacher, config.task.teacher_weights)
            width = backbone.trunk.layout.width
            self.teacher = Teacher(teacher, config.task.teacher_maps, width, looked, backbone.preprocess)

    def _build(self, model: Encoder, config: RunConfig) -> None:
        super().__init__()
        self.model, self.options, self.seed = model, config.task, 0
        self.teacher: Teacher | None = None
        self.splits: dict[str, RegionPairs] = read_data(config.data, "regions")
        trunk = model.backbone.trunk
        self.cell, self.grid = trunk.patch[0], tuple(trunk.layout.grid)

    @classmethod
    def of_model(cls, model: Any, config: RunConfig) -> Task:
        """Return the task that evaluates a saved encoder on the regions that `config` names."""
        if not isinstance(model, Encoder):
            return super().of_model(model, config)
        task = cls.__new__(cls)
        task._build(model, config)
        return task

    def stages(self) -> list[Stage]:
        """Return one stage over all photographs."""
        return [Stage("pretrain", self._views("train", self.seed))]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: matrices decay; biases, norms and position embeddings do not."""
        return decay_groups(((name, p) for name, p in self.named_parameters() if p.requires_grad), "pos_embed")

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss of a batch: views (B, 2, 3, s, s), places (B, h, w, 2)."""
        first, second, places = self._tokens(batch)
        matching = self._loss(first, second, places)
        if self.teacher is None:
            return {"loss": matching}
        tokens, views = torch.cat([first, second]), batch["views"].transpose(0, 1).flatten(0, 1)
        taught = self.teacher.loss(tokens, views, self.grid)
        loss = matching + self.options.teacher_weight * taught
        return {"loss": loss, "matching": matching.detach(), "teacher": taught.detach()}

    def eval_sets(self, split: Literal["val", "test"]) -> Mapping[str, Dataset]:
        """Return pairs of held-out photographs that never change."""
        name = "val" if split == "val" else "test/regions"
        return {name: self._views(split, HELD_OUT)} if split in self.splits else {}

    def eval_step(self, batch: Batch) -> Outputs:
        """Return for every pair which shares of cells find their place, by tokens and by mean colour, and the loss."""
        first, second, places = self._tokens(batch)
        colours = [F.avg_pool2d(view, self.cell).flatten(2).transpose(1, 2) for view in batch["views"].unbind(1)]
        alone = [self._loss(*(each[row : row + 1] for each in (first, second, places))) for row in range(len(first))]
        return {
            "hit": hits(first, second, places, self.grid, self.cell),
            "colour": hits(*colours, places, self.grid, self.cell),
            "loss": torch.stack(alone),
        }

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        """Compute mean shares over pairs, and the mean loss of a pair on its own."""
        means = {name: float(values.mean()) for name, values in outputs.items()}
        return {"hit_rate": means["hit"], "colour_rate": means["colour"], "loss": means["loss"]}

    def begin_training(self) -> None:
        """Remember that the whole model trains, so that its artefact needs no base; buffers belong to it."""
        self.model.trained_base = set(self.model.backbone.state_dict())

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Save the encoder as an artefact folder; for timm it also holds ``model.safetensors`` (fp16)."""
        self.model.save(folder, record)
        add_parts(folder, {"model.safetensors": half_state(self.model.backbone.model)})

    def data_summary(self) -> list[str]:
        """Return how many photographs and drawn objects each split has."""
        return [
            f"{name}: {len(each.pool.photographs)} photographs, {len(each.pool.emoji)} emoji"
            for name, each in self.splits.items()
        ]

    def describe(self) -> dict[str, Any]:
        """Return the base, photographs per split and the number of trainable parameters."""
        return {
            "backbone": self.model.backbone.spec | {"fingerprint": self.model.fingerprint},
            "photographs": {name: len(each.pool.photographs) for name, each in self.splits.items()},
            "trainable_parameters": count(p for p in self.parameters() if p.requires_grad),
        }

    def _views(self, split: str, seed: int) -> RegionViews:
        return RegionViews(self.splits[split], self.model.backbone.preprocess, self.cell, seed)

    def _tokens(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens (B, N, d) of first and second views, and places (B, N, 2)."""
        views = batch["views"]
        tokens = self.model.backbone.image_tokens(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return tokens[:, 0], tokens[:, 1], batch["places"].flatten(1, 2)

    def _loss(self, first: Tensor, second: Tensor, places: Tensor) -> Tensor:
        options = self.options
        return matching_loss(first, second, places, self.grid, self.cell, options.temperature, options.cells)
