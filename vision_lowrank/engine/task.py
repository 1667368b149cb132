"""What a task is: a module that owns model, losses and protocol, and knows nothing of devices or loops.

A task yields :class:`Stage` objects; the engine runs each with the same loop. Training asks for
``training_step(batch)``, evaluation for ``eval_sets``, ``begin_eval``, ``eval_step`` and ``metrics``. The engine
moves batches to the device, gathers outputs over processes, checkpoints and resumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..config.schema import RunConfig

Batch = dict[str, Any]
Outputs = dict[str, Tensor]


@dataclass
class Stage:
    """One run of the loop: what trains, on what, for how long.

    Attributes:
        name: used in logs, checkpoints and metrics.
        data: map-style data set; ``data[position, index]`` gives a dictionary of tensors and numbers.
        engine: overrides of the run's engine settings for this stage, such as ``{"steps": 100}``.
        select: name of the validation metric that picks the best state ("max" is better); None keeps the last state.
        collate: joins samples to a batch; None is torch's default.
        steps: what makes this stage's steps, instead of the run's gradient rule; see :mod:`vision_lowrank.optim.base`.
        prepares: it only makes ready what the other stages train: a run's cost is measured on these.
    """

    name: str
    data: Dataset
    engine: dict[str, Any] = field(default_factory=dict)
    select: str | None = None
    collate: Any = None
    steps: Any = None
    prepares: bool = False


class Series(NamedTuple):
    """Metrics that come one after another.

    Attributes:
        names: their full names, ``{}`` for the numbers 0, 1, 2, …
        title: what their table and their plot are called.
    """

    names: str
    title: str


class Task(nn.Module):
    """Base class of all tasks. Subclasses register themselves with ``@register("task", name, config=...)``.

    A metric is named in full, ``test/fluent/loss``, or by its last word, which stands for it on every test set.

    Attributes:
        headline: the metric that stands for the result; empty where there is none.
        columns: the metrics that tables print; none = all.
        selects_by: full name of the validation metric that learning rates are chosen by; empty where there is none.
        series: metrics that studies tabulate and draw one after another.
        baseline: what tables call the model without training.
        shares: beginnings of keys of the task's section that must be the same in all variants of a study, lest their
            metrics mean different things.
        about: what a reader of a table must know about its columns.
        adapts: whether it attaches an ``adapter`` that the config names.
    """

    headline: ClassVar[str] = ""
    columns: ClassVar[tuple[str, ...]] = ()
    selects_by: ClassVar[str] = ""
    series: ClassVar[Series | None] = None
    baseline: ClassVar[str] = "untrained"
    shares: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[str] = ""
    adapts: ClassVar[bool] = True

    @classmethod
    def baseline_identity(cls, config: RunConfig) -> Any:
        """What the evaluation of the model without training depends on, as plain values.

        None is everything, the seed too; otherwise all runs of a study that agree in it share one evaluation.
        """
        return None

    def is_column(self, name: str) -> bool:
        """Whether the metric of this full name is told after an evaluation: a column, what is selected by, or any."""
        of_set, _, metric = name.rpartition("/")
        listed = name in self.columns or (metric in self.columns and of_set.count("/") < 2)
        return not self.columns or listed or name == self.selects_by

    def stages(self) -> list[Stage]:
        """The stages to run, in order. A task without training (zero-shot) returns an empty list."""
        raise NotImplementedError

    def begin_stage(self, stage: Stage) -> None:
        """Called before a stage starts or resumes: freeze, unfreeze, build heads."""

    def begin_training(self) -> None:
        """Called after :meth:`begin_stage` and the gradient rule: what requires a gradient now may change."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups of the current stage: dicts with ``params`` (list of named tuples' tensors) and options.

        Default: everything that requires a gradient. Modules name those of their own parameters that weight decay
        (``no_decay``) or gradient clipping (``no_clip``) must not touch; these form groups of their own.
        """
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        seen: set[int] = set()
        for module in self.modules():
            exempt = [getattr(module, rule, ()) for rule in ("no_decay", "no_clip")]
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    groups.setdefault((name not in exempt[0], name not in exempt[1]), []).append(parameter)
        return [
            {"params": tensors, "clip": clip} | ({} if decay else {"weight_decay": 0.0})
            for (decay, clip), tensors in groups.items()
        ]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch, ``{"loss": scalar, part: scalar, …}``: ``loss`` is differentiated, all are logged."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """``training_step``: what distributed wrappers call."""
        return self.training_step(batch)

    def after_step(self, step: int) -> None:
        """Called when the optimiser has stepped and `step` steps of the stage are done."""

    def fit_sets(self, place: Literal["untrained", "start", "end"]) -> Mapping[str, Dataset]:
        """Data sets that parts are fitted on in closed form, such as prototypes: :meth:`fit_outputs` gets the outputs.

        Args:
            place: ``start`` of a stage, before its first step and not again when it resumes; its ``end``, before its
                result is saved; or ``untrained``, before the evaluation inside :meth:`untrained`.
        """
        return {}

    def fit_outputs(self, name: str, outputs: Outputs) -> None:
        """What the model gave for a set of :meth:`fit_sets`: the outputs of all its samples, on the CPU."""

    def eval_sets(self, split: Literal["val", "test"]) -> Mapping[str, Dataset]:
        """Named data sets to evaluate on; ``val`` may be empty."""
        raise NotImplementedError

    def begin_eval(self, set_name: str) -> None:
        """Called under ``no_grad`` before a set is evaluated: for example encode the class prompts once."""

    def eval_step(self, batch: Batch) -> Outputs:
        """Per-sample tensors of one batch, first dimension = batch: gathered over batches and processes."""
        raise NotImplementedError

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        """Metrics of one set from its gathered outputs; names without the set's name."""
        raise NotImplementedError

    def summary(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics over several sets, from the metrics of all sets under their full names."""
        return {}

    def untrained(self) -> AbstractContextManager[Any]:
        """Context in which the task evaluates as if nothing had been added to the base model; the default: as it is."""
        return nullcontext()

    def trained_state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: everything that a stage may change.

        Default: parameters that require a gradient, and the whole state of modules with ``checkpoint_whole``, whose
        frozen tensors another machine might compute differently.
        """
        state = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        for path, module in self.named_modules():
            if getattr(module, "checkpoint_whole", False):
                state |= {name: t.detach() for name, t in module.state_dict(prefix=f"{path}.").items()}
        return state

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`trained_state` gave; names must match exactly."""
        own = self.trained_state()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise KeyError(f"checkpoint and model differ in {len(odd)} tensors, such as {odd[0]}")
        for path, module in self.named_modules():
            if hasattr(module, "check_state"):
                prefix = f"{path}."
                module.check_state({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)})
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the trained result so that it can be loaded without the training code."""
        raise NotImplementedError

    def write_details(self, folder: Path) -> None:
        """Write what the last evaluation told beside its metrics, such as a row per picture, into a seed's folder."""

    def describe(self) -> dict[str, Any]:
        """Facts for the record: split hashes, prompts, trainable parameters, coverage."""
        return {}


def measured_stage(stages: Sequence[Stage]) -> Stage:
    """The stage that a run's cost is measured on."""
    return next((stage for stage in stages if not stage.prepares), stages[0])


def count(parameters: Iterable[Tensor]) -> int:
    """Number of scalars in `parameters`."""
    return sum(p.numel() for p in parameters)
