"""The hook ``keep_adapters``: the adapter as it was after each epoch, in folders that ``vision_lowrank.load`` reads.

A seed's folder gets ``adapters/epoch-0007`` and its like: the states that an adapter passed through, for whoever wants
more than the last one, such as methods that learn to generate adapters. Epochs are counted over all stages in which
the adapter trains; one that is cut off by the end of a stage does not count.

A folder is there whole or not at all. A resumed run repeats the epochs after its checkpoint and writes the same folders
again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ..attachment.parameters import adapter_parameters, adapter_prefix
from ..attachment.store import save
from ..config.schema import RunConfig
from ..errors import UserError
from ..registry import register
from .hooks import Hook, HookSection, Loop

FOLDER = "adapters"


@register("hook", "keep_adapters", summary="keep the adapter of the last epochs, or of every n-th, as folders")
class KeepAdapters(HookSection):
    """Options of ``hooks: [{type: keep_adapters}]``."""

    type: Literal["keep_adapters"] = "keep_adapters"
    every: int = Field(1, ge=1, description="keep the adapter of every n-th epoch")
    last: int | None = Field(None, ge=1, description="of these keep the newest N only; null = all")

    def check(self, config: RunConfig) -> None:
        """Refuse a run without adapter, or with divided weights."""
        if config.adapter is None:
            raise no_adapter()
        if config.engine.sharding != "none":
            raise UserError(
                "hook keep_adapters: engine.sharding divides the adapter while it trains: set engine.sharding=none, or "
                "leave the hook out."
            )

    def start(self) -> AdapterKeeper:
        """Keep adapters from the first epoch on."""
        return AdapterKeeper(self)


class AdapterKeeper(Hook):
    """Saves the adapter at the end of epochs.

    Attributes:
        epochs: whole epochs in which the adapter has trained.
    """

    def __init__(self, options: KeepAdapters) -> None:
        self.options, self.epochs = options, 0

    def on_stage_start(self, engine: Loop) -> None:
        """Refuse a model without adapter before it trains.

        Raises:
            UserError: there is none.
        """
        if adapter_prefix(_backbone(engine)) is None:
            raise no_adapter()

    def after_step(self, engine: Loop) -> None:
        """Save and forget, where an epoch has ended."""
        assert engine.stage is not None
        epoch = math.ceil(len(engine.stage.data) / engine.settings.batch_size)  # type: ignore[arg-type]
        if engine.step % epoch or not adapter_parameters(_backbone(engine)):
            return
        self.epochs += 1
        if self.epochs % self.options.every == 0 and engine.is_main:
            save(_backbone(engine), engine.folder / FOLDER / f"epoch-{self.epochs:04d}")
            self._forget(engine)

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs so far."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after that many."""
        self.epochs = state["epochs"]

    def _forget(self, engine: Loop) -> None:
        """Remove what is older than the newest ``last``; what a run that was cut off left of later epochs stays."""
        if self.options.last is not None:
            oldest = self.epochs - (self.options.last - 1) * self.options.every
            for folder in (engine.folder / FOLDER).glob("epoch-*"):
                if int(folder.name.removeprefix("epoch-")) < oldest:
                    shutil.rmtree(folder)


def no_adapter() -> UserError:
    """Return the error that is raised where there is nothing to keep."""
    return UserError("hook keep_adapters: the model has no adapter to keep: set `adapter`, or leave the hook out.")


def _backbone(engine: Loop) -> Any:
    """Return the model that may carry an adapter."""
    model: Any = engine.task.model
    return model.backbone
