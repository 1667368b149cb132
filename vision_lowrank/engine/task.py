"""What a task is: a module that owns model, losses and protocol, and knows nothing of devices or loops.

A task yields :class:`Stage` objects; the engine runs each with the same loop. Training asks for
``training_step(batch)``, evaluation for ``eval_sets``, ``begin_eval``, ``eval_step`` and ``metrics``. The engine
moves batches to the device, gathers outputs over processes, checkpoints and resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..errors import UserError
from ..trained import TrainedPart, parameter_groups
from .keep import Keep, Last

if TYPE_CHECKING:
    from ..config.schema import RunConfig

Batch = dict[str, Any]
Collate = Callable[[list[Any]], Any]

# By name, what a model gives for samples: a tensor, whose first dimension is theirs, or a list with a value for each,
# such as a tensor of a size of its own, or a dictionary of tensors. See :mod:`.outputs`.
Outputs = dict[str, Any]


@dataclass
class Stage:
    """One run of the loop: what trains, on what, for how long.

    Attributes:
        name: used in logs, checkpoints and metrics.
        data: map-style data set; ``data[position, index]`` gives a dictionary of tensors and numbers.
        engine: overrides of the run's engine settings for this stage, such as ``{"steps": 100}``.
        keep: which state the stage ends with: :class:`.keep.Last`, or one that a validation metric chooses.
        collate: joins samples to a batch; None is torch's default.
        steps: what makes this stage's steps, instead of the run's gradient rule; see :mod:`vision_lowrank.optim.base`.
        prepares: it only makes ready what the other stages train: a run's cost is measured on these.
    """

    name: str
    data: Dataset
    engine: dict[str, Any] = field(default_factory=dict)
    keep: Keep = field(default_factory=Last)
    collate: Collate | None = None
    steps: Any = None
    prepares: bool = False


@dataclass(frozen=True)
class EvalSet:
    """A data set to evaluate on that is read in a way of its own.

    Attributes:
        data: map-style data set.
        collate: joins samples to a batch; None is torch's default.
        batch_size: samples of a batch; None is ``engine.eval_batch_size``.
    """

    data: Dataset
    collate: Collate | None = None
    batch_size: int | None = None


EvalSets = Mapping[str, Dataset | EvalSet]


class Series(NamedTuple):
    """Metrics that come one after another.

    Attributes:
        names: their full names, ``{}`` for the numbers 0, 1, 2, …
        title: what their table and their plot are called.
    """

    names: str
    title: str


class Task(TrainedPart):
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
        gates: of a selection's search (:class:`vision_lowrank.selection.gates.Gates`); None without one.
    """

    headline: ClassVar[str] = ""
    columns: ClassVar[tuple[str, ...]] = ()
    selects_by: ClassVar[str] = ""
    series: ClassVar[Series | None] = None
    baseline: ClassVar[str] = "untrained"
    shares: ClassVar[tuple[str, ...]] = ()
    about: ClassVar[str] = ""
    adapts: ClassVar[bool] = True
    gates: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.gates = None

    @classmethod
    def references(cls, config: RunConfig) -> Mapping[str, Sequence[str]]:
        """Return what adapters are measured against: ``none``, ``zero_shot``, ``linear_probe``, ``full``.

        These are changes of the recipe `config` once its adapter, and what goes with that, is taken out. ``engine.lr``
        among them is a rate that suits what trains, and gives way to one that the user names.
        """
        return {}

    @classmethod
    def baseline_identity(cls, config: RunConfig) -> Any:
        """Name what the evaluation of the model without training depends on, as plain values.

        None is everything, the seed too; otherwise all runs of a study that agree in it share one evaluation.
        """
        return None

    @classmethod
    def of_model(cls, model: Any, config: RunConfig) -> Task:
        """Build the task that evaluates a saved model, used as it is, on the data that `config` names.

        Raises:
            UserError: this task evaluates none of its kind, or the data does not fit it.
        """
        raise UserError(f"task '{config.task.type}' evaluates no model for {model.task}: see `vision-lowrank inspect`.")

    def is_column(self, name: str) -> bool:
        """Check whether the metric of this name is told after an evaluation: a column, what is selected by, or any."""
        of_set, _, metric = name.rpartition("/")
        listed = name in self.columns or (metric in self.columns and of_set.count("/") < 2)
        return not self.columns or listed or name == self.selects_by

    def stages(self) -> list[Stage]:
        """Return the stages to run, in order. A task without training (zero-shot) returns an empty list."""
        raise NotImplementedError

    def begin_stage(self, stage: Stage) -> None:
        """Get ready before a stage starts or resumes: freeze, unfreeze, build heads."""

    def begin_training(self) -> None:
        """Get ready after :meth:`begin_stage` and the gradient rule: what requires a gradient now may change."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimiser groups of the current stage: dicts with ``params`` and options.

        Default: everything that requires a gradient, with what trained parts exempt in groups of its own.
        """
        return parameter_groups(self)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute one batch's losses, ``{"loss": scalar, part: scalar, …}``: ``loss`` is differentiated, all logged."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute ``training_step``: distributed wrappers call this."""
        return self.training_step(batch)

    def after_step(self, step: int) -> None:
        """Act when the optimiser has stepped and `step` steps of the stage are done."""

    def selection_data(self) -> Dataset:
        """Return samples held out for a selection's search, as they are evaluated: a task with `gates` has them."""
        raise NotImplementedError

    def fit_sets(self, place: Literal["untrained", "start", "end"]) -> EvalSets:
        """Return data sets for fitting parts in closed form, such as prototypes; :meth:`fit_outputs` gets the outputs.

        Args:
            place: ``start`` of a stage, before its first step and not again when it resumes; its ``end``, before its
                result is saved; or ``untrained``, before the evaluation inside :meth:`untrained`.
        """
        return {}

    def fit_outputs(self, name: str, outputs: Outputs) -> None:
        """Fit on what the model gave for a set of :meth:`fit_sets`: the outputs of all its samples, on the CPU."""

    def eval_sets(self, split: Literal["val", "test"]) -> EvalSets:
        """Return named data sets to evaluate on; ``val`` may be empty."""
        raise NotImplementedError

    def begin_eval(self, set_name: str) -> None:
        """Get ready, under ``no_grad``, before a set is evaluated: for example encode the class prompts once."""

    def eval_step(self, batch: Batch) -> Outputs:
        """Compute what the model gives for each sample of one batch: gathered over batches and processes."""
        raise NotImplementedError

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        """Compute the metrics of one set from its gathered outputs; names without the set's name."""
        raise NotImplementedError

    def summary(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Compute metrics over several sets, from the metrics of all sets under their full names."""
        return {}

    def untrained(self) -> AbstractContextManager[Any]:
        """Return a context in which the task evaluates as if nothing were added to the base; the default: as it is."""
        return nullcontext()

    def trained_state(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold: everything that a stage may change.

        Default: parameters that require a gradient, and the whole state of parts with ``checkpoint_whole``.
        """
        state = {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
        for path, module in self.named_modules():
            if isinstance(module, TrainedPart) and module.checkpoint_whole:
                state |= {name: t.detach() for name, t in module.state_dict(prefix=f"{path}.").items()}
        return state

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`trained_state` gave; names must match exactly."""
        own = self.trained_state()
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise KeyError(f"checkpoint and model differ in {len(odd)} tensors, such as {odd[0]}")
        for path, module in self.named_modules():
            if isinstance(module, TrainedPart):
                prefix = f"{path}."
                module.check_state({k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)})
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the trained result so that it can be loaded without the training code."""
        raise NotImplementedError

    def write_details(self, folder: Path, outputs: Mapping[str, Outputs]) -> None:
        """Write what the last evaluation gave beside its metrics, such as a row per picture, into a seed's folder.

        Args:
            folder: of the seed; files there are read by the task's section of the report.
            outputs: name of a set -> the outputs of all its samples, on the CPU.
        """

    def data_summary(self) -> list[str]:
        """Return lines for people about the data, such as classes and pictures per split; told before training."""
        return []

    def describe(self) -> dict[str, Any]:
        """Return facts for the record: split hashes, prompts, trainable parameters, coverage."""
        return {}


def measured_stage(stages: Sequence[Stage]) -> Stage:
    """Return the stage that a run's cost is measured on."""
    return next((stage for stage in stages if not stage.prepares), stages[0])


def count(parameters: Iterable[Tensor]) -> int:
    """Count the scalars in `parameters`."""
    return sum(p.numel() for p in parameters)
