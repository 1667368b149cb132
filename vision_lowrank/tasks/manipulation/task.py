"""Image manipulation: say whether a picture was edited, where, by which visible signs, and why.

ManipShield (arXiv 2511.14259) as stages of the one engine; all but the outline is reconstructed:

=================  ====================================================================================================
``contrast``       A: a contrastive loss on pairs of a picture and its edit trains the adapter of the vision tower
``layers``         B: validation pictures show at which layer real and edited ones differ most; nothing trains
``decoders``       C: detection, cues, boxes and token map learn on that layer's states, the adapter at a lower rate
``explanation``    D: a second adapter, on the language model, learns to explain what the heads found
=================  ====================================================================================================

A plain vision transformer takes the same way without D; its "layers" are its blocks. After C validation pictures give
temperature, thresholds and levels (:mod:`.levels`). Test pictures decide nothing.

A sample of training holds a picture and one of its edits, so ``engine.batch_size`` counts pairs. The untrained model
that every metric is reported beside is that of :mod:`.untrained`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...attachment.parameters import Parameters, adapter_parameters
from ...attachment.phases import begin_phase, phases
from ...backbones.adapted import without_adapter
from ...config.schema import RunConfig
from ...data.manipulation.augmentation import augmentation
from ...data.manipulation.base import REAL, ManipulationSet
from ...data.manipulation.sampling import draws_of
from ...engine.keep import Best, Last
from ...engine.task import Batch, Outputs, Stage, count
from ...files import write_text
from ...metrics.calibration import Calibration
from ...modes import preserved
from ...registry import register
from .building import build_model, load_manipulation, tower_width
from .config import ContrastOptions, ManipulationConfig
from .contrast import contrast_diagnostics, contrastive_loss, projector
from .decoders import Decoded
from .evaluation import ManipulationEvaluation
from .explainer import activate_explainer, answer_loss, deactivate_explainer, explained
from .frames import tiles_of, whole_pictures
from .gallery import write_gallery
from .layer_discrimination import LayerTerms, choose_layer
from .levels import TRUTH, levels
from .losses import Targets, decoder_losses
from .picture_sets import check_pictures, drawn_twins, sample_evenly, share_of_reals, twins_of
from .pictures import DrawnPictures, Pictures
from .scoring import details, write_pictures
from .untrained import Untrained

CONTRAST, LAYERS, DECODERS, EXPLANATION = "contrast", "layers", "decoders", "explanation"
CALIBRATION = "calibration"  # what validation pictures are looked at for
PROBED = 1000  # most pictures that a probe is fitted on


@register(
    "task", "manipulation", summary="whether, where and how a picture was edited; ManipShield",
    paper="arXiv 2511.14259", config=ManipulationConfig,
)  # fmt: skip
class Manipulation(ManipulationEvaluation):
    """A :class:`ManipulationModel` and the stages that train it."""

    @classmethod
    def references(cls, config: RunConfig) -> Mapping[str, Sequence[str]]:
        """Return what adapters are measured against: decoders, or a linear one, on the frozen tower; or all trained."""
        frozen = ("task.contrast=null", "task.layer=last")
        return {
            "none": frozen,
            "linear_probe": (*frozen, "task.decoder=linear"),
            "full": (*frozen, "task.trains_base=true"),
        }

    def __init__(self, config: RunConfig, seed: int) -> None:
        options: ManipulationConfig = config.task
        splits = load_manipulation(config)
        built, parts = build_model(config, splits)
        super().__init__(built, splits, options)
        self.config, self.seed, self.parts = config, seed, parts
        model = self.model.backbone
        self.draws = draws_of(self.splits.train, seed)
        check_pictures(options, self.splits.val, self.draws)
        self.explained = explained(self.splits.train) if options.explanation else None
        self.projector = projector(tower_width(model))
        self.register_buffer("layer", torch.tensor(self.model.layer))
        self.register_buffer("layer_table", torch.full((model.state_layers, 6), torch.nan, dtype=torch.float64))
        self.register_buffer("contrast_table", torch.full((2, 2), torch.nan, dtype=torch.float64))
        self.register_buffer("val_logits", torch.full((len(self.splits.val),), torch.nan))
        self._phases = phases(model) if config.adapter else {"train": {}}
        several = len(self._phases) > 1
        self._decoding = {f"{DECODERS}-{phase}" if several else DECODERS: phase for phase in self._phases}
        self._pos_weight = share_of_reals(self.splits.train, self.draws)
        self._contrasts = options.losses.contrast > 0  # in stage C as well
        self._stage = ""
        self._untrained: Untrained | None = None
        self._plain = False

    def stages(self) -> list[Stage]:
        """Return the stages of the module docstring that the options ask for.

        ``decoders`` comes once per phase of the adapter.
        """
        options = self.options
        recipe = None if options.augmentation == "none" else augmentation(options.augmentation)
        drawn = DrawnPictures(self.splits.train, self.draws, self.annotations, recipe, self.seed)
        stages = []
        if options.contrast:
            settings = {"steps": options.contrast.steps, "lr": options.contrast.lr or self.config.engine.lr}
            stages.append(Stage(CONTRAST, drawn, settings, prepares=True))
        if options.layer == "lds":
            stages.append(Stage(LAYERS, drawn, {"steps": 0}, prepares=True))
        keep = Best("val/auc") if options.select == "val" else Last()
        for name, phase in self._decoding.items():
            settings = {key: value for key, value in self._phases[phase].items() if key != "lr"}  # the adapter's alone
            stages.append(Stage(name, drawn, settings, keep))
        if options.explanation and self.explained:
            settings = {"steps": options.explanation.steps, "lr": options.explanation.lr}
            stages.append(Stage(EXPLANATION, self._pictures(self.explained), settings, prepares=True))
        return stages

    def begin_stage(self, stage: Stage) -> None:
        """Let the parts of the stage train, and nothing else."""
        self._stage, decodes, contrasts = stage.name, stage.name in self._decoding, stage.name == CONTRAST
        deactivate_explainer(self.model.backbone)
        if self.config.adapter is not None and (decodes or contrasts):
            self._begin_phase(stage.name)
        moving = self.parts.tower if contrasts or (decodes and self.options.adapter_lr_factor > 0) else {}
        self._train_only(self.parts.language if stage.name == EXPLANATION else moving)
        self.model.decoder.requires_grad_(decodes)
        self.projector.requires_grad_(contrasts or (decodes and self._contrasts))

    def begin_training(self) -> None:
        """Remember which base weights train: the artefact must hold them."""
        if self.options.trains_base and self._stage != EXPLANATION:
            self.model.trained_base |= set(self.parts.tower)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the default groups; the projector, and the tower beside the decoders, have a rate of their own."""
        rates: dict[int, float] = {}
        if self._stage == CONTRAST and self.options.contrast:
            rates = {id(p): self.options.contrast.projector_lr for p in self.projector.parameters()}
        elif self._stage in self._decoding:
            lr = self.config.engine.lr * self.options.adapter_lr_factor
            lr = self._phases[self._decoding[self._stage]].get("lr", lr)
            rates = {id(p): lr for p in self.parts.tower.values()}
        groups = []
        for group in super().parameter_groups():
            others = [p for p in group["params"] if id(p) not in rates]
            own = [p for p in group["params"] if id(p) in rates]
            groups += [{**group, "params": others}] if others else []
            groups += [{**group, "params": own, "lr": rates[id(own[0])]}] if own else []
        return groups

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses of a batch of draws, every tensor (draws, pictures of a draw, …).

        In stage D it is a batch of pictures.
        """
        if self._stage == EXPLANATION and self.explained:
            activate_explainer(self.model.backbone)  # an evaluation lets it rest
            self._train_only(self.parts.language)
            return {"loss": answer_loss(self.model.backbone, self.explained, batch)}
        rows = batch["label"].shape[1]
        flat = {key: value.flatten(0, 1) for key, value in batch.items()}
        if self._stage == CONTRAST:
            loss = self._contrast_loss(flat, rows)
            return {"loss": loss, "contrast": loss}
        decoded = self.model(flat)
        terms, used = decoder_losses(decoded, _targets(flat, decoded), self.options.losses, self._pos_weight)
        if self._contrasts:
            terms = terms | {"contrast": self.options.losses.contrast * self._contrast_loss(flat, rows)}
        counts = {f"used/{name}": number for name, number in used.items()}
        return {"loss": torch.stack(list(terms.values())).sum(), **terms, **counts}

    def fit_sets(self, place: Literal["untrained", "start", "end"]) -> Mapping[str, Dataset]:
        """Return training pictures for the baseline's probe; validation pictures for everything else."""
        val, options = self.splits.val, self.options
        if place == "untrained":
            return {
                "untrained": self._pictures(sample_evenly(self.splits.train, PROBED)),
                "untrained-val": self._pictures(val),
            }
        if self._stage == CONTRAST:
            return {f"contrast-{place}": self._pictures(sample_evenly(val, PROBED))}
        if self._stage == LAYERS and place == "start":
            return {LAYERS: self._pictures(sample_evenly(val, options.selection.pictures))}
        if self._stage == [*self._decoding][-1] and place == "end":
            return {CALIBRATION: self._pictures(val)}
        return {}

    def fit_outputs(self, name: str, outputs: Outputs) -> None:
        """Fit the probe, choose the layer, note how far twins are apart, or calibrate."""
        if name == "untrained":
            self._untrained = Untrained(outputs)
        elif name == "untrained-val" and self._untrained:
            self._untrained.calibrate(outputs)
        elif name == CALIBRATION:
            self.val_logits.copy_(outputs["logit"])
            self.model.decoder.lower(*levels(outputs))
            self._settle()
        elif name == LAYERS:
            choice = choose_layer(
                outputs["states"], outputs["label"], outputs["source"].numpy(), self.options.selection.criterion
            )
            rows = [list(asdict(terms).values()) for terms in choice.table]
            self.layer_table.copy_(torch.tensor(rows, dtype=torch.float64))
            self.layer.fill_(choice.layer)
            self._settle()
        else:
            twins = twins_of(outputs["source"], outputs["label"])
            found = contrast_diagnostics(outputs["features"], outputs["label"], twins, outputs["source"].numpy())
            row = self.contrast_table[int(name.endswith("end"))]
            row[0], row[1] = found["twin_cosine"], found["probe_auc"]

    def eval_sets(self, split: Literal["val", "test"]) -> Mapping[str, Dataset]:
        """Return the base class's sets; no validation pictures while the decoders have not learnt anything yet."""
        return {} if split == "val" and self._stage == CONTRAST else super().eval_sets(split)

    def begin_eval(self, set_name: str) -> None:
        """Remember which outputs are asked for; learning to explain changes none of them."""
        super().begin_eval(set_name)
        if self._stage == EXPLANATION:
            deactivate_explainer(self.model.backbone)

    def eval_step(self, batch: Batch) -> Outputs:
        """Compute what :meth:`fit_outputs` or :func:`.scoring.score` need of a batch of pictures."""
        about = {"label": batch["label"], "source": batch["source"]}
        if self._set == LAYERS:
            return about | {"states": self._layer_means(batch)}
        if self._set.startswith("untrained"):
            kept = ("cues", "has_cues", "boxes", "box_count", "tokens", "has_tokens")
            return about | {"features": self._features(batch)} | {key: batch[key] for key in kept}
        if self._set.startswith("contrast-"):
            return about | {"features": self._features(batch)}
        if self._plain and self._untrained:
            return self._untrained.outputs(self._features(batch), batch["inside"])
        truth = {f"true_{key}": batch[key] for key in TRUTH if self._set == CALIBRATION}
        return super().eval_step(batch) | truth

    def metrics(self, set_name: str, outputs: Outputs) -> dict[str, float]:
        """Compute the base class's metrics, of the untrained model those of :mod:`.scoring` alone.

        The latter are not kept.
        """
        if not self._plain:
            return super().metrics(set_name, outputs)
        calibration = (self._untrained or self.model).calibration
        return self._score(set_name, outputs, calibration).metrics

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Turn the adapter off and use the heads of :mod:`.untrained` inside the block."""
        self._plain = True
        try:
            with preserved(self), without_adapter(self.model.backbone):
                yield
        finally:
            self._plain = False

    def trained_state(self) -> dict[str, Tensor]:
        """Return all that some stage may change, and what validation pictures decided."""
        movable = {id(p) for p in (*self.parts.tower.values(), *self.parts.language.values())}
        movable |= {id(p) for part in (self.projector, self.model.decoder) for p in part.parameters()}
        moving = {name: p.detach() for name, p in self.named_parameters() if id(p) in movable}
        decided = ("layer", "layer_table", "contrast_table", "val_logits")
        return super().trained_state() | moving | {name: getattr(self, name) for name in decided}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the state as the base class does; layer and calibration follow."""
        super().load_trained_state(state)
        self._settle()

    def save_artefact(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Save the model as an artefact folder."""
        train, val = self.splits.train, self.splits.val
        self.model.about = {
            "training_set": {"name": train.name, "pictures": len(train), "hash": train.hash},
            "validation_set": {"name": val.name, "pictures": len(val), "hash": val.hash},
            "editors": sorted(train.editors.names),
            "layers": self._layers(),
        }
        self.model.save(folder, record)

    def write_details(self, folder: Path, outputs: Mapping[str, Outputs]) -> None:
        """Write ``pictures.csv``, a row per test picture; ``details.json``: intervals and slices; ``gallery.json``."""
        tests = {name: found for name, found in self._scores.items() if name.startswith("test/")}
        write_gallery(folder, self.model, self.splits.tests, tests)
        write_pictures(folder / "pictures.csv", tests)
        about = {"calibration": self.model.calibration.to_dict(), "layers": self._layers()}
        write_text(folder / "details.json", json.dumps({"sets": details(tests), **about}, ensure_ascii=False) + "\n")

    def describe(self) -> dict[str, Any]:
        """Return data, trained parameters, the chosen layer, what the contrast changed, and the calibration."""
        model, calibration = self.model.backbone, self.model.calibration
        tests = {name: {"pictures": len(each), "hash": each.hash} for name, each in self.splits.tests.items()}
        known = [[None if value != value else value for value in row] for row in self.contrast_table.tolist()]
        before, after = ({"twin_cosine": cosine, "probe_auc": auc} for cosine, auc in known)
        trained = (*self.parts.tower.values(), *self.parts.language.values(), *self.model.decoder.parameters())
        return {
            "backbone": model.spec | {"fingerprint": self.model.fingerprint},
            "train_images": len(self.splits.train),
            "train_hash": self.splits.train.hash,
            "val_images": len(self.splits.val),
            "tests": tests,
            "trainable_parameters": count(trained),
            "manipulation": {
                "framing": self.model.framing.to_dict(),
                "layers": self._layers(),
                "contrast": {"before": before, "after": after} if self.options.contrast else None,
                "calibration": {key: value for key, value in calibration.to_dict().items() if key != "real_scores"},
            },
        }

    def _train_only(self, parameters: Parameters) -> None:
        self.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_()

    def _begin_phase(self, stage: str) -> None:
        """Let the adapter enter the phase of a stage. What the contrast trained goes on in the decoders' first one."""
        first = next(iter(self._decoding))
        if stage != first or not self.options.contrast:
            self._train_only(self.parts.tower)
            begin_phase(self.model.backbone, self._decoding.get(stage, self._decoding[first]))
            self.parts = replace(self.parts, tower=adapter_parameters(self.model.backbone))  # it may bring others

    def _pictures(self, pictures: ManipulationSet) -> Pictures:
        return Pictures(pictures, self.annotations)

    def _features(self, batch: Batch) -> Tensor:
        """Compute the mean of the final patch tokens of the whole picture (its last tile), (B, D)."""
        return self.model.backbone.image_tokens(whole_pictures(batch)).mean(dim=1)

    def _layer_means(self, batch: Batch) -> Tensor:
        """Compute the mean over the tokens of a picture after every layer, (B, L, d)."""
        model, counts = self.model.backbone, batch["count"].tolist()
        states, valid = model.image_states(tiles_of(batch, counts), counts, range(1, model.state_layers + 1))
        own = (valid & batch["inside"][:, : valid.shape[1]])[..., None]
        return torch.stack([(each.float() * own).sum(dim=1) / own.sum(dim=1) for each in states], dim=1)

    def _contrast_loss(self, flat: Batch, rows: int) -> Tensor:
        options = self.options.contrast or ContrastOptions()
        twins = drawn_twins(flat["label"], rows)
        z = self.projector(self._features(flat))
        return contrastive_loss(z, flat["label"], twins, options.reading, options.temperature, options.twin_weight)

    def _settle(self) -> None:
        """Let the model use the chosen layer and the calibration."""
        self.model.layer = int(self.layer)
        if not self.val_logits.isnan().any():
            self.model.calibration = Calibration.fit(self.val_logits.cpu(), self.splits.val.labels != REAL)

    def _layers(self) -> dict[str, Any]:
        """Return the chosen layer, and the table of stage B where there was one."""
        table = [LayerTerms(int(row[0]), *row[1:]) for row in self.layer_table.tolist() if row[0] == row[0]]
        return {
            "chosen": int(self.layer),
            "of": len(self.layer_table),
            "criterion": self.options.selection.criterion if table else None,
            "table": [asdict(terms) for terms in table],
        }


def _targets(flat: Batch, decoded: Decoded) -> Targets:
    boxes = [each[:count] for each, count in zip(flat["boxes"], flat["box_count"].tolist(), strict=True)]
    tokens = flat["tokens"][:, : decoded.valid.shape[1]]
    return Targets(flat["label"], flat["has_cues"], flat["cues"], flat["has_boxes"], boxes, flat["has_tokens"], tokens)
