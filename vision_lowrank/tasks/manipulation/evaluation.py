"""Evaluating a model of manipulation: every test set as it is, and degraded; the training task builds on this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.data import Dataset

from ...config.schema import RunConfig
from ...data.manipulation.base import REAL, ManipulationSet, ManipulationSplits
from ...data.manipulation.robustness import Degradation, parse
from ...data.summary import notes_of, picture_counts
from ...engine.task import Batch, Outputs, Task
from ...metrics.calibration import Calibration
from .building import framing_of, load_manipulation
from .config import ManipulationConfig
from .model import ManipulationModel
from .pictures import Annotations, Pictures
from .scoring import Priors, Scores, decoded_of, score
from .text_scores import explanation_scores


class ManipulationEvaluation(Task):
    """Evaluates a :class:`ManipulationModel` on the pictures of its task."""

    headline = "auc"
    columns = (
        *("auc", "balanced_accuracy", "false_alarm_rate", "ece", "pixel_f1", "pixel_iou", "pixel_false_localisation"),
        *("box_union_iou", "box_ap50", "box_false_localisation", "cue_micro_f1", "cue_macro_f1"),
    )
    selects_by = "val/auc"

    def __init__(self, model: ManipulationModel, splits: ManipulationSplits, options: ManipulationConfig) -> None:
        super().__init__()
        self.options, self.splits, self.model = options, splits, model
        self.degradations = [parse(name) for name in options.robustness]
        self.annotations = Annotations(model.frames, model.cues, options.boxes)
        self.priors = Priors.of(splits.train, model.cues)
        self._set = ""
        self._scores: dict[str, Scores] = {}

    @classmethod
    def of_model(cls, model: Any, config: RunConfig) -> Task:
        """Return a task for a saved model on the data that `config` names.

        Raises:
            UserError: it is no model of manipulation; or as the data set's reader.
            ArtefactError: `config` asks for another framing than the model was trained with, and does not insist.
        """
        if not isinstance(model, ManipulationModel):
            return super().of_model(model, config)
        asked = framing_of(config.task, model.backbone)
        if config.task.override_framing:
            model.use_framing(asked)
        else:
            model.framing.check(asked)
        return ManipulationEvaluation(model, load_manipulation(config), config.task)

    def data_summary(self) -> list[str]:
        """Return the pictures of all sets, how many of them are real, and how they were read."""
        sets = {"train": self.splits.train, "val": self.splits.val, **self.splits.tests}
        reals = ", ".join(f"{name} {int((images.labels == REAL).sum()):,}" for name, images in sets.items())
        return [picture_counts(sets), f"of these real: {reals}", *notes_of(sets)]

    def eval_sets(self, split: Literal["val", "test"]) -> Mapping[str, Dataset]:
        """Return validation pictures, or every test set as is (``test/NAME``) and degraded (``test/NAME/jpeg-70``)."""
        return {
            name: Pictures(pictures, self.annotations, degradation)
            for name, (pictures, degradation) in self._sets(split).items()
        }

    def begin_eval(self, set_name: str) -> None:
        """Remember which outputs are asked for."""
        self._set = set_name

    def eval_step(self, batch: Batch) -> Outputs:
        """Compute what :func:`.scoring.score` needs of a batch of pictures."""
        decoded = self.model(batch)
        outputs = {name: value for name, value in decoded._asdict().items() if value is not None}
        return outputs | {name: self._wide(outputs[name]) for name in ("tokens", "valid") if name in outputs}

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        """Compute every metric of :mod:`.scoring`; of sets as they are also of the explanations."""
        found = self._score(set_name, outputs, self.model.calibration)
        self._scores[set_name] = found
        pictures, degradation = self._sets_of(set_name)[set_name]
        if degradation is not None or set_name == "val":
            return found.metrics
        calibration, most = self.model.calibration, self.options.explained_pictures
        return found.metrics | explanation_scores(self.model, pictures, decoded_of(outputs), calibration, most)

    def _score(self, set_name: str, outputs: Outputs, calibration: Calibration) -> Scores:
        pictures, degradation = self._sets_of(set_name)[set_name]
        return score(self.model, pictures, outputs, calibration, self.priors, degradation)

    def _sets_of(self, set_name: str) -> dict[str, tuple[ManipulationSet, Degradation | None]]:
        return self._sets("val" if set_name == "val" else "test")

    def _sets(self, split: Literal["val", "test"]) -> dict[str, tuple[ManipulationSet, Degradation | None]]:
        if split == "val":
            return {"val": (self.splits.val, None)}
        sets: dict[str, tuple[ManipulationSet, Degradation | None]] = {}
        for name, pictures in self.splits.tests.items():
            sets[f"test/{name}"] = (pictures, None)
            sets |= {f"test/{name}/{each}": (pictures, each) for each in self.degradations}
        return sets

    def _wide(self, tokens: Tensor) -> Tensor:
        """Return (B, n) with zeros up to the most tokens of a picture, so that batches can be joined."""
        return nn.functional.pad(tokens, (0, self.model.frames.tokens - tokens.shape[1]))
