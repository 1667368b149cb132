"""Single-object tracking with a frozen plain ViT and adapters on it: LoRAT (arXiv 2403.05231), with any method in
LoRA's place.

Training draws pairs of frames (:mod:`...data.tracking.pairs`); evaluation follows every target through its whole clip
once, without help (one-pass evaluation), and scores the boxes. The baseline is *no motion*: the first box throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...attachment.section import attach_section
from ...backbones.load import load_backbone
from ...config.schema import RunConfig
from ...data.gives import read_data
from ...data.tracking.base import Clip, ClipSet, ClipSplits
from ...data.tracking.pairs import PairSource
from ...engine.task import Batch, EvalSet, EvalSets, Outputs, Stage, Task, count
from ...errors import UserError
from ...initializers.base import GradientInitializer
from ...metrics.tracking.score import TrackingScores
from ...registry import register
from .config import TrackingConfig
from .details import write_details
from .follow import follow_clips, score_clips, still
from .losses import tracking_losses
from .model import TrackingModel
from .samples import PairSamples
from .tokens import STD


@register("task", "tracking", summary="single-object tracking: LoRAT with any adapter", paper="arXiv 2403.05231",
          config=TrackingConfig)  # fmt: skip
class Tracking(Task):
    """Trains a :class:`.model.TrackingModel` on pairs of frames."""

    headline = "success_auc"
    columns = ("success_auc", "normalized_precision", "op50")
    selects_by = "val/success_auc"
    baseline = "no motion"
    shares = ("task.search_size", "task.template_size")

    def __init__(self, config: RunConfig, seed: int) -> None:
        model = TrackingModel(_adapted_backbone(config), config.task.cropping, config.task.following)
        with torch.no_grad():
            model.embedding.types.mul_(config.task.type_std / STD)
        self._build(model, read_data(config.data, "clips"), config.task)
        self.seed = seed
        if config.task.trains_base:
            for parameter in model.trunk_parameters():
                parameter.requires_grad_()

    def _build(self, model: TrackingModel, splits: ClipSplits, options: TrackingConfig) -> None:
        super().__init__()
        self.model, self.splits, self.options = model, splits, options
        self.seed, self._still = 0, False
        self._scores: dict[str, TrackingScores] = {}

    @classmethod
    def of_model(cls, model: Any, config: RunConfig) -> Task:
        """Return the task that evaluates a saved tracker, used as it is, on the clips that `config` names."""
        if not isinstance(model, TrackingModel):
            return super().of_model(model, config)
        task = cls.__new__(cls)
        task._build(model, read_data(config.data, "clips"), config.task)
        return task

    @classmethod
    def references(cls, config: RunConfig) -> Mapping[str, Sequence[str]]:
        """Return what adapters are measured against: the head alone on the frozen trunk; or all of it trained."""
        return {"none": (), "full": ("task.trains_base=true",)}

    def stages(self) -> list[Stage]:
        """Return one stage over pairs of training clips.

        Raises:
            UserError: the data has no training clips.
        """
        if not self.splits.sources:
            raise UserError(f"data '{self.splits.train.name}' has no clips to train on: take its training split.")
        options, embedding = self.options, self.model.embedding
        pairs = PairSource(self.splits.sources, self.splits.weights, options.gap)
        samples = PairSamples(
            pairs,
            self.model.cropping,
            (embedding.search, embedding.template),
            self.model.preprocess,
            jitter=options.jitter,
            augmentation=options.augmentation,
            length=options.pairs,
            templates=options.templates,
            seed=self.seed,
        )
        return [Stage("track", samples)]

    def begin_training(self) -> None:
        """Remember which base weights train: the artefact must hold them."""
        self.model.note_training()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return LoRAT's two groups: no decay for vectors and for whatever is called an embedding."""
        groups = super().parameter_groups()
        kept = {id(p) for name, p in self.named_parameters() if p.ndim < 2 or "embed" in name}
        split = []
        for group in groups:
            decayed, others = ([p for p in group["params"] if (id(p) in kept) == to] for to in (False, True))
            split += [{**group, "params": decayed}, {**group, "params": others, "weight_decay": 0.0}]
        return [group for group in split if group["params"]]

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses of a batch of :class:`.samples.PairSamples`."""
        found = self.model(batch["z"], batch["x"], batch["mask"])
        return tracking_losses(found, batch["box"], batch["positives"], self.options.labels)

    def eval_sets(self, split: Literal["val", "test"]) -> EvalSets:
        """Return the clips of a split."""
        tests = {f"test/{name}": clips for name, clips in self.splits.tests.items()}
        sets = tests if split == "test" else {"val": self.splits.val} if len(self.splits.val) else {}
        return {name: EvalSet(ClipData(clips), _as_listed, self.options.test_batch) for name, clips in sets.items()}

    def eval_step(self, batch: Batch) -> Outputs:
        """Follow the targets of some clips side by side: a row of boxes (L, 4) xywh for each."""
        clips: list[Clip] = batch["clips"]
        boxes = [still(clip) for clip in clips] if self._still else follow_clips(self.model, clips)
        return {"boxes": [torch.from_numpy(each) for each in boxes]}

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        """Compute means over clips under the convention ``pytracking-all``."""
        clips = self.splits.val if set_name == "val" else self.splits.tests[set_name.removeprefix("test/")]
        self._scores[set_name] = score_clips(clips, [boxes.numpy() for boxes in outputs["boxes"]])
        return dict(self._scores[set_name].overall.values)

    def write_details(self, folder: Path, outputs: Mapping[str, Outputs]) -> None:
        """Write what the report shows of the test sets, see :mod:`.details`."""
        names = [name for name in outputs if name.startswith("test/")]
        tests = {name.removeprefix("test/"): name for name in names}
        write_details(
            folder,
            {short: self.splits.tests[short] for short in tests},
            {short: self._scores[name] for short, name in tests.items()},
            {short: [boxes.numpy() for boxes in outputs[name]["boxes"]] for short, name in tests.items()},
        )

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Leave the first box where it is inside the block."""
        self._still = True
        try:
            yield
        finally:
            self._still = False

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Save the tracker as an artefact folder."""
        self.model.save(folder, record)

    def data_summary(self) -> list[str]:
        """Return how many clips each split has."""
        tests = ", ".join(f"{name} {len(clips):,}" for name, clips in self.splits.tests.items())
        train = ", ".join(f"{clips.name} {len(clips):,}" for clips in self.splits.sources)
        return [f"clips: train {train or 'none'}; val {len(self.splits.val):,}; test {tests or 'none'}"]

    def describe(self) -> dict[str, Any]:
        """Return base, hashes of the sets and trainable parameters."""
        backbone = self.model.backbone
        return {
            "backbone": backbone.spec | {"fingerprint": self.model.fingerprint},
            "train_hashes": {clips.name: clips.hash for clips in self.splits.sources},
            "test_hashes": {name: clips.hash for name, clips in self.splits.tests.items()},
            "trainable_parameters": count(p for p in self.parameters() if p.requires_grad),
        }


class ClipData(Dataset):
    """The clips of a set, one by one."""

    def __init__(self, clips: ClipSet) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int | tuple[int, int]) -> Clip:
        return self.clips[item[1] if isinstance(item, tuple) else item]


def _as_listed(clips: list[Clip]) -> Batch:
    return {"clips": clips}


def _adapted_backbone(config: RunConfig) -> torch.nn.Module:
    """Load the frozen backbone and attach the adapter that a run names.

    Raises:
        UserError: an initialiser without adapter, or one that looks at gradients; an adapter beside the trunk.
    """
    backbone = load_backbone(**config.backbone.arguments).requires_grad_(False)
    starting: dict[str, Any] = {}
    if config.initializer is not None:
        if config.adapter is None:
            raise UserError("initializer: there is no adapter to start: add an `adapter`, or leave it out.")
        starting["initializer"] = config.initializer.for_training(config.engine.lr, config.engine.warmup_steps)
        if isinstance(starting["initializer"], GradientInitializer):
            raise UserError(
                f"initializer '{config.initializer.type}' looks at gradients of the task before there is a head to "
                "have some: take truncated_normal, or leave it out."
            )
    if config.adapter is None:
        return backbone
    model = attach_section(backbone, config.adapter, **starting)
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    if any(backbone.tower_of(name) == "text" for name in trained):
        raise UserError(
            "the adapter sits on the text tower too, which nothing here trains: set adapter.towers=[vision]."
        )
    return model
