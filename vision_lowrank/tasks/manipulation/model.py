"""A model of manipulation: a backbone's states at one layer, a decoder on them, and how its scores become verdicts.

Its artefact holds, beside what :mod:`vision_lowrank.tasks.saved` writes, decoder, framing, layer, cues and
calibration in ``artefact.json``, and::

    decoder.safetensors    the decoder's tensors
    explanation/           the language model's adapter (absent where none was trained)

The heads decide, the text follows them: verdict, regions and cues come from the decoder alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from ...backbones.adapted import adapter_names
from ...data.boxes import Boxes
from ...data.manipulation.framing import Framing, heat_map
from ...errors import UserError
from ...metrics.calibration import Calibration
from ...registry import register
from ..about import About
from ..model_identity import identity_of
from ..saved import AdaptedModel, load_part, restore_backbone
from .about import ManipulationAbout, check_decoder
from .decoders import Decoded, decode_boxes, make_decoder
from .explainer import EXPLAIN, deactivate_explainer, explainer_active, load_explainer, save_explainer
from .explanation import question, reconcile, template
from .finding import Finding
from .frames import Frames, Sample, stacked, tiles_of

CUE_THRESHOLD = 0.5
DECODER = "decoder.safetensors"
EXPLANATION = "explanation"  # folder of the language model's adapter


@register("model", "manipulation", summary="whether, where and how a picture was edited: backbone and decoder")
class ManipulationModel(AdaptedModel):
    """Says whether pictures were edited, where, and by which visible signs.

    Attributes:
        decoder: one of :mod:`.decoders`.
        framing: how pictures meet the backbone's square input.
        layer: whose states the decoder reads; nothing above it runs.
        cues: names of the cue head's outputs.
        calibration: from logits to verdicts.
        about: facts for readers: training data, limits, versions.
    """

    task: ClassVar[str] = "manipulation"
    about_model: ClassVar[type[About]] = ManipulationAbout
    export_limits: ClassVar[Mapping[str, str]] = {
        "onnx": "pictures of any size are cut into tiles before the network, and boxes are read off after it"
    }

    def __init__(
        self, model: nn.Module, decoder: Mapping[str, Any], framing: Framing, layer: int, cues: Sequence[str]
    ) -> None:
        """Build the model; `decoder` is what :func:`.decoders.make_decoder` takes beside the width of the states."""
        super().__init__(model)
        self.layer, self.cues = layer, tuple(cues)
        self.decoder_options = dict(decoder)
        self.decoder = make_decoder(model.state_width, cues=len(self.cues), **decoder)
        self.calibration = Calibration()
        self.about: dict[str, Any] = {}
        self.use_framing(framing)

    def forward(self, batch: Sample) -> Decoded:
        """Decode a batch of samples (:mod:`.pictures`), over as many tokens as its pictures have."""
        counts = batch["count"].tolist()
        (states,), valid = self.backbone.image_states(tiles_of(batch, counts), counts, [self.layer])
        tokens = states.shape[1]
        return self.decoder(states, valid & batch["inside"][:, :tokens], batch["centres"][:, :tokens])

    def use_framing(self, framing: Framing) -> None:
        """Look at pictures in another way than in training, which changes the scores: for experiments."""
        self.framing = framing
        self.frames = Frames(framing, self.backbone.token_grid, self.backbone.preprocess)

    @property
    def explains(self) -> bool:
        """Whether its language model was taught to explain."""
        return EXPLAIN in adapter_names(self.backbone)

    @property
    def identity(self) -> str:
        """16 hex digits that change with anything an outcome depends on, but the threshold."""
        decoder = {f"decoder.{name}": tensor for name, tensor in self.decoder.state_dict().items()}
        return identity_of(self, decoder, f"{self.framing} {self.layer} {self.calibration.temperature}")

    @torch.inference_mode()
    def predict_batch(
        self, images: Sequence[Image.Image], *, calibration: Calibration | None = None, explain: bool = False
    ) -> list[Finding]:
        """Return what the model finds, picture by picture, in one batch.

        Args:
            images: RGB, upright, of any size.
            calibration: another than its own: another threshold.
            explain: let the language model write the explanation, where it was taught to; slow.

        Raises:
            UserError: `explain` without such a model.
        """
        if explain and not self.explains:
            raise UserError(
                "this detector was trained without a language model that explains: leave --explain out; its "
                "explanations are templates filled with what the heads found."
            )
        if not images:
            return []
        decoded = self(self._batch(images))
        findings = [
            self.finding(decoded, row, image.size, calibration or self.calibration) for row, image in enumerate(images)
        ]
        return self.explain(images, findings) if explain else findings

    def finding(self, decoded: Decoded, row: int, size: tuple[int, int], calibration: Calibration) -> Finding:
        """Return what the decoder found in the picture of a row, (width, height) in size, explained by the template."""
        width, height = size
        probability = float(calibration.probability(decoded.logit[row]))
        verdict = calibration.verdict(probability)
        boxes = decode_boxes(decoded.boxes[row], decoded.objectness[row], width, height)
        heat = self.heat(decoded, row, boxes, width, height)
        likely = decoded.cues[row].sigmoid().tolist()
        cues = sorted(((name, p) for name, p in zip(self.cues, likely, strict=True) if p >= CUE_THRESHOLD), key=_last)
        if verdict == "real":
            boxes, cues = boxes[:0], []
        text = template(verdict, probability, boxes, cues, width, height)
        return Finding(verdict, probability, boxes, tuple(cues), text, "template", heat)

    def heat(self, decoded: Decoded, row: int, boxes: Boxes, width: int, height: int) -> np.ndarray:
        """Draw the heat map, (height, width) float32 in [0, 1]: the token map, or boxes where there is none."""
        if decoded.tokens is None:
            from ...data.manipulation.regions import mask_of_boxes  # SciPy, for the few decoders without a map

            heat = np.zeros((height, width), dtype=np.float32)
            for box, score in reversed(list(zip(boxes, boxes.scores, strict=True))):
                heat[mask_of_boxes([box], width, height)] = score
            return heat
        rectangles = self.framing.rectangles(width, height)
        own = len(rectangles) * self.frames.grid[0] * self.frames.grid[1]
        shares = decoded.tokens[row, :own].float().sigmoid().cpu().numpy()
        return heat_map(shares, rectangles, self.frames.grid, width, height)

    def explain(self, images: Sequence[Image.Image], findings: Sequence[Finding]) -> list[Finding]:
        """Return findings with what the language model says of their pictures, where that does not contradict them."""
        batch = self._batch(images)
        counts = batch["count"].tolist()
        prompts = [question(each, each.heatmap.shape[1], each.heatmap.shape[0]) for each in findings]
        with explainer_active(self.backbone):
            texts = self.backbone.generate(tiles_of(batch, counts), counts, prompts)
        return [_with_text(finding, text, self.cues) for finding, text in zip(findings, texts, strict=True)]

    def _batch(self, images: Sequence[Image.Image]) -> Sample:
        device = next(self.decoder.parameters()).device
        return {key: value.to(device) for key, value in stacked([self.frames.sample(each) for each in images]).items()}

    def save(self, folder: str | Path, record: Mapping[str, Any]) -> None:
        """Write the artefact; `record` is kept beside it (config, versions, metrics)."""
        deactivate_explainer(self.backbone)
        about = {
            "task": self.task,
            "decoder": self.decoder_options,
            "framing": self.framing.to_dict(),
            "layer": self.layer,
            "cues": self.cues,
            "calibration": self.calibration.to_dict(),
            "about": self.about,
            "tower_adapter": any(name != EXPLAIN for name in adapter_names(self.backbone)),
        }
        self.save_model(folder, about, record, {DECODER: self.decoder.state_dict()})
        if self.explains:
            save_explainer(self.backbone, folder / EXPLANATION)

    @classmethod
    def load(
        cls, folder: str | Path, backbone: nn.Module | None = None, *, attach: bool = False, trust: bool = False
    ) -> ManipulationModel:
        """Read an artefact back, in evaluation mode.

        Args:
            folder: what :meth:`save` wrote.
            backbone: the base model, if it is loaded already; otherwise it is loaded by the name in the artefact.
            attach: as for :func:`~vision_lowrank.tasks.saved.load_model`; a language model that was taught to explain
                always has its adapters attached, as it must switch them.
            trust: as there.

        Raises:
            ArtefactError: not an artefact of this kind, damaged, made for another base model, or it asks for what
                needs trust.
        """
        folder = Path(folder)
        about, explains = cls.read(folder), (folder / EXPLANATION).is_dir()
        # Where only the language model has an adapter, it lies in `adapter` as well as in `explanation`.
        own = about["adapter"] and about["tower_adapter"]
        attach = attach or explains
        backbone = restore_backbone(folder, about | {"adapter": own}, backbone, attach=attach, trust=trust)
        backbone = load_explainer(folder / EXPLANATION, backbone) if explains else backbone
        framing = Framing.from_dict(about["framing"])
        check_decoder(folder / DECODER, backbone.state_width, about)
        model = cls(backbone, about["decoder"], framing, about["layer"], about["cues"])
        load_part(model.decoder, folder / DECODER, about, "decoder")
        model.restore(about)
        model.calibration = Calibration.from_dict(about["calibration"])
        model.about = about["about"]
        return model.eval().requires_grad_(False)


def _with_text(finding: Finding, text: str, cues: Sequence[str]) -> Finding:
    kept, agrees = reconcile(text, finding, cues)
    return Finding(
        finding.verdict,
        finding.probability,
        finding.boxes,
        finding.cues,
        kept,
        "model" if agrees else "template",
        finding.heatmap,
    )


def _last(cue: tuple[str, float]) -> float:
    return -cue[1]
