"""Base-to-novel: train on the first half of the classes, test on each half with its own class names.

The protocol of CoCoOp (arXiv 2203.05557) and its successors. With C classes in the order of their labels, base is the
first ceil(C / 2) and novel the rest. The few-shot draw is made over *all* classes and then restricted to base, so that
base pictures are those of the all-class draw with the same seed. Base is tested over base classes only, novel over
novel classes only.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import DataError
from .base import ImageSet, Splits


def base_to_novel(splits: Splits, train: ImageSet, val: ImageSet | None) -> tuple[Splits, ImageSet, ImageSet | None]:
    """Restrict splits and a few-shot draw to the base classes; novel classes become transfer sets ``novel-NAME``.

    Args:
        splits: of all classes.
        train: few-shot pictures drawn over all classes.
        val: the same for selection, or None.

    Raises:
        DataError: there are fewer than two classes.
    """
    count = len(splits.train.classes)
    if count < 2:
        raise DataError(f"base-to-novel needs two classes or more; '{splits.train.name}' has {count}.")
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
