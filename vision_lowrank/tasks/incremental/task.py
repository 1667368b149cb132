"""Class-incremental learning: sessions of new classes as stages of the one engine.

A run goes through sessions t = 0…T (:mod:`vision_lowrank.data.sessions`), each a stage, ``base`` and ``session-t``:

1. rows of the new classes are set: to the class means of the features h of their training pictures, to embeddings of
   their prompts, or left at random (``head``);
2. it trains: in the base session adapter and head, from epoch e_ft on also base weights (:mod:`.unfreeze`); in later
   ones what ``incremental_trains`` names, or nothing (``incremental_epochs: 0``). The losses are cross-entropy over the
   rows of all classes, unseen ones too, and what the frozen models of :mod:`.guides` add;
3. the test pictures of all classes seen so far are classified among them, and the counts kept (:mod:`.record`).

Test pictures decide nothing, unless ``select: best_on_test`` asks to reproduce papers that let them. The untrained
model that every metric is reported beside is *prototype only*: class means of the pretrained model's features.

Paper: CoACT, arXiv 2405.16625. Its code steps the cosine once per epoch, here it is once per step; and it carries the
momentum of SGD from session to session, here each session starts with none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from ...attachment.parameters import Parameters, adapter_parameters, encoder_parameters
from ...attachment.phases import begin_phase, phases
from ...backbones.adapted import backbone_of
from ...config.schema import RunConfig
from ...data.augmentation import training_transform
from ...data.base import ImageSet, Splits, joined
from ...data.loading import TransformedImages
from ...data.sessions import Session, make_sessions
from ...engine.keep import Best, Last
from ...engine.task import Batch, Outputs, Series, Stage, count
from ...errors import UserError
from ...metrics.incremental import SessionMatrix, incremental_metrics
from ...registry import register
from ..classification.base import ClassificationTask, load_frozen, load_splits, with_adapter
from ..classification.classifier import ImageClassifier
from ..classification.heads import text_rows
from ..classification.prototypes import PrototypeHead
from ..classification.reference import FILE, PER_CLASS, picture_features, reference_of
from ..classification.views import training_images
from ..saved import add_parts
from .config import IncrementalConfig
from .guides import Guides
from .record import SessionRecord
from .unfreeze import PartName, SessionParameters

ROWS, SEEN, TEST_AS_VAL = "new classes", "seen classes", "test-as-val"
BASE = "base"
SESSION_SEEDS = 4096  # keeps the augmentations of one session apart from those of another


@register(
    "task", "incremental", summary="classes that come session after session, few pictures each; CoACT",
    paper="arXiv 2405.16625", config=IncrementalConfig,
)  # fmt: skip
class Incremental(ClassificationTask):
    """An :class:`ImageClassifier` with a prototype head that learns new classes session after session."""

    headline = "incremental/last_accuracy"
    columns = (
        *("incremental/last_accuracy", "incremental/average_accuracy", "incremental/base_accuracy"),
        *("incremental/new_accuracy", "incremental/harmonic_mean", "incremental/performance_drop"),
        "incremental/forgetting",
    )
    series = Series("session/{}/accuracy", "accuracy after every session")
    baseline = "prototype only"
    shares = ("protocol.", "mask_unseen", "cosine")
    about = (
        "After every session the test pictures of all classes seen so far are classified among them; base and new are "
        "the accuracies on the base classes and on all later ones after the last session."
    )

    @classmethod
    def references(cls, config: RunConfig) -> Mapping[str, Sequence[str]]:
        """Return what adapters are measured against; none is class means of the untrained model's features."""
        options: IncrementalConfig = config.task
        still = ("task.epochs=0", "task.incremental_epochs=0", "engine.steps=0")
        plain = ("task.contrastive=0", "task.cit_variant=none")
        later = f"task.incremental_epochs={options.incremental_epochs or options.epochs or 1}"
        unfrozen = ("task.l_ft=-1", "task.encoder_lr_factor=0.1")
        return {
            "none": (*still, *plain, "task.head=prototype", "task.incremental_trains=[classifier]"),
            "zero_shot": (*still, *plain, "task.head=text", "task.incremental_trains=[classifier]"),
            "linear_probe": (*plain, later, "task.head=linear", "task.incremental_trains=[classifier]"),
            "full": (*plain, *unfrozen, "task.incremental_trains=[classifier, encoder]"),
        }

    def __init__(self, config: RunConfig, seed: int) -> None:
        options: IncrementalConfig = config.task
        data = load_splits(config)
        sessions = make_sessions(data, options.protocol, seed)
        train, test = (
            joined([session.train for session in sessions.sessions]),
            sessions.seen_test(len(sessions.sessions) - 1),
        )
        name, templates = options.protocol.test or next(iter(data.tests)), options.templates or data.templates
        head = "cosine_prototype" if options.cosine else "prototype"
        backbone = load_frozen(config, "text" if options.head == "text" else head)
        moved = set(encoder_parameters(backbone, options.l_ft))  # by their names without an adapter
        model = with_adapter(config, backbone, head, sessions.sessions[0].train, templates)
        splits = Splits(train=train, val=test.subset([]), tests={name: test}, templates=templates)
        super().__init__(ImageClassifier(model, head, train.classes, templates), splits, None)
        self.config, self.options, self.seed, self.sessions = config, options, seed, sessions
        self.head: PrototypeHead = self.model.head
        self.head.mask_unseen = options.mask_unseen
        self.parts = SessionParameters.of(model, self.head, options.l_ft)
        if any(backbone_of(model).tower_of(name) == "text" for name in self.parts.pet):
            raise UserError(
                "the adapter sits on the text tower too, which no session trains: set adapter.towers=[vision]."
            )
        self.guides = Guides(options, model.embed_dim)
        self.record = SessionRecord(sessions.sizes, [len(members) for members in test.by_class()])
        self.register_buffer("text_scale", torch.zeros(()))
        self._moved = moved
        self._phases = phases(model)
        self._stage, self._session, self._untrained = "", sessions.sessions[-1], False
        self._matrix: SessionMatrix | None = None

    @classmethod
    def splits_of(cls, config: RunConfig, classes: Sequence[str]) -> Splits:
        """Load the data set with the classes that a classifier knows, in its order: sessions have one of their own."""
        splits = load_splits(config)
        return _in_order(splits, classes) if set(classes) <= set(splits.train.classes) else splits

    def stages(self) -> list[Stage]:
        """Return ``base``, in as many parts as the adapter has phases, and ``session-1`` … ``session-T``."""
        options, engine = self.options, self.config.engine
        base, *later = self.sessions.sessions
        length = {} if options.epochs is None else {"steps": options.epochs * self._epoch(base)}
        rules = {"last": Last(), "val": Best("val/accuracy"), "best_on_test": Best(f"{TEST_AS_VAL}/accuracy")}
        keep = rules[options.select]
        if options.select != "last" and not engine.eval_every:
            length["eval_every"] = self._epoch(base)
        stages = [Stage(name, self._images(base), length | self._phases[phase], keep) for name, phase in self._base]
        constant = {"lr": engine.lr * options.incremental_lr_factor, "schedule": "constant", "warmup_steps": 0}
        for session in later:
            steps = options.incremental_epochs * self._epoch(session)
            stages.append(Stage(f"session-{session.number}", self._images(session), constant | {"steps": steps}))
        return stages

    def begin_stage(self, stage: Stage) -> None:
        """Take the frozen copies that the session needs, and let its parts train."""
        options, base, model = self.options, dict(self._base), self.model.backbone
        self._stage = stage.name
        self._session = self.sessions.sessions[0 if stage.name in base else int(stage.name.rpartition("-")[2])]
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()  # a frozen copy and an artefact hold no running statistics
        self.parts.train(*(("pet", "classifier") if stage.name in base else ()))
        begin_phase(model, base.get(stage.name, self._base[-1][1]))
        if stage.name in base:
            self.parts = replace(self.parts, pet=adapter_parameters(model))  # a phase may bring others
        else:
            self.parts.train(*(options.incremental_trains if options.incremental_epochs else ()))
        before = range(self._session.classes[0])
        self.head.seen.zero_()  # a step to measure costs may have begun another session
        self.head.see(before)
        self.guides.begin(self._session.number, self.parts, self._later_moves, self.head)
        self.head.see(self._session.classes)

    def begin_training(self) -> None:
        """Remember which base weights train: the artefact must hold them."""
        if self._fine_tunes:
            self.model.trained_base |= self._moved

    def set_progress(self, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Let the encoder join at epoch e_ft, in the base session."""
        if self._stage == self._base[-1][0]:
            joins = step >= self.options.e_ft * self._epoch(self._session)
            for parameter in self.parts.encoder.values():
                parameter.requires_grad_(joins)

    def after_step(self, step: int) -> None:
        """Let the teacher follow the student."""
        self.guides.update(self.model.backbone)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups in which the encoder's weights have their own, with its own rate, from before they train."""
        groups, options = super().parameter_groups(), self.options
        if self._stage == self._base[-1][0]:
            return self.parts.groups(groups, self.config.engine.lr, options.encoder_lr_factor)
        if options.incremental_epochs and "encoder" in options.incremental_trains:
            lr = self.config.engine.lr * options.incremental_lr_factor
            return self.parts.groups(groups, lr, options.encoder_lr_factor)
        return groups

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        It has image (B, 3, H, W), or (B, 2, 3, H, W) where views are contrasted, and label (B,).
        """
        image, labels = batch["image"], batch["label"]
        views = image.unbind(1) if image.dim() == 5 else (image,)
        model = self.model.backbone
        features = model.encode_image(views[0])
        logits = self.head.logits(features)
        losses = {"cross_entropy": F.cross_entropy(logits, labels)}
        losses |= self.guides.losses(self._session.number, model, views, features, logits, labels)
        accuracy = (logits.detach().argmax(dim=-1) == labels).float().mean()
        return {"loss": torch.stack(list(losses.values())).sum(), **losses, "accuracy": accuracy}

    def fit_sets(self, place: Literal["untrained", "start", "end"]) -> Mapping[str, Dataset]:
        """Return pictures of new classes for their rows before a session, test pictures of all seen classes after."""
        base, session = [name for name, _ in self._base], self._session
        if place == "untrained":
            images = {ROWS: self.splits.train}
        elif place == "start":
            first = self._stage not in base[1:] and self.options.head != "linear"
            images = {ROWS: session.train} if first else {}
        else:
            images = {} if self._stage in base[:-1] else {SEEN: self.sessions.seen_test(session.number)}
        transform = self.model.backbone.preprocess.evaluation()
        return {name: TransformedImages(each, transform) for name, each in images.items()}

    def fit_outputs(self, name: str, outputs: Outputs) -> None:
        """Set the rows of new classes, or count right answers."""
        if name == SEEN:
            self.record.add(self._session.number, outputs["logits"], outputs["label"])
        elif self._untrained or self.options.head == "prototype":
            self.head.set_prototypes(outputs["features"], outputs["label"])
        else:
            model, classes = self.model.backbone, self._session.classes
            if not self._session.number:  # logits then are about as large as zero-shot's
                self.text_scale.fill_(float(model.logit_scale) / outputs["features"].norm(dim=1).mean())
            names = [self.model.classes[label] for label in classes]
            self.head.set_rows(classes, text_rows(model, names, self.model.templates, float(self.text_scale)))

    def image_sets(self, split: Literal["val", "test"]) -> dict[str, ImageSet]:
        """Return test pictures of all classes; validation pictures of the classes seen so far, where there are some."""
        if split == "test":
            return super().image_sets(split)
        if self.options.select == "best_on_test":
            return {TEST_AS_VAL: self.sessions.seen_test(self._session.number)}
        seen = [session.val for session in self.sessions.sessions[: self._session.number + 1] if session.val]
        return {"val": joined(seen)} if seen else {}

    def begin_eval(self, set_name: str) -> None:
        """Ask for features of the pictures that set rows, and for logits of all others."""
        super().begin_eval(set_name)
        self._rows = set_name == ROWS

    def eval_step(self, batch: Batch) -> Outputs:
        """Return features (B, d) and labels for rows; else logits (B, C), labels (B,) and indices (B,)."""
        if self._rows:
            return {"features": self.model.backbone.encode_image(batch["image"]), "label": batch["label"]}
        return super().eval_step(batch)

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        """Compute every classifier's metrics, on all classes after the last session."""
        if set_name.startswith("test/"):
            record = self.record
            if self._untrained:  # rows that never change: one evaluation tells what every session would have given
                record = SessionRecord(record.sizes, record.totals)
                record.add_all(outputs["logits"], outputs["label"])
            self._matrix = record.matrix() if record.done else None
        return super().metrics(set_name, outputs)

    def summary(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Compute ``session/t/accuracy`` and ``incremental/NAME``: see :mod:`vision_lowrank.metrics.incremental`."""
        if self._matrix is None or not any(name.startswith("test/") for name in metrics):
            return {}
        found = incremental_metrics(self._matrix)
        each = {name: value for name, value in found.items() if name.startswith("session/")}
        shown = {name: value for name, value in each.items() if name.endswith("/accuracy")}
        return shown | {f"incremental/{name}": value for name, value in found.items() if name not in each}

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Turn the adapter off for a block, in which the pictures of all sessions set the rows of a head of its own."""
        kept = {name: tensor.clone() for name, tensor in self.head.state_dict().items()}
        self._untrained = True
        try:
            with super().untrained():
                yield
        finally:
            self._untrained = False
            self.head.load_state_dict(kept)

    def trained_state(self) -> dict[str, Tensor]:
        """Return all that some session may change, whether it trains just now or not."""
        movable = {id(p) for p in (*self.parts.pet.values(), *self.parts.encoder.values())}
        moving = {name: p.detach() for name, p in self.named_parameters() if id(p) in movable}
        return super().trained_state() | moving | {"text_scale": self.text_scale}

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Save the classifier as an artefact folder, with features of some training pictures for later classes."""
        super().save_artefact(folder, record)
        members = [index for each in self.splits.train.by_class() for index in each[:PER_CLASS]]
        images = self.splits.train.subset(members)
        features = picture_features(self.model.backbone, images)
        add_parts(folder, {FILE: reference_of(features, torch.tensor(images.labels))})

    def describe(self) -> dict[str, Any]:
        """Return the base class's facts, the sessions with what was drawn, and the counts of every session."""
        parts = {name: count(getattr(self.parts, name).values()) for name in self._trains}
        facts = {
            "trainable_parameters": sum(parts.values()),
            "train_images": len(self.splits.train),
            "train_hash": self.splits.train.hash,
            "trains": parts,
            **self.sessions.facts(),
        }
        matrix = {"matrix": self.record.matrix().as_json()} if self.record.done else {}
        return super().describe() | facts | {"incremental": {**matrix, "classes": list(self.model.classes)}}

    @property
    def _base(self) -> list[tuple[str, str]]:
        """Stages of the base session with the adapter's phases."""
        several = len(self._phases) > 1
        return [(f"{BASE}-{phase}" if several else BASE, phase) for phase in self._phases]

    @property
    def _trains(self) -> set[PartName]:
        """What trains at some time."""
        options = self.options
        found: set[PartName] = set(options.incremental_trains) if options.incremental_epochs else set()
        if options.epochs or (options.epochs is None and self.config.engine.steps):
            found |= {"pet", "classifier"}
            base = self.sessions.sessions[0]
            steps = self.config.engine.steps if options.epochs is None else options.epochs * self._epoch(base)
            found |= {"encoder"} if options.e_ft * self._epoch(base) < steps else set()
        return {name for name in found if getattr(self.parts, name)}

    @property
    def _fine_tunes(self) -> bool:
        return "encoder" in self._trains

    @property
    def _later_moves(self) -> Parameters:
        """Parameters of the backbone that the later sessions train."""
        names = self.options.incremental_trains
        return (self.parts.pet if "pet" in names else {}) | (self.parts.encoder if "encoder" in names else {})

    def _epoch(self, session: Session) -> int:
        """Count the steps of one epoch."""
        return math.ceil(len(session.train) / self.config.engine.batch_size)

    def _images(self, session: Session) -> Dataset:
        """Return training pictures, in two views where they are contrasted."""
        options = self.options
        preprocess = self.model.backbone.preprocess
        contrasts = options.contrastive and (not session.number or options.guided)
        return training_images(
            session.train,
            training_transform(preprocess, options.augmentation, options.crop, options.flip),
            self.seed + SESSION_SEEDS * session.number,
            views=2 if contrasts else 1,
        )


def _in_order(splits: Splits, classes: Sequence[str]) -> Splits:
    """Return the sets of all splits with `classes`, in that order."""

    def of(images: ImageSet) -> ImageSet:
        return images.of_classes([images.classes.index(name) for name in classes])

    tests = {name: of(images) for name, images in splits.tests.items()}
    return replace(splits, train=of(splits.train), val=of(splits.val), tests=tests, retention={})
