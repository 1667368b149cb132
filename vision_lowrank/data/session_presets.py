"""Published settings of class-incremental learning: how a data set's classes are cut into sessions.

* ``fscil``, few-shot class-incremental learning (TOPIC, Tao et al., CVPR 2020; splits as in CEC, CVPR 2021): a large
  base session with all its pictures, then 5 shots per new class, classes in natural order, the same fixed shots in
  every paper (:mod:`vision_lowrank.data.fscil_shots`).
* ``fscit``, few-shot class-incremental tuning (CoACT, arXiv 2405.16625): 10 shots per class from the first session on.
  CoACT's shots were drawn once at random and its lists are not included: by default the run's seed draws them.
* ``cil`` (LAMDA-PILOT): all pictures of every class, classes shuffled by seed 1993, a shorter last session where the
  classes do not fit. It has no data sets here: give `base` and `way`.

Numbers of ``fscil`` and ``fscit`` are not comparable with each other.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from ..errors import near_miss

Protocol = Literal["fscil", "fscit", "cil"]


class Setting(NamedTuple):
    """One data set's sessions; base + way * (sessions - 1) = classes.

    Attributes:
        classes: C, all classes of the data set.
        base: classes of session 0.
        way: new classes of every later session.
        sessions: how many there are, session 0 included.
        test: the test set, None = the data set's own. CoACT tests on ``val`` where a data set has that split.
    """

    classes: int
    base: int
    way: int
    sessions: int
    test: str | None = None


# What a protocol sets differently from the defaults of SessionOptions.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "fscil": {"shots": 5},
    "fscit": {"shots": 10, "base_shots": 10},
    "cil": {"order": "seed:1993"},
}

SETTINGS: dict[str, dict[str, Setting]] = {
    "fscil": {
        "cifar100": Setting(100, 60, 5, 9),
        "mini_imagenet": Setting(100, 60, 5, 9),
        "cub200": Setting(200, 100, 10, 11),
    },
    "fscit": {
        "caltech101": Setting(102, 12, 10, 10),
        "cifar100": Setting(100, 10, 10, 10),
        "country211": Setting(211, 22, 21, 10),
        "cub200": Setting(200, 20, 20, 10),
        "dtd": Setting(47, 7, 5, 9, test="val"),
        "eurosat": Setting(10, 1, 1, 10),
        "fgvc_aircraft": Setting(100, 10, 10, 10),
        "food101": Setting(101, 11, 10, 10, test="val"),
        "gtsrb": Setting(43, 7, 4, 10),
        "mini_imagenet": Setting(100, 10, 10, 10),
        "oxford_flowers": Setting(102, 12, 10, 10, test="val"),
        "oxford_pets": Setting(37, 5, 4, 9),
        "resisc45": Setting(45, 5, 5, 9),
        "stanford_cars": Setting(196, 28, 21, 9),
        "sun397": Setting(397, 45, 44, 9),
        "voc2007": Setting(20, 2, 2, 10),
    },
    "cil": {},
}


def preset(protocol: Protocol, dataset: str | None = None) -> dict[str, Any]:
    """Look up the options of :class:`~vision_lowrank.data.sessions.SessionOptions` that protocol and data set settle.

    Args:
        protocol: one of ``PROTOCOLS``.
        dataset: a key of ``SETTINGS[protocol]``; None = what holds for the protocol on any data set.

    Raises:
        ValueError: the protocol has no setting of that data set.
    """
    options = dict(PROTOCOLS[protocol])
    if dataset is None:
        return options
    known = SETTINGS[protocol]
    if dataset not in known:
        settings = f"Known: {', '.join(known)}" if known else "It has none"
        raise ValueError(
            f"protocol {protocol} has no setting of data set '{dataset}'.{near_miss(dataset, known)} {settings}; "
            "without `dataset`, give `base` and `way`"
        )
    setting = known[dataset]
    options |= {"base": setting.base, "way": setting.way, "test": setting.test}
    return options | ({"draw": "paper"} if protocol == "fscil" else {})
