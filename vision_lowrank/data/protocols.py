"""Protocols beyond training and testing the same classes: base-to-novel, and transfer to other data sets.

Base-to-novel is the protocol of CoCoOp (arXiv 2203.05557) and its successors. With C classes in the order of their
labels, base is the first ceil(C / 2) and novel the rest. The few-shot draw is made over *all* classes and then
restricted to base, so that base pictures are those of the all-class draw with the same seed. Base is tested over base
classes only, novel over novel classes only.

Transfer takes the test sets of other data sets, with their own classes and templates, as they are: cross-data-set
evaluation and domain generalisation are the same thing with different lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..errors import DataError
from ..registry import registry
from .base import ImageSet, Splits


def base_to_novel(splits: Splits, train: ImageSet, val: ImageSet | None) -> tuple[Splits, ImageSet, ImageSet | None]:
    """Restrict splits and a few-shot draw to the base classes; novel classes become transfer sets ``novel-NAME``.

    Args:
        splits: of all classes.
        train: few-shot pictures drawn over all classes.
        val: the same for selection, or None.

    Raises:
        DataError: there are fewer than four classes, so that one half would have nothing to tell apart.
    """
    count = len(splits.train.classes)
    if count < 4:
        raise DataError(f"base-to-novel needs four classes or more, two in each half; here are {count}.")
    base, novel = range(-(-count // 2)), range(-(-count // 2), count)
    halves = {f"novel-{name}": (images.of_classes(novel), splits.templates) for name, images in splits.tests.items()}
    restricted = replace(
        splits,
        train=splits.train.of_classes(base),
        val=splits.val.of_classes(base),
        tests={name: images.of_classes(base) for name, images in splits.tests.items()},
        transfer=splits.transfer | halves,
    )
    return restricted, train.of_classes(base), None if val is None else val.of_classes(base)


def with_transfer(splits: Splits, sections: Iterable[Any]) -> Splits:
    """Return `splits` with the test sets of further data sections as transfer sets.

    They are called as their data set calls them, or ``TYPE-NAME`` where that name is taken.

    Raises:
        DataError: as the data sets' readers.
    """
    transfer = dict(splits.transfer)
    for section in sections:
        other = registry.get("data", section.type).target(section)
        for name, images in other.tests.items():
            transfer[name if name not in {*splits.tests, *transfer} else f"{section.type}-{name}"] = (
                images,
                other.templates,
            )
    return replace(splits, transfer=transfer)
