"""Sessions of classes: what a class-incremental learner sees, one group of new classes after another.

The C classes of a data set, in a fixed order, are cut into sessions: session 0 holds the first `base` classes, every
session t >= 1 the next `way`. Labels are 0…C-1 in that order, in every picture set of every session, so session t >= 1
has labels base + (t-1) way … base + t way - 1, and C_t = base + t way classes are seen after it. It trains on its own
classes' pictures and is tested on the test pictures of all classes seen.

Order of classes: ``natural``, or LAMDA-PILOT's shuffle, ``np.random.seed(n); np.random.permutation(C)``. Instead of
`base` and `way`, `sessions` may list the class names of every session; what it does not name is left out.

Shots: the pictures of each class are put in one order and a session takes the first K, so fewer shots are always a
subset of more. The order is that of the data set (``first``), of the SHA-256 of (seed, key) (``seed``), or begins with
the fixed shots of the literature (``paper``). The hash does not depend on other pictures or classes.

Validation pictures come from the data set's validation split. Where it has none, or where that is the test set, they
are the last of each class's training pictures in that same order, which then do not train. They are never test
pictures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from ..config.schema import Section
from ..errors import DataError, near_miss
from .base import ImageSet, Splits, joined
from .fscil_shots import FIRST, SHOTS, fixed_shots
from .images import listed
from .session_presets import PROTOCOLS, SETTINGS, Protocol, preset


def _words(*words: str) -> AfterValidator:
    """Check for one of `words`, ``seed`` or ``seed:<n>``."""

    def check(text: str) -> str:
        if text not in words and not re.fullmatch(r"seed(:\d{1,9})?", text):
            raise ValueError(f"must be {', '.join(words)}, seed (the run's) or seed:<n>, such as seed:1993")
        return text

    return AfterValidator(check)


def _each_class_once(sessions: tuple[tuple[str, ...], ...] | None) -> tuple[tuple[str, ...], ...] | None:
    """Check that there is a session, that none is empty, and that no class is listed twice."""
    if sessions is not None and not sessions:
        raise ValueError("there is no session: list the class names of one session or more")
    where: dict[str, int] = {}
    for number, names in enumerate(sessions or ()):
        if not names:
            raise ValueError(f"session {number} is empty: list its class names or leave it out")
        for name in names:
            if name in where:
                raise ValueError(
                    f"class '{name}' is in session {where[name]} and again in session {number}: list it once"
                )
            where[name] = number
    return sessions


class SessionOptions(Section):
    """Options of a ``protocol``; what is not given comes from :mod:`vision_lowrank.data.session_presets`."""

    name: Protocol = Field(description="fscil: full base, few shots; fscit: few shots throughout; cil: all pictures")
    dataset: str | None = Field(None, description="take the published sessions of this data set; null = own sessions")
    base: int | None = Field(None, ge=1, description="classes of session 0")
    way: int | None = Field(
        None, ge=1, description="new classes of every later session; cil: the last takes the remainder"
    )
    sessions: Annotated[tuple[tuple[str, ...], ...] | None, AfterValidator(_each_class_once)] = Field(
        None, description="class names of every session, the base's first; instead of base and way"
    )
    shots: int | None = Field(None, ge=1, description="training pictures per new class; null = all (fscil: 5)")
    base_shots: int | None = Field(None, ge=1, description="training pictures per base class; null = all (fscit: 10)")
    order: Annotated[str, _words("natural")] = Field(
        "natural", description="order of classes: `natural`, `seed` (the run's) or `seed:<n>` (cil: `seed:1993`)"
    )
    draw: Annotated[str, _words("first", "paper")] = Field(
        "seed", description="which shots: `first`, `seed` (the run's), `seed:<n>`, `paper` (fscil's fixed shots)"
    )
    val_shots: int = Field(0, ge=0, description="validation pictures per class, never from the test set; 0 = none")
    test: str | None = Field(None, description="name of the test set, or `val`; null = the data set's first")

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        """Fill in the preset; what is given wins over it."""
        if not isinstance(given, dict) or given.get("name") not in PROTOCOLS:
            return given
        if given.get("sessions") is not None:
            return preset(given["name"]) | {"order": "natural"} | given
        return preset(given["name"], given.get("dataset")) | given

    @model_validator(mode="after")
    def _cut_in_one_way(self) -> SessionOptions:
        if self.sessions is None:
            lacking = [key for key in ("base", "way") if getattr(self, key) is None]
            if lacking:
                raise ValueError(f"give {' and '.join(lacking)}, or the class names of every session as `sessions`")
            return self
        odd = [key for key in ("dataset", "base", "way") if getattr(self, key) is not None]
        odd += ["order"] if self.order != "natural" else []
        if odd:
            raise ValueError(f"`sessions` says which classes come when: leave out {', '.join(odd)}")
        return self

    @model_validator(mode="after")
    def _paper_draw_is_known(self) -> SessionOptions:
        if self.draw != "paper":
            return self
        if self.name != "fscil" or self.dataset not in FIRST:
            raise ValueError(f"draw=paper is for name=fscil with dataset {', '.join(FIRST)}: set draw=seed")
        assert self.base is not None
        if self.order != "natural" or self.base < FIRST[self.dataset][1]:
            raise ValueError(
                f"draw=paper has fixed shots from class {FIRST[self.dataset][1]} of {self.dataset} on: set "
                "order=natural and base no lower, or draw=seed"
            )
        if self.shots is None or self.shots > SHOTS:
            raise ValueError(f"draw=paper has {SHOTS} shots per class: lower shots, or set draw=seed")
        return self

    def sizes(self, classes: int) -> tuple[int, ...]:
        """Return the numbers of new classes of the sessions of a data set with `classes` classes; without `sessions`
        they sum to `classes`.

        Raises:
            DataError: the classes do not fit, or are not as many as the published setting has.
        """
        if self.sessions is not None:
            return tuple(map(len, self.sessions))
        base, way = self.base, self.way
        assert base is not None
        assert way is not None
        if self.dataset is not None and classes != SETTINGS[self.name][self.dataset].classes:
            expected = SETTINGS[self.name][self.dataset].classes
            raise DataError(
                f"the {self.name} setting of '{self.dataset}' has {expected} classes, the data set has {classes}: "
                "leave out protocol.dataset and give base and way."
            )
        if base > classes or (base == classes and self.name != "cil"):
            raise DataError(f"base={base} leaves no new class of {classes}: lower base.")
        whole, rest = divmod(classes - base, way)
        if rest and self.name != "cil":
            raise DataError(
                f"{classes} classes are not base={base} and sessions of way={way}: the nearest that fit are "
                f"{', '.join(_nearest(classes, base, way))}."
            )
        return (base,) + (way,) * whole + ((rest,) if rest else ())


@dataclass(frozen=True)
class Session:
    """New classes and their pictures.

    Attributes:
        number: t, from 0.
        classes: labels of the new classes, consecutive.
        train: pictures of these classes to train on; labels 0…C-1 and class names as in every other set.
        test: all test pictures of these classes.
        val: pictures of these classes for selection, None where there are none.
        shots: training pictures per class; None = all there are.
    """

    number: int
    classes: tuple[int, ...]
    train: ImageSet
    test: ImageSet
    val: ImageSet | None = None
    shots: int | None = None


@dataclass(frozen=True)
class Sessions:
    """All sessions of a data set.

    Attributes:
        classes: names of all classes in the order of the sessions, index = label.
        order: the data set's own label of each of them.
        sessions: in order; every class is in exactly one.

    Raises:
        DataError: classes are missing or in two sessions, a session has pictures of other classes or lacks some of its
            own, or a picture is in two places.
    """

    classes: tuple[str, ...]
    order: tuple[int, ...]
    sessions: tuple[Session, ...]

    def __post_init__(self) -> None:
        held = [label for session in self.sessions for label in session.classes]
        if held != list(range(len(self.classes))):
            twice = next((self.classes[label] for label in held if held.count(label) > 1), None)
            reason = f"class '{twice}' is in two" if twice else f"they hold {held} of {len(self.classes)} classes"
            raise DataError(f"sessions must hold every class once, in the order of labels: {reason}.")
        where: dict[str, str] = {}
        for session in self.sessions:
            parts = {"training": session.train, "test": session.test, "validation": session.val}
            for kind, images in parts.items():
                if images is None:
                    continue
                odd = set(images.labels) ^ set(session.classes)
                if odd:
                    name, own = self.classes[min(odd)], min(odd) in session.classes
                    reason = f"no {kind} pictures" if own else f"{kind} pictures that are not its own"
                    raise DataError(f"session {session.number} has {reason} of class '{name}'.")
                for key in images.keys:
                    place = f"the {kind} pictures of session {session.number}"
                    if where.setdefault(key, place) is not place:
                        raise DataError(f"picture '{key}' is in {where[key]} and in {place}: give it one place.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of new classes of each session."""
        return tuple(len(session.classes) for session in self.sessions)

    def seen(self, number: int) -> int:
        """Count the classes seen up to and including session `number`: C_t."""
        return sum(self.sizes[: number + 1])

    def seen_test(self, number: int) -> ImageSet:
        """Return test pictures of all classes seen up to and including session `number`, session after session: those
        of session t are the first of session t + 1.
        """
        return joined([session.test for session in self.sessions[: number + 1]])

    def facts(self) -> dict[str, Any]:
        """Return which classes and pictures the sessions hold, for a run's record; keys of what was drawn."""
        return {"class_order": list(self.order), "sessions": [_session_facts(session) for session in self.sessions]}


