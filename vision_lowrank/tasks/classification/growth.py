"""What an addition of classes did: to the new classes on their own pictures, to the old ones on reference features.

Old columns of the logits are what they were before, so the answers without the new classes are the argmax over the old
columns, and one pass of the head gives both. Nothing but a new class can take a picture away: accuracy on old classes
never rises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import CosineHead, HeadName


@dataclass(frozen=True)
class NewClass:
    """A new class on its own pictures.

    Attributes:
        name: the class.
        pictures: their number.
        accuracy: share of them that the grown classifier puts there.
        left_out: the same with each picture classified by the row that the others give; None where there are no
            others, or no row.
    """

    name: str
    pictures: int
    accuracy: float
    left_out: float | None


@dataclass(frozen=True)
class Loss:
    """An old class that lost pictures to new ones: its accuracy `before` and `after`; `by` took most of them."""

    name: str
    before: float
    after: float
    by: str


@dataclass(frozen=True)
class OldClasses:
    """What changed on the old classes, on their reference features.

    Attributes:
        classes: how many of them have reference features.
        pictures: how many features these are.
        before: accuracy among the old classes.
        after: accuracy among all.
        taken: pictures that now go to a new class, those that went to a wrong one before included.
        worst: up to three classes that lost most.
    """

    classes: int
    pictures: int
    before: float
    after: float
    taken: int
    worst: tuple[Loss, ...]


@dataclass(frozen=True)
class Growth:
    """What an addition did: the kind of head, the number of classes before it, the new ones, and what it did to the
    old ones; None where the artefact keeps no reference features of them.
    """

    head: HeadName
    classes_before: int
    new: tuple[NewClass, ...]
    old: OldClasses | None


def averaged(head: nn.Module, features: Tensor) -> Tensor:
    """Return what a row of `head` is the mean of, for `features` (N, d)."""
    return F.normalize(features, dim=-1) if isinstance(head, CosineHead) else features


@torch.no_grad()
def new_classes(
    model: nn.Module, head: nn.Module, names: Sequence[str], features: Tensor, labels: Tensor, before: int
) -> tuple[NewClass, ...]:
    """Measure the new classes `names`, columns from `before` on, on their `features` (N, d) with `labels` (N,)."""
    right = head(model, features).argmax(dim=-1) == labels
    result = []
    for label, name in enumerate(names, start=before):
        own = labels == label
        left_out = None
        if hasattr(head, "prototypes") and own.sum() > 1:
            left_out = _left_out(model, head, features[own], label)
        result.append(NewClass(name, int(own.sum()), _share(right[own]), left_out))
    return tuple(result)


@torch.no_grad()
def _left_out(model: nn.Module, head: nn.Module, features: Tensor, label: int) -> float:
    """Compute the accuracy of a class's `features` (n, d), each with the row that the n - 1 others give."""
    row, vectors = head.prototypes[label].clone(), averaged(head, features)
    right = []
    for index in range(len(features)):
        others = torch.cat([vectors[:index], vectors[index + 1 :]])
        head.prototypes[label] = others.mean(dim=0)
        right.append(head(model, features[index : index + 1]).argmax(dim=-1) == label)
    head.prototypes[label] = row
    return _share(torch.cat(right))


@torch.no_grad()
def old_classes(
    model: nn.Module, head: nn.Module, classes: Sequence[str], before: int, reference: tuple[Tensor, Tensor] | None
) -> OldClasses | None:
    """Measure the first `before` of `classes` on their reference features (N, d) and labels (N,).

    None where there are none.
    """
    if reference is None or not len(reference[1]):
        return None
    features, labels = reference
    logits = head(model, features)
    then, now = logits[:, :before].argmax(dim=-1), logits.argmax(dim=-1)
    losses = []
    for label in labels.unique().tolist():
        own = labels == label
        lost = now[own & (then == label) & (now >= before)]
        if len(lost):
            by = classes[int(lost.mode().values)]
            losses.append(Loss(classes[label], _share(then[own] == label), _share(now[own] == label), by))
    return OldClasses(
        classes=len(labels.unique()),
        pictures=len(labels),
        before=_share(then == labels),
        after=_share(now == labels),
        taken=int((now >= before).sum()),
        worst=tuple(sorted(losses, key=lambda loss: loss.after - loss.before)[:3]),
    )


def _share(right: Tensor) -> float:
    return float(right.double().mean())
