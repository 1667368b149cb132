"""The five training pictures of each new class that all papers on few-shot class-incremental learning share.

The published index lists (CEC, CVPR 2021, after TOPIC, CVPR 2020), as the rules they follow:

* ``mini_imagenet``, new classes 60…99: rows 500 c + {47, 67, 304, 340, 479} of ``train.csv`` (50,000 rows, sorted by
  class c), counted from 0 without the header;
* ``cub200``, new classes 100…199: positions {10, 14, 17, 19, 21} among the class's 30 training pictures in the order of
  ``images.txt``; {14, 18, 20, 21, 25} in the six classes with 29;
* ``cifar100``, new classes 60…99: places in the 50,000 training pictures in the order of the original pickled file;
  they follow no rule and are listed below.

A place means the same picture only where the training pool has the published order, so every one is checked: the pool
has the right size and the picture the right class.
"""

from __future__ import annotations

from ..errors import DataError
from .base import ImageSet

SHOTS = 5
# Data set -> its number of classes, and the first class with fixed shots; the last is the data set's last.
FIRST = {"cifar100": (100, 60), "mini_imagenet": (100, 60), "cub200": (200, 100)}

POOL = 50_000  # training pictures of CIFAR-100 and of miniImageNet
MINI_EACH, MINI_ROWS = 500, (47, 67, 304, 340, 479)
CUB_POSITIONS = {30: (10, 14, 17, 19, 21), 29: (14, 18, 20, 21, 25)}
CUB_SHORT = (106, 125, 134, 140, 189, 195)  # the classes with 29 training pictures, from class 100 on

# Sessions 1 to 8, five classes each.
CIFAR = """
33344 29774 4815 6772 48317 | 47874 7342 33262 5138 29918 | 28864 6436 47498 32471 4316 | 5093 33159 29802 3730 47740 | 4996 30548 34549 47866 2845
32834 6914 28855 4603 48126 | 29932 47055 5424 33300 3860 | 4609 47844 6380 29434 32604 | 4361 34217 46896 6550 30456 | 29664 47270 7502 32857 4923
31267 47404 6611 34427 4799 | 48003 31687 3477 5563 28509 | 33412 29545 47692 6808 5114 | 6401 4131 48102 33265 29209 | 34432 8451 6060 48279 31290
6022 48584 32337 9048 35646 | 5091 6510 30768 48023 34394 | 30310 5098 33230 6671 48349 | 4260 47371 33490 29690 5916 | 31173 4517 47689 6494 34943
6113 33894 30281 3768 48095 | 48004 28913 8276 32821 6172 | 34088 5257 47534 31249 6961 | 30404 6899 48115 34101 4985 | 35148 31823 3922 6548 48127
5089 47913 34450 3481 30815 | 5251 31683 47984 7608 34591 | 4615 47752 29837 6448 33823 | 48675 7919 31222 5686 34079 | 32964 5009 28567 6201 47039
29355 5389 3982 33909 47166 | 48032 6890 35180 31058 5177 | 31176 5235 7861 47830 35098 | 7489 34639 5266 30874 47323 | 34050 29960 7434 48208 4988
6813 5230 34580 48605 30463 | 35249 7765 31702 48444 5854 | 7433 30380 34028 47988 5211 | 47904 4929 34021 31348 7033 | 33728 30627 47507 6299 4895
"""  # noqa: E501


def fixed_shots(dataset: str, train: ImageSet) -> dict[int, tuple[int, ...]]:
    """Look up the fixed shots of every new class: label -> places in `train`, in the published order.

    Args:
        dataset: ``cifar100``, ``mini_imagenet`` or ``cub200``.
        train: all training pictures in the data set's own order and numbering of classes.

    Raises:
        DataError: `train` is not the data set in its published order.
    """
    classes, first = FIRST[dataset]
    new = range(first, classes)
    if len(train.classes) != classes:
        raise _other_order(dataset, f"it has {len(train.classes)} classes, not {classes}")
    if dataset == "cub200":
        return {label: _cub(train, label, members) for label, members in enumerate(train.by_class()) if label in new}
    if len(train) != POOL:
        raise _other_order(dataset, f"it has {len(train):,} training pictures, not {POOL:,}")
    if dataset == "mini_imagenet":
        places = {label: tuple(MINI_EACH * label + row for row in MINI_ROWS) for label in new}
    else:
        groups = CIFAR.replace("\n", "|").strip("|").split("|")
        places = {label: tuple(map(int, group.split())) for label, group in zip(new, groups, strict=True)}
    for label, shots in places.items():
        wrong = [place for place in shots if train.labels[place] != label]
        if wrong:
            found = train.classes[train.labels[wrong[0]]]
            raise _other_order(dataset, f"picture {wrong[0]} is of class '{found}', not '{train.classes[label]}'")
    return places


def _cub(train: ImageSet, label: int, members: list[int]) -> tuple[int, ...]:
    expected = 29 if label in CUB_SHORT else 30
    if len(members) != expected:
        reason = f"class '{train.classes[label]}' has {len(members)} training pictures, not {expected}"
        raise _other_order("cub200", reason)
    return tuple(members[position] for position in CUB_POSITIONS[expected])


def _other_order(dataset: str, reason: str) -> DataError:
    return DataError(
        f"the fixed shots of '{dataset}' need its training pictures in the published order, but {reason}: "
        "read the original files, or set task.protocol.draw=seed."
    )
