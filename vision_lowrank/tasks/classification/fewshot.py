"""Few-shot classification: K labelled pictures per class, a frozen backbone, an adapter or a head that trains.

The protocol is that of CLIP-LoRA (arXiv 2405.18541): class prompts are encoded by the adapted text tower at every
step, logits are scaled cosine similarities, the loss is cross-entropy, the last state is kept. Every metric is
reported beside the untrained model's, on the test sets and on the *retention* sets (what the model could do before).
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ...adapters.phases import begin_phase, phases
from ...config.schema import RunConfig, Section
from ...data.base import TransformedImages
from ...data.samplers import few_shot
from ...errors import UserError
from ...registry import register
from ..base import Batch, Stage
from .base import ClassificationTask, load_adapted, load_splits
from .classifier import ImageClassifier
from .heads import HeadName


class FewShotConfig(Section):
    """Options of ``task: {type: fewshot}``."""

    type: Literal["fewshot"] = "fewshot"
    shots: int = Field(4, ge=1, description="training pictures per class")
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1, description="seeds of the few-shot draw and of training")
    sampler: Literal["coop", "clip_lora"] = Field("coop", description="whose few-shot draw a seed reproduces")
    allow_fewer: bool = Field(False, description="accept classes with fewer pictures than shots, as the sampler does")
    head: HeadName = Field("text", description="text prompts (two-tower models), a linear layer or cosine prototypes")
    templates: tuple[str, ...] | None = Field(None, description="prompt templates instead of the data set's own")
    crop: tuple[float, float] = Field((0.08, 1.0), description="area range of the random crop in training")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip in training")
    select: bool = Field(False, description="keep the best state on the validation pictures instead of the last")
    steps_per_shot: int | None = Field(
        None, ge=1, description="train for this many steps per shot (CLIP-LoRA: 500) instead of engine.steps"
    )


@register(
    "task", "fewshot", summary="K labelled pictures per class: adapter, head or both", paper="arXiv 2405.18541",
    config=FewShotConfig,
)  # fmt: skip
class FewShot(ClassificationTask):
    """Few-shot training and evaluation of an :class:`ImageClassifier`."""

    def __init__(self, config: RunConfig, seed: int) -> None:
        options: FewShotConfig = config.task
        splits = load_splits(config)
        train, val = few_shot(
            splits.train, options.shots, seed, options.sampler, splits.val, allow_fewer=options.allow_fewer
        )
        templates = options.templates or splits.templates
        model = load_adapted(config, options.head, train, templates)
        super().__init__(ImageClassifier(model, options.head, splits.train.classes, templates), splits, val)
        self.options, self.seed, self.train_images = options, seed, train

    def stages(self) -> list[Stage]:
        """The few-shot pictures, randomly cropped and flipped: one stage for each phase of the adapter."""
        if not any(p.requires_grad for p in self.parameters()):
            raise UserError(
                "nothing trains: give an `adapter`, set task.head=linear or cosine, or use task.type=zeroshot."
            )
        transform = self.classifier.model.preprocess.training(self.options.crop, self.options.flip)
        per_shot = self.options.steps_per_shot
        length = {"steps": per_shot * self.options.shots} if per_shot else {}
        return [
            Stage(
                phase,
                TransformedImages(self.train_images, transform, self.seed),
                length | settings,
                select="val/accuracy" if self.options.select else None,
            )
            for phase, settings in phases(self.classifier.model).items()
        ]

    def begin_stage(self, stage: Stage) -> None:
        """Find out whether the text tower trains; if not, the prompts are encoded only once."""
        begin_phase(self.classifier.model, stage.name)
        tower = self.classifier.model.towers.get("text")
        named = self.classifier.model.named_parameters()
        self._text_trains = tower is not None and any(
            p.requires_grad and any(f"{block}." in name for block in tower.blocks) for name, p in named
        )
        if not self._text_trains:
            self.classifier.freeze_text()

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of a batch: image (B, 3, H, W), label (B,)."""
        if self._text_trains:  # an evaluation may have encoded the prompts
            self.classifier.unfreeze_text()
        logits = self.classifier(batch["image"])
        loss = F.cross_entropy(logits, batch["label"])
        return {"loss": loss, "accuracy": (logits.detach().argmax(dim=-1) == batch["label"]).float().mean()}

    def describe(self) -> dict[str, Any]:
        """The base class's facts, and which pictures were drawn."""
        return super().describe() | {
            "sampler": self.options.sampler,
            "shots": self.options.shots,
            "train_images": len(self.train_images),
            "train_hash": self.train_images.hash,
        }