def make_sessions(splits: Splits, options: SessionOptions, seed: int) -> Sessions:
    """Cut a data set into sessions.

    Args:
        splits: the data set.
        options: the protocol.
        seed: the run's, for ``order`` and ``draw`` that say ``seed``.

    Raises:
        DataError: the classes do not fit, `sessions` lists one that there is not, a class has too few pictures, the
            test set is unknown, or training, validation and test share pictures.
    """
    sizes = options.sizes(len(splits.train.classes))
    if options.sessions is None:
        order = _class_order(len(splits.train.classes), _seed_of(options.order, seed))
    else:
        order = _labels(options.sessions, splits.train.classes)
    shuffle, wanted = _seed_of(options.draw, seed), options.val_shots
    train = splits.train.of_classes(order)
    fixed = fixed_shots(options.dataset, train) if options.draw == "paper" and options.dataset else {}
    pool = _Pool(train, _draw_order(train, shuffle, fixed))
    source = _test_set(splits, options.test)
    tests = source.of_classes(order)
    tests = _Pool(tests, tests.by_class())
    if source is splits.val or not len(splits.val):
        held, last, kept = pool, slice(-wanted, None), wanted
    else:
        val = splits.val.of_classes(order)
        held, last, kept = _Pool(val, _draw_order(val, shuffle)), slice(wanted), 0

    sessions, start = [], 0
    for number, size in enumerate(sizes):
        labels = range(start, start + size)
        shots = options.base_shots if number == 0 else options.shots
        lower = f"task.protocol.{'shots' if number else 'base_shots'} or task.protocol.val_shots"
        pool.require(labels, (shots or 1) + kept, "training", lower)
        held.require(labels, wanted, "validation", "task.protocol.val_shots")
        sessions.append(
            Session(
                number,
                tuple(labels),
                train=pool.take(labels, slice(shots or -kept or None)),
                test=tests.take(labels, slice(None)),
                val=held.take(labels, last) if wanted else None,
                shots=shots,
            )
        )
        start += size
    return Sessions(train.classes, tuple(order), tuple(sessions))


