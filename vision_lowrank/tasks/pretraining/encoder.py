"""A backbone alone as a saved model: what pretraining without a head gives. It says a picture's embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from ...registry import register
from ..about import About
from ..saved import AdaptedModel


@dataclass(frozen=True)
class Embedding:
    """What an encoder says of a picture.

    Attributes:
        values: the embedding, as many numbers as the backbone's ``embed_dim``.
    """

    values: tuple[float, ...]

    def to_row(self) -> dict[str, Any]:
        """Return plain values for JSON and CSV: ``e0``, ``e1``, …"""
        return {f"e{number}": value for number, value in enumerate(self.values)}

    def to_cells(self) -> dict[str, str]:
        """Return the first numbers as text, for a table."""
        return {"embedding": f"{', '.join(f'{value:.3f}' for value in self.values[:4])}, … ({len(self.values)})"}


class AboutEncoder(About):
    """What the artefact of an encoder says: nothing more than every artefact."""


@register("model", "encoder", summary="a pretrained backbone: embeddings of pictures")
class Encoder(AdaptedModel):
    """A backbone whose own weights were trained."""

    task = "encoder"
    about_model = AboutEncoder
    exports: ClassVar[tuple[str, ...]] = ("merged",)

    def predict_batch(self, images: Sequence[Image.Image]) -> list[Embedding]:
        """Return the embedding of each RGB picture."""
        transform, weight = self.backbone.transform, next(self.backbone.parameters())
        pixels = torch.stack([transform(image) for image in images]).to(weight)
        with torch.no_grad():
            found = self.backbone.encode_image(pixels).float().cpu()
        return [Embedding(tuple(round(value, 6) for value in row)) for row in found.tolist()]

    def save(self, folder: str | Path, record: Mapping[str, Any]) -> None:
        """Write the artefact."""
        self.save_model(folder, {"task": self.task}, record)
