"""A tracker: a plain ViT with an adapter, LoRAT's token embedding and head, and how it follows targets.

Its artefact holds, beside what :mod:`vision_lowrank.tasks.saved` writes, the two crops in ``artefact.json``, and::

    tracker.safetensors    positions, token types, and the head's tensors under LoRAT's own names
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from ...attachment.factored import merge_factored
from ...backbones.adapted import backbone_of
from ...backbones.trunk import Trunk
from ...data.frames import Frame, as_box, as_frame
from ...data.transforms import Preprocess
from ...errors import UserError
from ...export.onnx_graph import OnnxGraph, draw_pictures
from ...registry import register
from ..about import About
from ..model_identity import identity_of
from ..saved import AdaptedModel, load_part, restore_backbone
from .about import TrackingAbout
from .cropping import Cropping
from .head import BoxHead, Found
from .online import LORAT, Following, Target, Tracked, start_target, step_targets
from .tokens import TokenEmbedding

TRACKER = "tracker.safetensors"


class TrackerParts(nn.Module):
    """What a tracker has beside its backbone, under the names that LoRAT's files have."""

    def __init__(self, trunk: Trunk, cropping: Cropping) -> None:
        super().__init__()
        search, template = cropping.grids(trunk.patch)
        self.embedding = TokenEmbedding(trunk, search, template)
        self.head = BoxHead(trunk.layout.width, search)


