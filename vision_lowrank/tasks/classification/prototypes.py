"""The prototype head: one row per class, compared with a feature by their dot product.

Paper: CoACT, "Consistency-Guided Asynchronous Contrastive Tuning for Few-Shot Class-Incremental Tuning of Foundation
Models", arXiv 2405.16625. With features h (B, d), not normalised, and rows W (C, d), no bias and no temperature::

    logits = h Wᵀ        (B, C)

Rows exist for all classes from the start, drawn from U(-1/√d, 1/√d), the paper's code's start. A session sets the rows
of its classes to the class means of h over their pictures, or to text embeddings (:func:`.heads.text_rows`), and leaves
all other rows alone. Classes without a session so far are *unseen*: their columns take part in training's
cross-entropy, as in the paper's code, and are -inf where predictions are made; the paper's code lets them win.

Dot products depend on the norms of features and rows. :class:`CosinePrototypeHead` compares directions instead, the
head of SimpleCIL ("Revisiting Class-Incremental Learning with Pre-Trained Models", arXiv 2303.07338)::

    logits = 20 normalise(h) · normalise(W)ᵀ
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...trained import TrainedPart


class PrototypeHead(TrainedPart):
    """``forward(model, features (B, d)) -> logits (B, C)``.

    Attributes:
        prototypes: rows (C, d).
        seen: (C,) booleans: classes that a session brought.
        mask_unseen: whether :meth:`forward` gives -inf for the others, or their logits, as the paper's code does.
    """

    checkpoint_whole: ClassVar[bool] = True  # rows are set while frozen, and `seen` never trains
    mask_unseen = True

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(_random_rows(classes, width))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def logits(self, features: Tensor) -> Tensor:
        """Compute logits (B, C) of features (B, d), those of unseen classes too: what training takes."""
        return features @ self.prototypes.T

    def forward(self, model: nn.Module, features: Tensor) -> Tensor:
        """Compute logits (B, C) of features (B, d) to predict by.

        They are -inf for unseen classes, unless `mask_unseen` is off.
        """
        logits = self.logits(features)
        return logits.masked_fill(~self.seen, -torch.inf) if self.mask_unseen else logits

    @torch.no_grad()
    def set_rows(self, classes: Sequence[int], rows: Tensor) -> None:
        """Set the rows of `classes` to `rows` (n, d), and count them as seen; no other row changes."""
        self.prototypes[list(classes)] = rows.to(self.prototypes)
        self.see(classes)

    def set_prototypes(self, features: Tensor, labels: Tensor) -> None:
        """Set the rows of the classes in `labels` (N,) to their means of `features` (N, d)."""
        classes = labels.unique().tolist()
        features = features.to(self.prototypes)
        self.set_rows(classes, torch.stack([features[labels == c].mean(dim=0) for c in classes]))

    def see(self, classes: Sequence[int]) -> None:
        """Count `classes` as seen, whatever their rows are."""
        self.seen[list(classes)] = True

    def grow(self, count: int) -> None:
        """Append random rows for `count` new, unseen classes. `prototypes` is another parameter from then on.

        Raises:
            UserError: `count` is below 1.
        """
        if count < 1:
            raise UserError(f"the head cannot grow by {count} classes: give 1 or more.")
        old, width = self.prototypes, self.prototypes.shape[1]
        rows = torch.cat([old.detach(), _random_rows(count, width).to(old)])
        self.prototypes = nn.Parameter(rows, requires_grad=old.requires_grad)
        self.seen = torch.cat([self.seen, self.seen.new_zeros(count)])


class CosinePrototypeHead(PrototypeHead):
    """The same with scaled cosines for dot products; rows are class means of h all the same."""

    scale = 20.0

    def logits(self, features: Tensor) -> Tensor:
        """Compute logits (B, C) of features (B, d), those of unseen classes too."""
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(self.prototypes, dim=-1).T


def _random_rows(count: int, width: int) -> Tensor:
    return torch.empty(count, width).uniform_(-(width**-0.5), width**-0.5)
