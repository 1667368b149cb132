"""Settings of each stage, and the identity of a run: what a checkpoint must agree with before it is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from ..config.schema import EngineConfig
from ..errors import ConfigError, UserError, near_miss
from ..optim.base import Rule
from .task import Stage

# Settings that may differ between a run and its resumption: they do not change what is computed.
FREE_SETTINGS = {
    "checkpoint_every",
    "eval_batch_size",
    "log_every",
    "recompute_dropout",
    "sharding",
    "tensorboard",
    "threads",
    "workers",
}


def stage_settings(config: EngineConfig, stage: Stage) -> EngineConfig:
    """Return the run's settings with the stage's overrides.

    Raises:
        ConfigError: an override is unknown or has a bad value.
    """
    try:
        return EngineConfig.model_validate({**config.model_dump(), **stage.engine})
    except ValidationError as error:
        known = list(EngineConfig.model_fields)
        problems = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        raise ConfigError(
            f"stage '{stage.name}', engine.{key}: {message}.{'' if key in known else near_miss(key, known)}"
            for key, message in problems
        ) from error


def check_patience(stages: Sequence[Stage], settings: Sequence[EngineConfig]) -> None:
    """Refuse a patience that could never end a stage.

    Raises:
        UserError: no stage keeps a state by a validation metric, or those that do are evaluated at their end alone.
    """
    waiting = [(stage, each) for stage, each in zip(stages, settings, strict=True) if each.patience]
    choosing = [each for stage, each in waiting if stage.keep.metric is not None]
    if waiting and not choosing:
        raise UserError(
            f"engine.patience={waiting[0][1].patience} waits for a better validation metric, and no stage keeps a "
            "state by one: let the task choose on validation data (`task.select`), or set engine.patience=0."
        )
    if waiting and not any(each.eval_every for each in choosing):
        raise UserError(
            f"engine.patience={choosing[0].patience} counts evaluations, and without engine.eval_every there is one, "
            "at the end: set engine.eval_every, or engine.patience=0."
        )


def run_identity(seed: int, config: str, stages: Sequence[Stage], settings: Sequence[EngineConfig]) -> dict[str, Any]:
    """Return everything that decides what a run computes, by name, as JSON values.

    Args:
        seed: the run's seed.
        config: a hash of what the engine does not see: task, data, model.
        stages: all stages.
        settings: their settings.
    """
    identity: dict[str, Any] = {"seed": seed, "config": config, "stages": [stage.name for stage in stages]}
    for index, (stage, options) in enumerate(zip(stages, settings, strict=True)):
        facts = {"samples": len(stage.data), "keep": repr(stage.keep)}  # type: ignore[arg-type]
        facts |= options.model_dump(mode="json", exclude=FREE_SETTINGS)
        identity |= {f"{stage.name}[{index}].{key}": value for key, value in facts.items()}
    return identity


def check_sharding(stage: Stage, settings: EngineConfig, rule: Rule | None) -> None:
    """Refuse what cannot train with divided blocks.

    Raises:
        UserError: a gradient rule or steps of the stage's own, fp16, or a compiled step.
    """
    reasons = {
        "a gradient rule moves weights itself: leave `rule` out": rule is not None or stage.steps is not None,
        "losses are not scaled for fp16: set engine.precision=bf16": settings.precision == "fp16",
        "the step is not compiled: set engine.compile=false": settings.compile,
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"stage '{stage.name}': with engine.sharding=fsdp2 {reason}.")
