"""``vision-lowrank inspect ARTEFACT --evaluate``: what an artefact forgot, what scaling its intruders down gives back,
and how well its features separate classes, each beside the frozen model.

The mathematics is in :mod:`vision_lowrank.analysis`; this file feeds it with the data of the artefact's own run. The
frozen model is the same model with its adapter off, or, where base weights were trained, the base loaded anew. Class
prompts are encoded again before every set, because both towers may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from ..analysis.forgetting import forgetting
from ..analysis.mitigation import Control, sweep
from ..analysis.separation import separation_under
from ..config.schema import RunConfig
from ..data.augmentation import Augmentation, training_transform
from ..data.base import ImageSet
from ..data.loading import TransformedImages
from ..engine.evaluation import evaluate_sets
from ..engine.progress import Display
from ..engine.runtime import Runtime
from ..engine.task import Batch, Outputs, Task
from ..errors import UserError
from ..tasks.classification.base import ClassificationTask
from ..tasks.saved import AdaptedModel

KEEPS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
# Control of analysis/mitigation.py -> what it is called in the numbers.
CONTROLS: dict[str, Control] = {"intruders": "none", "shrunk": "shrink", "random": "random"}
AUGMENTATIONS: tuple[Augmentation, ...] = ("basic", "randaugment", "randaugment_heavy")
# k-NN compares every test picture with every one of the index: more than this many of each are thinned out.
LIMIT = 5000


@dataclass
class Evaluation:
    """An artefact on its data.

    Attributes:
        task: the classifier and the sets.
        config: of the run.
        base: the untouched base, where weights of the base itself were trained; otherwise the adapter is switched off.
    """

    task: ClassificationTask
    config: RunConfig
    base: nn.Module | None = None
    runtime: Runtime = field(default_factory=Runtime)
    display: Display = field(default_factory=lambda: Display(enabled=True))

    def __post_init__(self) -> None:
        if self.config.engine.threads:
            torch.set_num_threads(self.config.engine.threads)
        self.runtime.check_precision(self.config.engine.precision)

    def to_device(self) -> None:
        """Move the models to where they are evaluated."""
        for module in (self.task, self.base):
            if module is not None:
                module.to(self.runtime.device)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the task use the base model as it was before training, inside the block."""
        tuned = self.task.model.backbone
        if self.base is not None:
            self.task.replace_model(self.base)
        try:
            with self.task.untrained():
                yield
        finally:
            self.task.replace_model(tuned)

    def metrics(self, sets: Mapping[str, Dataset]) -> dict[str, float]:
        """Compute ``SET/METRIC`` of the model as it is now."""
        return self._run(self.task, sets)[0]

    def features(self, sets: Mapping[str, Dataset]) -> dict[str, Outputs]:
        """Compute ``feature`` (N, e) and ``label`` (N,) of every set, of the model as it is now."""
        return self._run(_Features(self.task.model.backbone), sets)[1]

    def _run(self, task: Task, sets: Mapping[str, Dataset]) -> tuple[dict[str, float], dict[str, Outputs]]:
        seed = self.config.seed
        return evaluate_sets(task, sets, self.config.engine, self.runtime, self.display, seed=seed)


def evaluation_of(model: AdaptedModel, config: RunConfig, base: nn.Module | None, folder: Path) -> Evaluation:
    """Return the evaluation of the saved model of `folder` on the data that `config` names.

    Raises:
        UserError: it tells no classes apart; or as its task.
    """
    task = model.on(config)
    if not isinstance(task, ClassificationTask):
        raise UserError(f"{folder}: --evaluate looks at classes, which it has none of: use `vision-lowrank eval`.")
    if base is not None:
        base.preprocess = model.backbone.preprocess
    return Evaluation(task, config, base)


