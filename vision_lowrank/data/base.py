"""What every data set is: labelled images with stable keys, and the splits that a task needs.

An :class:`ImageSet` holds labels, class names and *keys* (stable names such as ``fluent/1f600`` or
``cats/01.jpg``) and loads a picture only when asked, as every :class:`~.pictures.PictureSet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from .pictures import PictureSet


@dataclass(frozen=True)
class ImageSet(PictureSet):
    """Labelled pictures.

    Attributes:
        name: a short name used in tables, such as ``fluent`` or ``test``.
        classes: class names, index = label.
        labels: one label per picture, 0 <= label < len(classes).
        keys: one stable name per picture; unique.
        load: ``load(key)`` gives the picture as an RGB ``PIL.Image``.
        captions: all captions that are true of each picture, for contrastive pretraining; empty where there are none.
        notes: what people should know of how the set was read, such as files left out.
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    keys: tuple[str, ...]
    load: Callable[[str], Image.Image] = field(repr=False)
    captions: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def image(self, index: int) -> Image.Image:
        """Load picture `index`, RGB."""
        return self.load(self.keys[index])

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """Return the pictures at `indices`, in that order; classes stay as they are."""
        return replace(
            self,
            labels=tuple(self.labels[i] for i in indices),
            keys=tuple(self.keys[i] for i in indices),
            captions=tuple(self.captions[i] for i in indices) if self.captions else (),
        )

    def of_classes(self, labels: Sequence[int]) -> ImageSet:
        """Return the pictures of some classes, renumbered in the order of `labels`."""
        number = {label: index for index, label in enumerate(labels)}
        subset = self.subset([index for index, label in enumerate(self.labels) if label in number])
        return replace(
            subset,
            classes=tuple(self.classes[label] for label in labels),
            labels=tuple(number[label] for label in subset.labels),
        )

    def by_class(self) -> list[list[int]]:
        """Group the indices of the pictures by class, in order: ``result[label] = [i, …]``."""
        groups: list[list[int]] = [[] for _ in self.classes]
        for index, label in enumerate(self.labels):
            groups[label].append(index)
        return groups

    def facts(self) -> Iterable[str]:
        """Return the class name of each picture."""
        return (self.classes[label] for label in self.labels)


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Join the pictures of several sets of the same classes, in order; name and loading are the first's."""
    return replace(
        sets[0],
        labels=tuple(label for images in sets for label in images.labels),
        keys=tuple(key for images in sets for key in images.keys),
        captions=tuple(captions for images in sets for captions in images.captions),
    )


@dataclass(frozen=True)
class Splits:
    """What a data set gives to a task.

    Attributes:
        train: the pool that training pictures are drawn from.
        val: pictures for selection (early stopping, best checkpoint); disjoint from `train` and every test set.
        tests: named test sets with the same classes as `train`; never used for selection.
        retention: named sets of what the model could do before (other styles or classes), evaluated zero-shot.
        transfer: named sets with classes and prompt templates of their own, which the adapted model must recognise by
            their prompts alone: new classes, other data sets, other domains.
        templates: prompt templates with one ``{}`` for the class name.
        val_from_train: there are no validation pictures but those a sampler sets aside from `train` (ImageNet).
        cached: ``cached(shots, seed)`` gives the few-shot selection (train, val) that is on disk, None where there is
            none; see :func:`~vision_lowrank.data.samplers.draw_shots`.
    """

    train: ImageSet
    val: ImageSet
    tests: dict[str, ImageSet]
    retention: dict[str, ImageSet] = field(default_factory=dict)
    transfer: dict[str, tuple[ImageSet, tuple[str, ...]]] = field(default_factory=dict)
    templates: tuple[str, ...] = ("a photo of a {}.",)
    val_from_train: bool = False
    cached: Callable[[int, int], tuple[ImageSet, ImageSet | None] | None] | None = field(default=None, repr=False)
