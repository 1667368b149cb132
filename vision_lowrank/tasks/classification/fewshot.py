"""Few-shot classification: K labelled pictures per class, a frozen backbone, an adapter or a head that trains.

The protocol is that of CLIP-LoRA (arXiv 2405.18541): class prompts are encoded by the adapted text tower at every
step, logits are scaled cosine similarities, the loss is cross-entropy, the last state is kept. Every metric is
reported beside the untrained model's, on the test sets and on the *retention* sets (what the model could do before).

Training pictures are cropped and flipped, or augmented further (:mod:`vision_lowrank.data.augmentation`), and may be
mixed (:mod:`vision_lowrank.data.mixing`); test pictures never are.

Further protocols: ``protocol: base_to_novel`` trains and tests on the first half of the classes and recognises the
other half by its prompts (:mod:`vision_lowrank.data.protocols`); ``transfer`` lists other data sets, or other domains,
whose test pictures the trained model must recognise by the prompts of their own classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...attachment.phases import begin_phase, phases
from ...backbones.adapted import backbone_of
from ...backbones.prefix_cache import PrefixCache
from ...config import to_tree
from ...config.marks import OfKind
from ...config.schema import RunConfig, Section
from ...data.augmentation import Augmentation, training_transform
from ...data.base import ImageSet, Splits
from ...data.loading import TransformedImages
from ...data.options import AreaRange, Templates
from ...data.protocols import base_to_novel, with_transfer
from ...data.samplers import draw_shots
from ...engine.keep import Best, Last
from ...engine.task import Batch, Stage
from ...errors import UserError
from ...metrics.classification import harmonic_mean
from ...registry import register
from ...regularizers.base import Observed
from ...selection.final import unshare
from .base import ClassificationTask, load_adapted, load_splits, starting
from .classifier import ImageClassifier
from .heads import TextHead
from .pretrained import PROBE, PretrainedClassifier
from .views import rows, training_images

SEARCH = "search"
DataSection = Annotated[Any, OfKind("data")]


class FewShotConfig(Section):
    """Options of ``task: {type: fewshot}``."""

    takes_regularizer: ClassVar[bool] = True
    takes_selection: ClassVar[bool] = True

    type: Literal["fewshot"] = "fewshot"
    shots: int | None = Field(4, ge=1, description="training pictures per class; null = all")
    sampler: Literal["coop", "clip_lora"] = Field("coop", description="whose few-shot draw a seed reproduces")
    allow_fewer: bool = Field(False, description="accept classes with fewer pictures than shots, as the sampler does")
    head: Literal["text", "linear", "cosine"] = Field(
        "text", description="text prompts (two-tower models), a linear layer or cosine prototypes"
    )
    templates: Templates | None = Field(None, description="prompt templates instead of the data set's own")
    crop: AreaRange = Field((0.08, 1.0), description="area range of the random crop in training")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip in training")
    augmentation: Augmentation = Field(
        "basic", description="what comes on top of crop and flip; `none` has neither: pictures as in evaluation"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of Mixup; 0 = none, 0.2 is light, 0.8 heavy")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix, usually 1; 0 = none; with Mixup, one or the other")
    protocol: Literal["all", "base_to_novel"] = Field("all", description="train and test all classes, or halves")
    transfer: tuple[DataSection, ...] = Field(
        (), description="data sections whose tests are recognised by prompts alone"
    )
    select: bool = Field(False, description="keep the best state on the validation pictures instead of the last")
    steps_per_shot: int | None = Field(
        None, ge=1, description="train for this many steps per shot (CLIP-LoRA: 500) instead of engine.steps"
    )
    views: int = Field(
        1, ge=1, le=16, description="random views of each picture in a batch; a contrastive term wants 2"
    )
    probe_steps: int | None = Field(
        None, ge=1, description="steps of the `probe` stage, where there is one; null = as many as the stages after it"
    )

    @model_validator(mode="after")
    def _steps_per_shot_has_shots(self) -> FewShotConfig:
        if self.steps_per_shot and not self.shots:
            raise ValueError("steps_per_shot needs a number of shots: set task.shots, or engine.steps instead")
        return self


@register(
    "task", "fewshot", summary="K labelled pictures per class: adapter, head or both", paper="arXiv 2405.18541",
    config=FewShotConfig,
)  # fmt: skip
class FewShot(ClassificationTask):
    """Few-shot training and evaluation of an :class:`ImageClassifier`."""

    shares = ("shots", "protocol", "transfer")

    @classmethod
    def references(cls, config: RunConfig) -> Mapping[str, Sequence[str]]:
        """Return what adapters are measured against; without an adapter a text head has nothing to train."""
        still = ("engine.steps=0", "task.steps_per_shot=null")
        towers = "null" if config.task.head == "text" else "[vision]"
        every_block = f"rule={{type: lisa, blocks: null, state: keep, towers: {towers}}}"
        return {
            "none": still if config.task.head == "text" else (),
            "zero_shot": ("task.head=text", *still),
            "linear_probe": ("task.head=linear", "engine.lr=1e-2"),
            "full": (every_block, "engine.lr=1e-4"),
        }

    @classmethod
    def baseline_identity(cls, config: RunConfig) -> Any:
        """Name what the baseline depends on: with a text head not on the shots.

        Class prompts depend on no training pictures.
        """
        if config.task.head != "text":
            return None
        tree = to_tree(config)
        return [tree["backbone"], tree["data"], {**tree["task"], "shots": None}]

    def __init__(self, config: RunConfig, seed: int) -> None:
        options: FewShotConfig = config.task
        splits = load_splits(config)
        train, val = draw_shots(splits, options.shots, seed, options.sampler, allow_fewer=options.allow_fewer)
        if options.head != "text" and (options.protocol == "base_to_novel" or options.transfer):
            raise UserError(f"task.head={options.head} knows its own classes only: novel ones need task.head=text.")
        if options.protocol == "base_to_novel":
            splits, train, val = base_to_novel(splits, train, val)
        splits = with_transfer(splits, options.transfer)
        templates = options.templates or splits.templates
        model = load_adapted(config, options.head, train, templates)
        super().__init__(ImageClassifier(model, options.head, splits.train.classes, templates), splits, val)
        self.config, self.options, self.seed, self.train_images = config, options, seed, train
        self.gates = config.selection.gates(model) if config.selection else None
        self._placed = config.selection is None
        self.regularizer: Any = config.regularizer.start() if config.regularizer else None
        self._asks = config.regularizer.teacher if config.regularizer else None
        self._teacher = PretrainedClassifier(self.model)
        self._probing = False
        self._held: list[nn.Parameter] = []
        self._pictures: PrefixCache | None = None  # where every step sees a picture with the same pixels

    @classmethod
    def splits_of(cls, config: RunConfig, classes: Sequence[str]) -> Splits:
        """Load the data set, halved where the protocol says so, and what is transferred to."""
        splits = load_splits(config)
        if config.task.protocol == "base_to_novel":
            splits, _, _ = base_to_novel(splits, splits.train, None)
        return with_transfer(splits, config.task.transfer)

    def stages(self) -> list[Stage]:
        """Return one stage for each phase of the adapter, on the few-shot pictures, augmented and mixed.

        There is none where nothing can train and ``engine.steps`` is 0, which makes this zero-shot classification.
        Where a regulariser asks for the pretrained model's logits and the head is not there yet, the stage ``probe``
        comes first: it trains the head alone. A selection has the stage ``search`` before the others.
        """
        options, selection = self.options, self.config.selection
        trains = any(parameter.requires_grad for parameter in self.parameters())
        if not (self.config.engine.steps or options.steps_per_shot or trains):
            return []
        preprocess, regularizer = self.model.backbone.preprocess, self.config.regularizer
        images = partial(
            training_images,
            transform=training_transform(preprocess, options.augmentation, options.crop, options.flip),
            seed=self.seed,
            views=options.views,
            mixup=options.mixup,
            cutmix=options.cutmix,
            mixed=1 if regularizer and regularizer.wants_unmixed else options.views,
        )
        data = images(self.train_images)
        length = {"steps": options.steps_per_shot * options.shots} if options.steps_per_shot and options.shots else {}
        before = []
        if self._asks == "logits" and options.head != "text":
            probing = {"steps": options.probe_steps} if options.probe_steps else length
            before.append(Stage(PROBE, data, probing, prepares=True))
        if selection:
            inner, _ = self.search_images
            before.append(Stage(SEARCH, images(inner), {"steps": selection.steps}, steps=selection.search))
        keep = Best("val/accuracy") if options.select else Last()
        stages = phases(self.model.backbone).items()
        return before + [Stage(phase, data, length | settings, keep) for phase, settings in stages]

    @cached_property
    def search_images(self) -> tuple[ImageSet, ImageSet]:
        """The training pictures as a search takes them: to train on, and held out."""
        return self.config.selection.split(self.train_images, self.seed)

    def selection_data(self) -> TransformedImages:
        """Return the pictures held out for a search, as they are evaluated."""
        _, held_out = self.search_images
        return TransformedImages(held_out, self.model.backbone.preprocess.evaluation())

    def begin_stage(self, stage: Stage) -> None:
        """Get the adapter ready for its phase, or hold it while the head trains alone."""
        model, after_probe = self.model.backbone, self._probing
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held, self._probing = [], stage.name == PROBE
        if self._probing:
            self._held = [parameter for parameter in model.parameters() if parameter.requires_grad]
            model.requires_grad_(False)
            return
        if stage.name == SEARCH:
            return
        if not self._placed:
            self._place_adapter()
        begin_phase(self.model.backbone, stage.name)
        if self._asks and (after_probe or self._teacher.head is None):
            self._teacher.keep_head()

    def _place_adapter(self) -> None:
        """Let a new adapter take the place of the search's, where the gates say."""
        config, model = self.config, self.model.backbone
        templates = self.model.templates
        start = starting(config, backbone_of(model), self.options.head, self.train_images, templates)
        section = config.adapter
        model = config.selection.final_model(model, self.gates, section.config(), towers=section.towers, **start)
        self.replace_model(model)
        self._placed = True

    def begin_training(self) -> None:
        """Find out whether the text tower trains; if not, the prompts are encoded only once.

        Raises:
            UserError: nothing trains.
        """
        super().begin_training()
        if not any(p.requires_grad for p in self.parameters()):
            raise UserError(
                "nothing trains: give an `adapter`, set task.head=linear or cosine, or use task.type=zeroshot."
            )
        self._text_trains = "text" in self.model.backbone.trained_towers()
        if not self._text_trains:
            self.model.freeze_text()
        elif isinstance(self.model.head, TextHead):
            prefix = PrefixCache(self.model.backbone, "text")
            self.model.head.prefix = prefix if prefix.depth else None
        options = self.options
        if options.augmentation == "none" and options.views == 1 and not (options.mixup or options.cutmix):
            self._pictures = PrefixCache(self.model.backbone, "vision")
        if self._asks:
            self._teacher.check_base()

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the cross-entropy of a batch: image (B, 3, H, W), or (B, V, 3, H, W) with several views.

        Labels are (B,), or where pictures were mixed weights (B, C), (B, V, C); accuracy is then that of the heaviest.
        """
        if self._text_trains:  # an evaluation may have encoded the prompts
            self.model.unfreeze_text()
        model, teacher = self.model.backbone, self._teacher
        pixels, labels = rows(batch)
        if self._probing:
            features = teacher.features(pixels)
        else:
            with self._pictures.using(batch["index"].tolist()) if self._pictures else nullcontext():
                features = model.encode_image(pixels)
        logits = self.model.head(model, features)
        if self.regularizer is not None and self._placed and not self._probing:
            answers = partial(teacher.logits, pixels), partial(teacher.features, pixels)
            self.regularizer.observe(Observed(logits, features, labels, self.model.scale, *answers))
        loss = F.cross_entropy(logits, labels)
        classes = labels if labels.dim() == 1 else labels.argmax(dim=-1)
        return {"loss": loss, "accuracy": (logits.detach().argmax(dim=-1) == classes).float().mean()}

    def summary(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Compute ``harmonic_mean/NAME/accuracy`` of base and novel accuracy of each test set, for base-to-novel."""
        pairs = {name: (f"test/{name}/accuracy", f"transfer/novel-{name}/accuracy") for name in self.splits.tests}
        return {
            f"harmonic_mean/{name}/accuracy": harmonic_mean(metrics[base], metrics[novel])
            for name, (base, novel) in pairs.items()
            if base in metrics and novel in metrics
        }

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Save the classifier as an artefact folder; pairs that a selection shared become each layer's own."""
        unshare(self.model.backbone)
        super().save_artefact(folder, record)

    def data_summary(self) -> list[str]:
        """Return the base class's lines, and how many pictures were drawn."""
        classes, counts, *notes = super().data_summary()
        drawn = f"{counts} (of train, {len(self.train_images):,} drawn: {self.options.shots} per class)"
        return [classes, drawn, *notes]

    def describe(self) -> dict[str, Any]:
        """Return the base class's facts, which pictures were drawn, and where a selection put the adapter."""
        facts = {
            "sampler": self.options.sampler,
            "shots": self.options.shots,
            "train_images": len(self.train_images),
            "train_hash": self.train_images.hash,
            "train_keys": list(self.train_images.keys),
        }
        if self.gates is not None:
            facts["gates"] = self.gates.facts()
        return super().describe() | facts