class _Features(Task):
    """What the head is fed with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def eval_step(self, batch: Batch) -> Outputs:
        return {"feature": self.model.encode_image(batch["image"]), "label": batch["label"]}

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        return {}


def forgotten(run: Evaluation) -> dict[str, Any]:
    """Compute metrics of all test, retention and transfer sets: ``before``, ``after`` and ``lost``.

    ``headline`` says which of them leads.

    A trained head says nothing of the frozen model, so there test sets have no `before`; sets that are recognised by
    prompts always have.
    """
    sets = run.task.eval_sets("test")
    by_prompts = run.task.model.head_name == "text"
    known = {name: data for name, data in sets.items() if by_prompts or name in run.task.prompted}
    with run.frozen():
        before = run.metrics(known)
    after = run.metrics(sets)
    lost = forgetting(before, after) if before else {}
    return {"headline": run.task.headline, "before": before, "after": after, "lost": lost}


def mitigated(run: Evaluation, k: int, epsilon: float) -> dict[str, Any]:
    """Compute the headline metric along λ, of the scaled intruders and of both controls.

    It is computed on the validation pictures (``task``), and on what is recognised by prompts alone (``kept``, the mean
    of the retention and transfer sets; None without any).

    Args:
        run: an artefact with an adapter.
        k: leading triplets to look at.
        epsilon: ε.

    Raises:
        UserError: there are no validation pictures, or the adapter has parts that are no ΔW.
    """
    sets = dict(run.task.eval_sets("val"))
    if not sets:
        raise UserError("the data has no validation pictures, and λ is not to be chosen on test pictures.")
    sets |= {name: data for name, data in run.task.eval_sets("test").items() if name in run.task.prompted}
    model = run.task.model.backbone
    curves: dict[str, dict[float, dict[str, float]]] = {}
    with run.display.track("mitigation", len(CONTROLS) * (len(KEEPS) - 1) + 1) as advance:

        def evaluate() -> dict[str, float]:
            metrics = run.metrics(sets)
            advance("")
            return metrics

        for name, control in CONTROLS.items():
            # λ = 1 is ΔW itself, whatever is scaled: evaluated once, for all three
            keeps = KEEPS if control == "none" else KEEPS[:-1]
            own = sweep(model, evaluate, keeps, k, epsilon, control=control)
            curves[name] = {1.0: curves["intruders"][1.0]} | own if curves else own
    return {
        "kept_sets": [name for name in sets if name != "val"],
        "rows": [
            {"keep": keep} | {name: _cell(curve[keep], run.task.headline) for name, curve in curves.items()}
            for keep in KEEPS
        ],
    }


def _cell(metrics: Mapping[str, float], headline: str) -> dict[str, Any]:
    values = {name: value for name, value in metrics.items() if name.endswith(f"/{headline}")}
    task = values.pop(f"val/{headline}")
    return {"task": task, "kept": fmean(values.values()) if values else None, "metrics": dict(metrics)}


def separated(run: Evaluation) -> dict[str, Any]:
    """Measure the separation of the first test set's features, clean and augmented, with the training pool as index.

    Augmentations depend on the run's seed and the picture alone, so the frozen and the adapted model see the same.

    Raises:
        UserError: features that are not finite, or of fewer than two classes.
    """
    name, pictures = next(iter(run.task.splits.tests.items()))
    test, index = thinned(pictures), thinned(run.task.splits.train)
    preprocess = run.task.model.backbone.preprocess
    options = {key: getattr(run.config.task, key) for key in ("crop", "flip") if hasattr(run.config.task, key)}
    sets: dict[str, Dataset] = {
        "index": TransformedImages(index, preprocess.evaluation()),
        "clean": TransformedImages(test, preprocess.evaluation()),
    }
    for kind in AUGMENTATIONS:
        sets[kind] = TransformedImages(test, training_transform(preprocess, kind, **options), run.config.seed)
    with run.frozen():
        frozen = _separation(run, sets)
    return {
        "set": name,
        "pictures": [len(test), len(pictures)],
        "index": [len(index), len(run.task.splits.train)],
        "frozen": frozen,
        "adapted": _separation(run, sets),
    }


def thinned(images: ImageSet, limit: int = LIMIT) -> ImageSet:
    """Return every n-th picture of a set that has more than `limit`."""
    return images.subset(range(0, len(images), max(1, -(-len(images) // limit))))


def _separation(run: Evaluation, sets: Mapping[str, Dataset]) -> dict[str, dict[str, float]]:
    outputs = run.features(sets)
    index, clean = outputs["index"], outputs["clean"]
    augmented: dict[str, torch.Tensor] = {kind: outputs[kind]["feature"] for kind in AUGMENTATIONS}
    return separation_under(clean["feature"], augmented, clean["label"], index["feature"], index["label"])
