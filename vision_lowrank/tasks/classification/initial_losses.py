"""Calibration batches for initialisers that look at the gradient of the task's loss: training pictures only.

Pictures are drawn class-balanced by the initialiser's seed and seen without augmentation. The loss is the task's
cross-entropy where the head can classify before training (text prompts); for a head that starts empty, whose gradient
would be zero, the class means of the calibration pictures stand in: logits = 20 · cos(feature, mean).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.base import ImageSet
from ...data.loading import TransformedImages
from ...data.transforms import Preprocess
from ...initializers.base import GradientInitializer
from .heads import CosineHead, HeadName, TextHead


def calibration_losses(
    images: ImageSet, templates: Sequence[str], preprocess: Preprocess, head: HeadName, options: GradientInitializer
) -> list[Callable[[nn.Module], Tensor]]:
    """Return one function per batch, model -> mean loss of that batch.

    Args:
        images: training pictures.
        templates: prompt templates, for a text head.
        preprocess: of the backbone.
        head: what the task classifies with.
        options: how many pictures, in which batches, drawn by which seed.
    """
    chosen = images.subset(balanced(images, options.samples, options.seed))
    loss = CalibrationLoss(TransformedImages(chosen, preprocess.evaluation()), images.classes, templates, head)
    starts = range(0, len(chosen), options.batch_size)
    return [_Batch(loss, range(start, min(start + options.batch_size, len(chosen)))) for start in starts]


def balanced(images: ImageSet, count: int, seed: int) -> list[int]:
    """Draw indices of `count` pictures (or all), shuffled by `seed`.

    The number of each class is the same as far as they go.
    """
    draw = random.Random(seed)
    queues = [draw.sample(group, len(group)) for group in images.by_class() if group]
    rounds = [[queue[turn] for queue in queues if turn < len(queue)] for turn in range(max(map(len, queues)))]
    chosen = [index for turn in rounds for index in draw.sample(turn, len(turn))]
    return chosen[:count]


class CalibrationLoss:
    """Cross-entropy of calibration pictures under the task's head, or its stand-in."""

    def __init__(
        self, data: TransformedImages, classes: Sequence[str], templates: Sequence[str], head: HeadName
    ) -> None:
        self.data, self.classes, self.templates, self.head = data, classes, templates, head
        self._classifier: Callable[[nn.Module, Tensor], Tensor] | None = None

    def __call__(self, model: nn.Module, indices: Sequence[int]) -> Tensor:
        """Compute the mean loss of the pictures at `indices`."""
        if self._classifier is None:
            self._classifier = self._make_classifier(model)
        pixels, labels = self._batch(model, indices)
        return F.cross_entropy(self._classifier(model, model.encode_image(pixels)), labels)  # type: ignore[operator]

    def _make_classifier(self, model: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
        device = next(model.parameters()).device
        if self.head == "text":
            return TextHead(model, self.classes, self.templates).to(device)
        pixels, labels = self._batch(model, range(len(self.data)))
        with torch.no_grad():
            features = torch.cat([F.normalize(model.encode_image(each), dim=-1) for each in pixels.split(32)])  # type: ignore[operator]
            means = F.normalize(F.one_hot(labels, len(self.classes)).T.to(features) @ features, dim=-1)
        return lambda _, features: CosineHead.scale * F.normalize(features, dim=-1) @ means.T

    def _batch(self, model: nn.Module, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        samples = [self.data[index] for index in indices]
        device = next(model.parameters()).device
        pixels = torch.stack([torch.as_tensor(sample["image"]) for sample in samples]).to(device)
        return pixels, torch.tensor([sample["label"] for sample in samples], device=device)


class _Batch:
    """The loss of a fixed batch."""

    def __init__(self, loss: CalibrationLoss, indices: range) -> None:
        self.loss, self.indices = loss, indices

    def __call__(self, model: nn.Module) -> Tensor:
        return self.loss(model, self.indices)
