"""The pretrained model as a classifier of the task's classes: what regularisers compare the adapted one with.

It is the model at hand with its adapter off, in evaluation mode and without gradients, so it costs a forward pass and
no memory of its own; W itself must stay what it was. Its head:

* text: the class prompts, encoded once by the unadapted text tower;
* linear, cosine: the pretrained model has none for these classes. The task first trains one alone on frozen features
  (the stage :data:`PROBE`), and its result, frozen, is the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...attachment.parameters import adapter_prefix
from ...backbones.adapted import without_adapter
from ...errors import UserError
from ...modes import preserved
from .classifier import ImageClassifier
from .heads import TextHead, make_head

PROBE = "probe"


class PretrainedClassifier:
    """Logits and features of the pretrained model. No module: nothing of it is saved, moved or trained with the task.

    Args:
        classifier: what is being trained.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        self.classifier = classifier
        self.head: nn.Module | None = None

    def keep_head(self) -> None:
        """Freeze a copy of the classifier's head as it is now; class prompts are encoded without the adapter."""
        own = self.classifier
        head = make_head(own.head_name, own.backbone, own.classes, own.templates).requires_grad_(False)
        head.load_state_dict(own.head.state_dict())
        self.head = head.to(next(own.backbone.parameters()).device)
        if isinstance(head, TextHead):
            with self._pretrained():
                head.fix(own.backbone)

    def check_base(self) -> None:
        """Make sure that the base weights stay what they are.

        Raises:
            UserError: some of them train.
        """
        model = self.classifier.backbone
        prefix = adapter_prefix(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not (prefix and prefix in name):
                raise UserError(
                    f"regularizer: the base weight '{name}' trains, so there is no pretrained model left to compare "
                    "with: train an adapter, or leave the regularizer out."
                )

    def features(self, pixels: Tensor) -> Tensor:
        """Compute image features (B, e) of the pretrained model, without gradient."""
        with self._pretrained():
            return self.classifier.backbone.encode_image(pixels)

    def logits(self, pixels: Tensor) -> Tensor:
        """Compute class logits (B, C) of the pretrained model, without gradient."""
        features = self.features(pixels)
        with torch.no_grad():
            return self.head(self.classifier.backbone, features)  # type: ignore[misc]

    @contextmanager
    def _pretrained(self) -> Iterator[None]:
        model = self.classifier.backbone
        with preserved(model), without_adapter(model), torch.no_grad():
            model.eval()
            yield
