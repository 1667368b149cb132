"""Options of ``task: {type: manipulation}``: ManipShield's stages (arXiv 2511.14259) and what replaces them.

The paper's body could not be read: apart from the outline (contrastive LoRA of the vision tower, one chosen layer of
the language model, decoders on it), every default here is this project's reconstruction.

What a method is, in these options:

    ManipShield               an adapter on the vision tower, contrast, layer lds, decoder query, explanation on an MLLM
    without the contrast      contrast null
    without layer selection   layer last
    frozen tower              no adapter, contrast null
    full fine-tuning          no adapter, trains_base true
    linear head               no adapter, contrast null, decoder linear
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ...config.schema import RunConfig, Section
from ...data.manipulation.framing import Mode
from ...errors import UserError
from .contrast import Reading
from .decoders import Kind
from .layer_discrimination import Criterion
from .losses import LossWeights


class ContrastOptions(Section):
    """Stage A: the adapted vision tower tells real pictures from edited ones."""

    steps: int = Field(100, ge=1, description="optimiser steps")
    reading: Reading = Field(
        "label", description="label: all real against all edited; pair: a picture and its own edit are alike"
    )
    temperature: float = Field(0.2, gt=0, description="tau; at 0.07 small batches hardly leave the trivial loss")
    twin_weight: float = Field(1.0, ge=1, description="label: how much the twin counts among the negatives")
    lr: float | None = Field(None, gt=0, description="of the adapter; null = engine.lr")
    projector_lr: float = Field(1e-3, gt=0, description="of the projector, which is thrown away after the stage")


class LayerOptions(Section):
    """Stage B: Layer Discrimination Selection on validation pictures; nothing trains."""

    criterion: Criterion = Field("discrimination", description="what the layer is chosen by")
    pictures: int = Field(2000, ge=16, description="most validation pictures that are looked at")


class StageWeights(LossWeights):
    """Weights of the terms of stage C."""

    contrast: float = Field(0.0, ge=0, description="the contrastive term of stage A kept alive; the card proposes 0.1")


class ExplanationOptions(Section):
    """Stage D: an adapter of its own teaches the language model to explain; the other stages' weights stay."""

    steps: int = Field(100, ge=1, description="optimiser steps")
    lr: float = Field(1e-4, gt=0, description="of the language model's adapter")
    adapter: Any = Field(
        default_factory=lambda: {"type": "lora", "r": 16, "modules": ["q", "k", "v", "o", "gate", "fc1", "fc2"]},
        description="the section of its adapter; its place is always the language model",
    )


class ManipulationConfig(Section):
    """Options of ``task: {type: manipulation}``."""

    type: Literal["manipulation"] = "manipulation"
    framing: Mode = Field("resize", description="how pictures meet the square input: resize, pad or tile")
    max_tiles: int = Field(6, ge=1, le=1024, description="tile: most tiles beside the whole picture")
    override_framing: bool = Field(False, description="`eval`: use this framing although the detector learnt another")
    augmentation: Literal["twins", "imdl", "none"] = Field(
        "twins", description="flips and re-encoding, alike for twins; or IMDL-BenCo's; or none"
    )
    contrast: ContrastOptions | None = Field(
        default_factory=lambda: ContrastOptions(), description="stage A; null = none"
    )
    layer: Literal["lds", "last"] | int = Field("lds", description="whose states the decoders read; lds is stage B")
    selection: LayerOptions = Field(default_factory=lambda: LayerOptions(), description="stage B")
    decoder: Kind = Field("query", description="linear: detection alone")
    boxes: int = Field(10, ge=1, le=10_000, description="K: most boxes that are found in a picture")
    width: int = Field(256, ge=8, le=65_536, description="of the query decoder")
    heads: int = Field(8, ge=1, le=1024, description="of its attention")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the query decoder")
    losses: StageWeights = Field(default_factory=lambda: StageWeights(), description="stage C")
    adapter_lr_factor: float = Field(
        0.25, ge=0, le=1, description="stage C: learning rate of the adapter (or base) over that of the decoders"
    )
    trains_base: bool = Field(False, description="full fine-tuning of the vision tower, in place of an adapter")
    explanation: ExplanationOptions | None = Field(None, description="stage D, for multimodal LLMs; null = template")
    select: Literal["last", "val"] = Field("last", description="state of stage C kept: the last, or best AUC on val")
    explained_pictures: int = Field(50, ge=0, description="explained test pictures whose explanations are scored")
    robustness: tuple[str, ...] = Field(
        (), description="degradations that test sets are also evaluated under, such as jpeg-70"
    )

    @model_validator(mode="after")
    def _fits(self) -> ManipulationConfig:
        if self.decoder == "query" and self.width % (4 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 4 x heads = {4 * self.heads}")
        return self

    def check(self, config: RunConfig) -> None:
        """Refuse what cannot train.

        Raises:
            UserError: contrast without anything to train, an adapter beside trained base weights.
        """
        if config.adapter is not None and self.trains_base:
            raise UserError("task.trains_base trains all of the vision tower: leave the adapter out, or set it false.")
        if self.contrast and config.adapter is None and not self.trains_base:
            raise UserError(
                "task.contrast needs weights to train: add an `adapter` on the vision tower, or set task.contrast=null."
            )
