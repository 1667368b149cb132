"""The typed schema of a run: every key, its type, its description and its only default.

``task``, ``data``, ``adapter``, ``initializer``, ``rule``, ``regularizer``, ``selection`` and each of ``hooks`` are
validated by the type that the registry holds for their ``type``, and ``backbone.options`` by the one that it holds for
the family that ``backbone.name`` begins with; unknown keys are errors everywhere.
:mod:`vision_lowrank.config.load` turns files and overrides into a :class:`RunConfig`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ..errors import UserError
from ..registry import registry
from .marks import MAX_SEED, MAX_SIDE, FileOrTag, check_range, unsaid_weights
from .rates import resolved

Steps = Annotated[int, Field(ge=0, le=10**9)]
Rate = Annotated[float, Field(ge=0, le=1e3)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean
# What adapters are measured against; what each means, the task says.
Reference = Literal["none", "zero_shot", "linear_probe", "full"]
REFERENCES: tuple[str, ...] = get_args(Reference)


class Section(BaseModel):
    """Base of every config section: unknown keys are errors, values are checked, instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _within_range(cls, value: Any) -> Any:
        """Refuse numbers that no setting can mean; options have narrower ranges of their own."""
        return check_range(value)


class BackboneConfig(Section):
    """Which pretrained model to adapt."""

    name: str = Field(description="`tiny-clip`, `open_clip:<arch>`, `timm:<model>` or `hf:<multimodal LLM>`")
    weights: FileOrTag | None = Field(
        None,
        description="`pretrained`, a library's tag (`openai`), a file, or `random`; only a shipped model has a default",
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=MAX_SIDE,
        description="side of the input in pixels, positions resampled to it; null = the model's own",
    )
    crop_pct: float | None = Field(
        None,
        ge=0.1,
        le=1,
        description="evaluation resizes to size / this before its centre crop; null = the model's own",
    )

    options: Any = Field(
        None,
        description="those of the family that `name` begins with, such as `{pooler: true}` of timm",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        """Refuse a family that is not registered."""
        try:
            registry.get("backbone", name.partition(":")[0])
        except UserError as error:
            raise PydanticCustomError("part", "{reason}", {"reason": str(error)}) from None
        return name

    @model_validator(mode="after")
    def _weights_said(self) -> BackboneConfig:
        if reason := unsaid_weights(self.name, self.weights):
            raise PydanticCustomError("part", "{reason}", {"reason": reason})
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The keywords of ``load_backbone``."""
        size = {} if self.image_size is None else {"image_size": self.image_size}
        return {"name": self.name, "weights": self.weights, **size, **dict(self.options or {})}


class EngineConfig(Section):
    """The training loop."""

    steps: Steps = Field(300, description="optimiser steps")
    batch_size: int = Field(32, ge=1, le=10**6, description="samples per optimiser step, over all processes")
    accumulate: int = Field(1, ge=1, le=10**6, description="micro-batches per step; batch_size is divided among them")
    lr: float = Field(2e-4, gt=0, le=1e3, description="peak learning rate")
    min_lr: Rate = Field(1e-6, description="learning rate of the last step of the cosine")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="what steps, unless the `rule` brings its own")
    weight_decay: Rate = Field(1e-2, description="AdamW's decoupled weight decay; SGD's is coupled")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's betas")
    momentum: float = Field(0.0, ge=0, lt=1, description="SGD's momentum")
    nesterov: bool = Field(False, description="SGD's momentum in Nesterov's form")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="learning rate after warm-up")
    warmup_steps: Steps = Field(0, description="steps of linear warm-up from 0")
    clip_norm: float | None = Field(None, gt=0, description="clip the global gradient norm to this; null = off")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast type; trained weights stay fp32")
    recompute_dropout: bool = Field(
        False, description="draw adapters' dropout masks again in the backward pass: less memory, same results"
    )
    sharding: Literal["none", "fsdp2"] = Field(
        "none", description="fsdp2: several processes divide the weights of every block among them"
    )
    compile: bool = Field(False, description="torch.compile the training step")
    eval_every: Steps = Field(0, description="evaluate on the validation split every N steps; 0 = only at the end")
    patience: Steps = Field(0, description="stop after N evaluations without a better validation metric; 0 = never")
    checkpoint_every: Steps = Field(100, description="write a checkpoint every N steps; 0 = only between stages")
    log_every: int = Field(10, ge=1, le=10**9, description="write a metrics line every N steps")
    eval_batch_size: int = Field(256, ge=1, le=10**6, description="samples per evaluation batch")
    workers: int = Field(0, ge=0, le=1024, description="data-loading worker processes")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of torch; null = torch's default")
    tensorboard: bool = Field(True, description="write TensorBoard event files beside metrics.jsonl")

    @model_validator(mode="after")
    def _settings_are_the_optimizers(self) -> EngineConfig:
        if self.optimizer == "sgd" and self.betas != EngineConfig.model_fields["betas"].default:
            raise ValueError("betas are AdamW's: leave them out, or set optimizer=adamw")
        if self.optimizer == "adamw" and self.momentum and not self.nesterov:
            raise ValueError("momentum is SGD's, AdamW has betas: set momentum=0, or optimizer=sgd")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov is a form of SGD's momentum: set optimizer=sgd and momentum, such as 0.9")
        return self


class RunConfig(Section):
    """One run: a backbone, a task on data, perhaps an adapter, and the loop's settings."""

    name: str = Field(
        "run", pattern=r"^[\w\-][\w.\-]*$", max_length=200, description="name of the run folder under `out`"
    )
    out: str = Field("runs", min_length=1, description="folder that run folders are created in")
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field(
        (1,), min_length=1, description="a training each, drawn data included; `seed: 3` is short for `seeds: [3]`"
    )
    backbone: BackboneConfig
    task: Any = Field(description="`type` names a registered task; the other keys are that task's")
    data: Any = Field(description="`type` names a registered data set; the other keys are that data set's")
    adapter: Any = Field(None, description="`type` names a registered adapter; null = no adapter")
    initializer: Any = Field(None, description="`type` names a registered initialiser; null = the adapter's own start")
    rule: Any = Field(None, description="`type` names a registered gradient rule; null = plain training")
    regularizer: Any = Field(None, description="`type` names a registered regulariser; null = the task's loss alone")
    selection: Any = Field(None, description="`type` names a registered selection; null = the adapter sits as it says")
    hooks: tuple[Any, ...] = Field((), description="sections whose `type` names a registered hook of the training loop")
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig())
    rates: tuple[Annotated[float, Field(gt=0, le=1e3)], ...] = Field(
        (), description="learning rates of which validation pictures choose one; `engine.lr: auto` is three that suit"
    )
    references: tuple[Reference, ...] = Field(
        (), description="trained and evaluated beside the adapter, which is worth nothing where it ends below them"
    )

    @property
    def seed(self) -> int:
        """The first of `seeds`: that of what is done once."""
        return self.seeds[0]

    @model_validator(mode="before")
    @classmethod
    def _one_seed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Turn ``seed: 3`` into ``seeds: [3]``."""
        if "seed" not in values:
            return values
        if "seeds" in values:
            raise UserError(f"seed: `seeds` is given too: give seeds=[{values['seed']}] alone.")
        return {key: value for key, value in values.items() if key != "seed"} | {"seeds": (values["seed"],)}

    @model_validator(mode="before")
    @classmethod
    def _automatic_rate(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Turn ``engine.lr: auto`` into ``rates``."""
        return resolved(values)

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is given twice: its second training would be the first again")
        return seeds

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        """Check that the parts fit: every section that has something against another says so."""
        for section in (self.task, self.rule, self.regularizer, self.selection, *self.hooks):
            if section is not None and self.task is not None and hasattr(section, "check"):
                section.check(self)  # a task section that was refused is None here
        return self