@register("model", "tracking", summary="follows one target, or several, through a video: backbone and box head")
class TrackingModel(AdaptedModel):
    """Follows targets through frames.

    Attributes:
        cropping: of template and search crop.
        following: what is done while following beside LoRAT's loop; nothing by default.
        embedding: tokens of both crops.
        head: scores and boxes of the search crop's cells.
    """

    task: ClassVar[str] = "tracking"
    about_model: ClassVar[type[About]] = TrackingAbout
    takes: ClassVar[tuple[str, ...]] = ("video",)
    exports: ClassVar[tuple[str, ...]] = (*AdaptedModel.exports, "onnx")

    def __init__(self, model: nn.Module, cropping: Cropping, following: Following = LORAT) -> None:
        """Build the parts beside `model`, a backbone with a trunk.

        Raises:
            UserError: it has none, or the patches do not fill the crops.
        """
        super().__init__(model)
        self.cropping, self.following = cropping, following
        self.parts = TrackerParts(self.trunk, cropping)
        self._target: Target | None = None

    @property
    def embedding(self) -> TokenEmbedding:
        """Tokens of both crops."""
        return self.parts.embedding

    @property
    def head(self) -> BoxHead:
        """Scores and boxes."""
        return self.parts.head

    @property
    def trunk(self) -> Trunk:
        """The backbone's trunk, with the adapters that it carries."""
        return backbone_of(self.backbone).trunk

    @property
    def preprocess(self) -> Preprocess:
        """Mean and standard deviation that the backbone's weights expect."""
        return backbone_of(self.backbone).preprocess

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.embedding.types.device

    @property
    def identity(self) -> str:
        """16 hex digits that change with anything that its answers depend on."""
        facts = self.cropping if self.following == LORAT else (self.cropping, self.following)
        return identity_of(self, self.parts.state_dict(), facts)

    def forward(self, z: Tensor, x: Tensor, mask: Tensor) -> Found:
        """Find the targets of templates in search crops.

        Args:
            z: (B, 3, Hz, Wz) template crops, normalised; or (B, T, 3, Hz, Wz), several of each target.
            x: (B, 3, Hx, Wx) search crops, normalised.
            mask: (B, hz, wz), or (B, T, hz, wz), 1 where a cell covers the target.
        """
        return self.find(self.embedding.template_tokens(self.trunk, z, mask), x)

    def find(self, template: Tensor, x: Tensor) -> Found:
        """Do as :meth:`forward`, with the tokens of the template, or of several, (B, T hz wz, d)."""
        trunk = self.trunk
        tokens = torch.cat([template, self.embedding.search_tokens(trunk, x)], dim=1)
        for block in trunk.blocks:
            tokens = block(tokens)
        return self.head(trunk.norm(tokens)[:, template.shape[1] :])

    def trunk_parameters(self) -> list[nn.Parameter]:
        """Return the base weights that a tracker's answer depends on: what full fine-tuning trains."""
        base = [p for p in self.backbone.parameters() if p.is_floating_point()]
        before = [p.requires_grad for p in base]
        rows, columns = self.embedding.template
        search, template = (torch.zeros(1, 3, side, side) for side in (self.cropping.search, self.cropping.template))
        with torch.enable_grad():
            for parameter in base:
                parameter.requires_grad_()
            found = self(template, search, torch.zeros(1, rows, columns, dtype=torch.bool))
            reached = torch.autograd.grad(found.logits.sum() + found.boxes.sum(), base, allow_unused=True)
        for parameter, trained in zip(base, before, strict=True):
            parameter.requires_grad_(trained)
        return [parameter for parameter, gradient in zip(base, reached, strict=True) if gradient is not None]

    # --- use ---------------------------------------------------------------------------------------------------------

    def init(self, frame: Frame, box: Sequence[float], fmt: str = "xywh", color: str = "rgb") -> None:
        """Begin to follow one target; a target followed before is forgotten.

        Args:
            frame: (H, W, 3) uint8 and what else :func:`~vision_lowrank.data.frames.as_frame` takes.
            box: four numbers in pixels.
            fmt: ``xywh`` (left, top, width, height), ``xyxy`` or ``cxcywh`` (middle).
            color: order of an array's channels, ``rgb`` or ``bgr``.

        Raises:
            UserError: a box outside the frame or of no size, or a frame of another kind.
        """
        self._target = self.start(frame, box, fmt, color)

    def track(self, frame: Frame, color: str = "rgb") -> Tracked:
        """Find the target of :meth:`init` in the next frame.

        Raises:
            UserError: there is none yet.
        """
        if self._target is None:
            raise UserError("nothing is followed yet: call init(frame, box) with the first frame first.")
        return self.track_many([frame], [self._target], color)[0]

    def start(self, frame: Frame, box: Sequence[float], fmt: str = "xywh", color: str = "rgb") -> Target:
        """Begin to follow a target that is kept by the caller; arguments are those of :meth:`init`."""
        pixels = as_frame(frame, color)
        return start_target(self.eval(), pixels, as_box(box, fmt, (pixels.shape[1], pixels.shape[0])))

    def track_many(
        self, frames: Sequence[Frame] | Frame, targets: Sequence[Target], color: str = "rgb"
    ) -> list[Tracked]:
        """Find several targets in one batch.

        Args:
            frames: the next frame of each target; or one frame that all are in.
            targets: what :meth:`start` returned; they move.
            color: as for :meth:`init`.
        """
        if not isinstance(frames, list | tuple):
            frames = [as_frame(frames, color)] * len(targets)
        if self.training:  # `eval` goes through all modules, which is time of every frame
            self.eval()
        return step_targets(self, [as_frame(frame, color) for frame in frames], targets)

    def predict(self, inputs: Sequence[Any], batch_size: int = 64, **options: Any) -> list[Any]:
        """Refuse inputs: a tracker takes a video, and a box in its first frame.

        Raises:
            UserError: always; it names what follows a target.
        """
        raise UserError("a tracker takes a video and a box, no pictures: use `vision-lowrank track`.")

    def predict_batch(self, images: Sequence[Image.Image]) -> list[Any]:
        """Refuse pictures: a tracker takes a video."""
        return self.predict(images)

    # --- files -------------------------------------------------------------------------------------------------------

    def onnx_graph(self) -> OnnxGraph:
        """Say how the network is called as an ONNX graph: crops and mask in, scores and boxes of all cells out."""
        crops, (rows, columns) = self.cropping, self.embedding.template

        def draw(count: int) -> tuple[Tensor, ...]:
            mask = torch.arange(count * rows * columns).reshape(count, rows, columns) % 2
            return draw_pictures(count, crops.template), draw_pictures(count, crops.search, 1), mask

        about = {"cropping": crops.to_dict(), "mean": self.preprocess.mean, "std": self.preprocess.std}
        return OnnxGraph("tracker.onnx", ("template", "search", "mask"), ("logits", "boxes"), draw, about)

    def save(self, folder: str | Path, record: Mapping[str, Any]) -> None:
        """Write the artefact; `record` is kept beside it (config, versions, metrics)."""
        about = {"task": self.task, "cropping": self.cropping.to_dict()}
        about |= {} if self.following == LORAT else {"following": asdict(self.following)}
        self.save_model(folder, about, record, {TRACKER: self.parts.state_dict()})

    @classmethod
    def load(
        cls, folder: str | Path, backbone: nn.Module | None = None, *, attach: bool = False, trust: bool = False
    ) -> TrackingModel:
        """Read an artefact back, in evaluation mode; see :func:`~vision_lowrank.tasks.saved.load_model`.

        An adapter that has factors is folded into the weights: frame after frame at the cost of the bare trunk.
        """
        folder = Path(folder)
        about = cls.read(folder)
        whole = restore_backbone(folder, about, backbone, attach=attach, trust=trust)
        if backbone_of(whole).factored:
            merge_factored(whole)
        model = cls(whole, Cropping.from_dict(about["cropping"]), Following.from_dict(about.get("following", {})))
        load_part(model.parts, folder / TRACKER, about, "tracker")
        model.restore(about)
        return model.eval().requires_grad_(False)
