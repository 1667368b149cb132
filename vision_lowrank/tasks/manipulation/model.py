"""A manipulation detector: a backbone's states at one layer, a decoder on them, and how its scores become verdicts.

Its artefact holds, beside what :mod:`vision_lowrank.tasks.artefact` writes, decoder, framing, layer, cues and
calibration in ``artefact.json``, and::

    decoder.safetensors    the decoder's tensors
    explanation/           the language model's adapter (absent where none was trained)

The heads decide, the text follows them: verdict, regions and cues come from the decoder alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ...attachment.parameters import backbone_of
from ...attachment.store import adapter_state, checksum
from ...attachment.store import load as load_adapter
from ...attachment.store import save as save_adapter
from ...data.boxes import Boxes
from ...data.manipulation.framing import Framing, heat_map
from ...data.manipulation.regions import mask_of_boxes
from ...errors import ArtefactError, UserError
from ...metrics.calibration import Calibration
from ..about import check_about, read_about
from ..artefact import AdaptedModel, load_model, load_part, save_part
from .decoders import Decoded, decode_boxes, make_decoder
from .explainer import EXPLAIN, deactivate_explainer, explainer_active
from .explanation import question, reconcile, template
from .finding import Finding
from .pictures import Frames, Sample, stacked, tiles_of

CUE_THRESHOLD = 0.5


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

    def __init__(
        self, model: nn.Module, decoder: Mapping[str, Any], framing: Framing, layer: int, cues: Sequence[str]
    ) -> None:
        """`decoder` is what :func:`.decoders.make_decoder` takes beside the width of the states."""
        super().__init__(model)
        self.layer, self.cues = layer, tuple(cues)
        self.decoder_options = dict(decoder)
        self.decoder = make_decoder(model.state_width, cues=len(self.cues), **decoder)
        self.calibration = Calibration()
        self.about: dict[str, Any] = {}
        self.use_framing(framing)

    def forward(self, batch: Sample) -> Decoded:
        """What the decoder says of a batch of samples (:mod:`.pictures`), over as many tokens as its pictures have."""
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
        return EXPLAIN in getattr(self.backbone, "peft_config", ())

    @property
    def identity(self) -> str:
        """16 hex digits that change with anything an outcome depends on, but the threshold."""
        states = {f"decoder.{name}": tensor for name, tensor in self.decoder.state_dict().items()}
        for name in getattr(self.backbone, "peft_config", ()):
            states |= {f"{name}.{key}": tensor for key, tensor in adapter_state(self.backbone, name).items()}
        states |= {name: p for name, p in backbone_of(self.backbone).named_parameters() if name in self.trained_base}
        weights = checksum({name: tensor.detach().cpu().contiguous() for name, tensor in states.items()})
        facts = f"{self.fingerprint} {weights} {self.framing} {self.layer} {self.calibration.temperature}"
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    @torch.inference_mode()
    def inspect(
        self, images: Sequence[Image.Image], calibration: Calibration | None = None, explain: bool = False
    ) -> list[Finding]:
        """What the detector finds, picture by picture, in one batch.

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
        """What the decoder found in the picture of a row, (width, height) in size, explained by the template."""
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
        """(height, width) float32 in [0, 1]: the token map over the picture, or boxes where there is none."""
        if decoded.tokens is None:
            heat = np.zeros((height, width), dtype=np.float32)
            for box, score in reversed(list(zip(boxes, boxes.scores, strict=True))):
                heat[mask_of_boxes([box], width, height)] = score
            return heat
        rectangles = self.framing.rectangles(width, height)
        own = len(rectangles) * self.frames.grid[0] * self.frames.grid[1]
        shares = decoded.tokens[row, :own].float().sigmoid().cpu().numpy()
        return heat_map(shares, rectangles, self.frames.grid, width, height)

    def explain(self, images: Sequence[Image.Image], findings: Sequence[Finding]) -> list[Finding]:
        """Findings with what the language model says of their pictures, where that does not contradict them."""
        batch = self._batch(images)
        counts = batch["count"].tolist()
        prompts = [question(each, each.heatmap.shape[1], each.heatmap.shape[0]) for each in findings]
        with explainer_active(self.backbone):
            texts = self.backbone.generate(tiles_of(batch, counts), counts, prompts)
        return [_with_text(finding, text, self.cues) for finding, text in zip(findings, texts, strict=True)]

    def _batch(self, images: Sequence[Image.Image]) -> Sample:
        device = next(self.decoder.parameters()).device
        return {key: value.to(device) for key, value in stacked([self.frames.sample(each) for each in images]).items()}

    def save(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the artefact; `record` is kept beside it (config, versions, metrics)."""
        deactivate_explainer(self.backbone)
        about = {
            "task": "manipulation",
            "decoder": self.decoder_options,
            "framing": self.framing.to_dict(),
            "layer": self.layer,
            "cues": self.cues,
            "calibration": self.calibration.to_dict(),
            "about": self.about,
            "tower_adapter": any(name != EXPLAIN for name in getattr(self.backbone, "peft_config", ())),
        }
        self.save_model(folder, about, record)
        save_part(self.decoder, folder / "decoder.safetensors")
        if self.explains:
            with explainer_active(self.backbone):  # what an adapter at rest gives proves nothing
                save_adapter(self.backbone, folder / "explanation", EXPLAIN)

    @classmethod
    def load(cls, folder: str | Path, backbone: nn.Module | None = None) -> ManipulationModel:
        """Read an artefact back, in evaluation mode.

        Args:
            folder: what :meth:`save` wrote.
            backbone: the base model, if it is loaded already; otherwise it is loaded by the name in the artefact.

        Raises:
            ArtefactError: not a detector's artefact, damaged, or made for another base model.
        """
        folder = Path(folder)
        about = read_manipulation(folder)
        # Where only the language model has an adapter, it lies in `adapter` as well as in `explanation`.
        own = about["adapter"] and about.get("tower_adapter", True)
        model, base = load_model(folder, about | {"adapter": own}, backbone)
        if (folder / "explanation").is_dir():
            model = load_adapter(folder / "explanation", model, EXPLAIN)
            deactivate_explainer(model)
        framing = Framing.from_dict(about["framing"])
        detector = cls(model, about["decoder"], framing, about["layer"], about["cues"])
        load_part(detector.decoder, folder / "decoder.safetensors", "decoder")
        detector.fingerprint, detector.trained_base = about["fingerprint"], base
        detector.calibration = Calibration.from_dict(about["calibration"])
        detector.about = about["about"]
        return detector.eval().requires_grad_(False)


def read_manipulation(folder: Path) -> dict[str, Any]:
    """The content of a detector's ``artefact.json``.

    Raises:
        ArtefactError: the file is missing or not valid, or belongs to another task.
    """
    about = read_about(folder)
    if about.get("task") != "manipulation":
        raise ArtefactError(f"{folder}: holds no manipulation detector but a {about.get('task')} model.")
    check_about(folder, about, ("decoder", "framing", "layer", "cues", "calibration", "about"))
    return about


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
