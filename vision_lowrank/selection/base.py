"""What a selection is: options of a two-stage training that first finds out where an adapter should sit.

Stage ``search``: the adapter sits everywhere, a gate on each unit (:mod:`.gates`), and a two-level problem is solved
(:mod:`.search`). Stage ``train``: the search's adapter is discarded, and a new one trains on the modules that
:meth:`Selection.choose` names (:mod:`.final`), on all pictures.
"""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftModel

from ..config.schema import RunConfig
from ..data.base import ImageSet
from ..data.samplers import split_by_group
from ..errors import UserError
from ..optim.base import StepContext, Steps
from .final import adapt_anew
from .gates import Gates
from .search import Search, SearchOptions


class Selection(SearchOptions):
    """Base of all gated searches; their fields are the keys of a config's ``selection:`` section."""

    def check(self, config: RunConfig) -> None:
        """Refuse what makes no sense together, before anything is loaded.

        Raises:
            UserError: no LoRA to place, or a precision or an optimiser that the search cannot use.
        """
        engine = config.engine
        if not getattr(config.task, "takes_selection", False):
            raise UserError(f"selection: task.type={config.task.type} cannot search: use task.type=fewshot.")
        if config.adapter is None or config.adapter.type != "lora":
            raise UserError("selection: it chooses where a LoRA sits: set adapter.type=lora, or leave it out.")
        start = config.adapter.options.get("init_lora_weights", True)
        if start not in (True, False, "gaussian", "orthogonal"):
            raise UserError(
                f"selection: init_lora_weights={start} changes the frozen weights, and the search's LoRA is discarded: "
                "use vision_lowrank's own initializer of that name."
            )
        if engine.precision == "fp16":
            raise UserError("selection: held-out losses are not scaled for fp16: set engine.precision=bf16 or fp32.")
        if self.hypergrad == "unrolled" and (engine.optimizer != "sgd" or engine.clip_norm):
            raise UserError(
                "selection: hypergrad=unrolled differentiates an SGD step without clipping: set engine.optimizer=sgd "
                "and engine.clip_norm=null, or hypergrad=first_order."
            )
        if self.delay + self.inner_steps > self.steps:
            raise UserError("selection: the logits would never move: give more steps, or a shorter warmup.")

    def split(self, images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
        """Split the training pictures into (inner, held out), with pictures of each class in both.

        A class with a single picture has it on both sides: it is then held out as another view of the same picture.
        """
        inner, held_out = split_by_group(images, (1 - self.holdout, self.holdout), seed, images.keys, minimum=(1, 1))
        lonely = {i for indices in images.by_class() if len({images.keys[i] for i in indices}) == 1 for i in indices}
        sides = [set(part.keys) | {images.keys[i] for i in lonely} for part in (inner, held_out)]
        first, second = ([i for i, key in enumerate(images.keys) if key in side] for side in sides)
        return images.subset(first), images.subset(second)

    def gates(self, model: PeftModel) -> Gates:
        """Put gates on an adapted backbone; the task holds them as ``gates`` during the search.

        Raises:
            UserError: the model has no adapted modules in known blocks.
        """
        raise NotImplementedError

    def search(self, stage: StepContext) -> Steps:
        """Build the steps of the search stage.

        Raises:
            UserError: the task of the stage has no gates or no held-out data.
        """
        return Search(self, stage)

    def choose(self, gates: Gates) -> list[str]:
        """Choose the paths of modules, inside the base model, that get an adapter in the end; never empty."""
        raise NotImplementedError

    def final_model(self, model: PeftModel, gates: Gates, config: PeftConfig, **attaching: Any) -> PeftModel:
        """Build the model of the last stage: gates and the search's adapter are gone, a new adapter sits as chosen.

        Args:
            model: the model that was searched; its backbone is changed in place and lives on in the result.
            gates: the gates of the search.
            config: the adapter's config; its ``target_modules`` are replaced.
            attaching: further arguments of :func:`vision_lowrank.attach`, such as ``initializer``.
        """
        chosen = self.choose(gates)
        gates.remove()
        return adapt_anew(model, config, chosen, **attaching)