class _Pool(NamedTuple):
    """Pictures, and for each class their places in the order of the draw."""

    images: ImageSet
    places: list[list[int]]

    def take(self, labels: Sequence[int], part: slice) -> ImageSet:
        """Take that part of each class's pictures."""
        return self.images.subset([place for label in labels for place in self.places[label][part]])

    def require(self, labels: Sequence[int], needed: int, kind: str, options: str) -> None:
        short = [label for label in labels if len(self.places[label]) < needed]
        if short:
            others = f" (and {len(short) - 1} more of its session)" if len(short) > 1 else ""
            raise DataError(
                f"class '{self.images.classes[short[0]]}'{others} has {len(self.places[short[0]])} {kind} pictures, "
                f"{needed} needed: add pictures or lower {options}."
            )


def _class_order(classes: int, seed: int | None) -> list[int]:
    if seed is None:
        return list(range(classes))
    # The published orders come from the legacy generator; this is np.random.seed without touching the global state.
    return np.random.RandomState(seed % 2**32).permutation(classes).tolist()


def _labels(sessions: Sequence[Sequence[str]], classes: Sequence[str]) -> list[int]:
    """Look up the data set's labels of the listed classes, in order."""
    names = [name for session in sessions for name in session]
    for name in names:
        if name not in classes:
            hint = near_miss(name, classes) or f" It has {listed(classes)}."
            raise DataError(f"protocol.sessions lists '{name}', which is no class of the data set.{hint}")
        if classes.count(name) > 1:
            raise DataError(
                f"protocol.sessions lists '{name}', which {classes.count(name)} classes are called: rename them."
            )
    return [classes.index(name) for name in names]


