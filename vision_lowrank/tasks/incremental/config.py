"""Options of ``task: {type: incremental}``; defaults are CoACT's (arXiv 2405.16625) where it has one for all data sets,
but for its augmentation, ``color_jitter``, and what its code does with test pictures and unseen classes.

What a method is, in these options:

    prototype only    no adapter, epochs 0; with cosine that is SimpleCIL (arXiv 2303.07338)
    linear tuning     no adapter, head linear, incremental_epochs 1 and more, contrastive 0, cit_variant none
    LoRA              an adapter, contrastive 0, cit_variant none
    LoRA + distilling an adapter, contrastive 0, consistency_model previous
    full fine-tuning  no adapter, l_ft -1, incremental_trains [classifier, encoder], contrastive 0, cit_variant none
    CoACT             an adapter, l_ft and e_ft as the data set wants
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...config.schema import RunConfig, Section
from ...data.augmentation import Augmentation
from ...data.options import AreaRange, Templates
from ...data.sessions import SessionOptions
from ...errors import UserError
from ...regularizers.base import alters_base
from .unfreeze import PartName


class IncrementalConfig(Section):
    """Options of ``task: {type: incremental}``."""

    type: Literal["incremental"] = "incremental"
    protocol: SessionOptions = Field(description="how classes are cut into sessions, and how many pictures each has")
    head: Literal["prototype", "linear", "text"] = Field(
        "prototype", description="rows of new classes start as class means, at random, or as embeddings of prompts"
    )
    cosine: bool = Field(False, description="compare features with rows by their cosine, not by their dot product")
    templates: Templates | None = Field(None, description="prompt templates instead of the data set's own")
    mask_unseen: bool = Field(True, description="predict classes of past sessions only; false: as the paper's code")

    epochs: int | None = Field(None, ge=0, description="epochs of the base session; null = engine.steps")
    select: Literal["last", "val", "best_on_test"] = Field(
        "last", description="base state kept: last, best on validation, or (only to reproduce papers) best on test data"
    )
    l_ft: int | None = Field(
        None, ge=-1, description="base weights of blocks from this one on train too; -1 = all; null = none"
    )
    e_ft: int = Field(0, ge=0, description="epoch of the base session (of the adapter's last phase) from which they do")
    encoder_lr_factor: float = Field(1.0, gt=0, description="their learning rate, as a share of engine.lr")

    contrastive: float = Field(1.0, ge=0, description="weight of the contrastive term with frozen models; 0 = none")
    temperature: float = Field(0.07, gt=0, description="of the contrastive term")
    teacher_momentum: float = Field(0.999, ge=0, le=1, description="share of the teacher that stays in one update")
    projection: Literal["none", "linear", "mlp"] = Field("none", description="what features pass before they contrast")

    incremental_epochs: int = Field(0, ge=0, description="epochs of every later session; 0 = new rows only")
    incremental_trains: tuple[PartName, ...] = Field(
        ("classifier", "pet"), min_length=1, description="what trains there: classifier, pet (the adapter), encoder"
    )
    incremental_lr_factor: float = Field(1.0, gt=0, description="constant learning rate there, as a share of engine.lr")
    cit_variant: Literal["code", "paper", "none"] = Field(
        "code", description="consistency terms of later sessions: of the paper's code, its figure, or none"
    )
    consistency: float = Field(1.0, ge=0, description="weight of the logit distance (cit_variant code)")
    consistency_classes: Literal["seen", "all"] = Field(
        "seen", description="columns of the logit distance: those its model was trained on, or all as in the code"
    )
    consistency_model: Literal["base", "previous"] = Field(
        "base", description="consistent with the model after the base session, or after the session before"
    )

    crop: AreaRange = Field((0.08, 1.0), description="area range of the random crop in training")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip in training")
    augmentation: Augmentation = Field("basic", description="what comes on top of crop and flip")

    @model_validator(mode="after")
    def _selection_has_pictures(self) -> IncrementalConfig:
        if self.select == "val" and not self.protocol.val_shots:
            raise ValueError("select=val needs validation pictures: set task.protocol.val_shots, or select=last")
        return self

    @property
    def guided(self) -> bool:
        """Whether frozen models take part in the losses of later sessions."""
        wanted = self.contrastive or (self.cit_variant == "code" and self.consistency)
        return bool(self.incremental_epochs and self.cit_variant != "none" and wanted)

    def check(self, config: RunConfig) -> None:
        """Refuse what makes no sense together with the rest of the run.

        Raises:
            UserError: a part is named that is not there.
        """
        if self.incremental_epochs and "pet" in self.incremental_trains and config.adapter is None:
            raise UserError("task.incremental_trains names pet, but there is no adapter: set it to [classifier].")
        if "encoder" in self.incremental_trains and self.l_ft is None:
            raise UserError("task.incremental_trains names encoder, but l_ft is null: set it, -1 for all blocks.")
        if config.adapter is not None and (odd := alters_base(config.adapter.config())):
            raise UserError(
                f"task incremental: {odd} changes the frozen weights, so that the adapter switched off is not the "
                "pretrained model it is compared with: use `initializer: {type: pissa}` or the adapter's own start."
            )
        rule = config.rule
        if rule is not None and (rule.type == "lisa" or (rule.moves_base and (self.contrastive or self.guided))):
            raise UserError(
                f"task incremental: rule '{rule.type}' changes base weights, which sessions freeze and compare with: "
                "use another rule, or l_ft for base weights that train."
            )
        if config.selection is not None:
            raise UserError("selection: it searches before few-shot training; task.type=incremental has no such stage.")
