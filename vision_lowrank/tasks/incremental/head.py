"""The prototype head: one row per class, compared with a feature by their dot product.

Paper: CoACT, "Consistency-Guided Asynchronous Contrastive Tuning for Few-Shot Class-Incremental Tuning of Foundation
Models", arXiv 2405.16625. With features h (B, d), not normalised, and rows W (C, d), no bias and no temperature::

    logits = h Wᵀ        (B, C)

Rows exist for all classes from the start, drawn from U(-1/√d, 1/√d), the paper's code's start. A session sets the rows
of its classes to the class means of h over their pictures, or to text embeddings (:func:`text_rows`), and leaves all
other rows alone. Classes without a session so far are *unseen*: their columns take part in training's cross-entropy, as
in the paper's code, and are -inf where predictions are made; the paper's code lets them win.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...adapters.folder import flush
from ...adapters.preserve import preserved
from ...errors import ArtefactError, UserError
from ..classification.heads import TextHead


class PrototypeHead(nn.Module):
    """``forward(features (B, d)) -> logits (B, C)``.

    Attributes:
        prototypes: rows (C, d).
        seen: (C,) booleans: classes that a session brought.
    """

    checkpoint_whole: ClassVar[bool] = True  # rows are set while frozen, and `seen` never trains

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(_random_rows(classes, width))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def forward(self, features: Tensor, mask_unseen: bool = False) -> Tensor:
        """Logits (B, C) of features (B, d); with `mask_unseen`, -inf for unseen classes."""
        logits = features @ self.prototypes.T
        return logits.masked_fill(~self.seen, -torch.inf) if mask_unseen else logits

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

    def save(self, path: Path) -> None:
        """Write rows and seen classes as safetensors; a crash leaves the old file or the new one."""
        new = path.with_name(f".{path.name}.new")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}, new)
        flush(new)
        os.replace(new, path)

    @classmethod
    def load(cls, path: Path) -> PrototypeHead:
        """What :meth:`save` wrote, of whatever size.

        Raises:
            ArtefactError: the file is missing, damaged, or something else.
        """
        try:
            state = load_file(path)
            head = cls(*state["prototypes"].shape).to(state["prototypes"].dtype)
            head.load_state_dict(state)
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ArtefactError(f"{path}: the head cannot be read ({reason}): get a fresh copy.") from error
        return head


@torch.no_grad()
def text_rows(model: nn.Module, names: Sequence[str], templates: Sequence[str], scale: float = 1.0) -> Tensor:
    """Rows (n, d) for the classes `names`: `scale` times their normalised mean text embeddings.

    Predictions are then zero-shot's, whatever `scale` is; with the model's logit scale divided by the usual norm of h,
    the logits are near zero-shot's too.

    Raises:
        UserError: `model` has no text tower.
    """
    if "text" not in model.towers:
        raise UserError(f"backbone '{model.name}' has no text tower: start the head from prototypes.")
    with preserved(model):
        model.eval()
        head = TextHead(model, names, templates).to(next(model.parameters()).device)
        return scale * head.class_features(model)


def _random_rows(count: int, width: int) -> Tensor:
    return torch.empty(count, width).uniform_(-(width**-0.5), width**-0.5)