def _draw_order(
    images: ImageSet, seed: int | None, fixed: Mapping[int, Sequence[int]] | None = None
) -> list[list[int]]:
    """Order the places of each class's pictures, what is drawn first in front."""
    places = images.by_class()
    if seed is not None:
        digests = [hashlib.sha256(f"{seed}\t{key}".encode()).hexdigest() for key in images.keys]
        places = [sorted(members, key=digests.__getitem__) for members in places]
    for label, shots in (fixed or {}).items():
        places[label] = [*shots, *(place for place in places[label] if place not in shots)]
    return places


def _seed_of(text: str, run: int) -> int | None:
    """Read ``seed:<n>`` as n, ``seed`` as the run's seed, other words as None."""
    word, _, number = text.partition(":")
    if word != "seed":
        return None
    return int(number) if number else run


def _test_set(splits: Splits, name: str | None) -> ImageSet:
    choices = {"val": splits.val} | splits.tests if len(splits.val) else splits.tests
    name = name or next(iter(splits.tests))
    if name not in choices:
        raise DataError(f"unknown test set '{name}'.{near_miss(name, choices)} Known: {', '.join(choices)}.")
    if choices[name].classes != splits.train.classes:
        raise DataError(f"test set '{name}' has other classes than the training pictures: choose one with the same.")
    return choices[name]


def _nearest(classes: int, base: int, way: int) -> list[str]:
    """Find the nearest values of `base` and of `way`, below and above, that fit with the other unchanged."""
    new = classes - base
    bases = [each for each in (base + new % way - way, base + new % way) if 0 < each < classes]
    below = [each for each in range(1, way) if new % each == 0][-1:]
    above = [each for each in range(way + 1, new + 1) if new % each == 0][:1]
    return [f"base={each}" for each in bases] + [f"way={each}" for each in below + above]


def _session_facts(session: Session) -> dict[str, Any]:
    facts: dict[str, Any] = {"classes": list(session.classes)}
    for kind, images in (("train", session.train), ("val", session.val), ("test", session.test)):
        if images is not None:
            facts |= {f"{kind}_images": len(images), f"{kind}_hash": images.hash}
    return facts | ({"train_keys": list(session.train.keys)} if session.shots else {})
