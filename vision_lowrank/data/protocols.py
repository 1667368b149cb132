"""Protocols beyond training and testing the same classes: base-to-novel, and transfer to other data sets.

Base-to-novel is the protocol of CoCoOp (arXiv 2203.05557) and its successors. With C classes in the order of their
labels, base is the first ceil(C / 2) and novel the rest. The few-shot draw is made over *all* classes and then
restricted to base, so that base pictures are those of the all-class draw with the same seed. Base is tested over base
classes only, novel over novel classes only.

Transfer takes the test sets of other data sets, with their own classes and templates, as they are: cross-data-set
evaluation and domain generalisation are the same thing with different lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any

from ..errors import DataError
from ..registry import registry
from .base import ImageSet, Splits

PARTS = ("train", "val", "test")  # names that say which part of a data set it is, and not of which


def base_to_novel(splits: Splits, train: ImageSet, val: ImageSet | None) -> tuple[Splits, ImageSet, ImageSet | None]:
    """Restrict splits and a few-shot draw to the base classes; novel classes become transfer sets ``novel-NAME``.

    Args:
        splits: of all classes.
        train: few-shot pictures drawn over all classes.
        val: the same for selection, or None.

    Raises:
        DataError: there are fewer than four classes, so that one half would have nothing to tell apart.
    """
    classes = len(splits.train.classes)
    if classes < 4:
        raise DataError(f"base-to-novel needs four classes or more, two in each half; here are {classes}.")
    base, novel = range(-(-classes // 2)), range(-(-classes // 2), classes)
    halves = {f"novel-{name}": (images.of_classes(novel), splits.templates) for name, images in splits.tests.items()}
    restricted = replace(
        splits,
        train=splits.train.of_classes(base),
        val=splits.val.of_classes(base),
        tests={name: images.of_classes(base) for name, images in splits.tests.items()},
        transfer=splits.transfer | halves,
    )
    return restricted, train.of_classes(base), None if val is None else val.of_classes(base)


def with_transfer(splits: Splits, sections: Sequence[Any]) -> Splits:
    """Return `splits` with the test sets of further data sections as transfer sets, every one under a name of its own.

    A set is called as its data set calls it: ``fluent``. One that is just called ``test`` has the name of its pictures
    instead, ``caltech101``, or else the type of its section. Where that is taken it becomes ``TYPE-NAME``, and then
    ``TYPE-NAME-2`` and so on.

    Raises:
        DataError: as the data sets' readers.
    """
    transfer = dict(splits.transfer)
    for section in sections:
        other = registry.get("data", section.type).target(section)
        for key, images in other.tests.items():
            name = next((each for each in (key, images.name) if each not in PARTS), section.type)
            qualified = f"{section.type}-{name}"
            names = chain((name, qualified), (f"{qualified}-{number}" for number in count(2)))
            transfer[next(each for each in names if each not in {*splits.tests, *transfer})] = (images, other.templates)
    return replace(splits, transfer=transfer)
