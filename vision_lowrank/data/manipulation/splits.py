"""Train, validation and test by source picture: twins never part.

Pictures with one *key*, their `group` or else their `source_id`, go to one split, which is

    h = sha1(key) mod 100;   train for h < 80, val for h < 90, test otherwise:

the same on every machine, and another picture of a known source never moves it. An explicit `split` of any picture of
the key wins for all of them; two different ones, or a source whose pictures end up in two splits, are refused.

Editors and categories that training must not see are taken out of train, val and test; their edits of test sources,
with the real pictures of the test split, are the test set ``unseen``. What was edited from a picture of train or val is
left out: its original has been seen.

Source of the rule: ours, after the splits that ManipBench (arXiv 2511.14259) calls for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ...errors import DataError, near_miss
from .base import EDITED, REAL, ManipulationSet, ManipulationSplits, PictureRecord

SPLITS = ("train", "val", "test")
CLOSED = "closed"


def bucket(key: str) -> int:
    """Compute sha1(key) mod 100."""
    return int.from_bytes(hashlib.sha1(key.encode()).digest(), "big") % 100


def split_of(key: str) -> str:
    """Assign a split to a source or group without an explicit one."""
    number = bucket(key)
    return "train" if number < 80 else "val" if number < 90 else "test"


def split_codes(images: ManipulationSet) -> np.ndarray:
    """Assign a split to every picture, (N,) int8, index into ``SPLITS``.

    Raises:
        DataError: a source or group is in two splits.
    """
    explicit: dict[str, str] = {}
    keys = []
    for record in images.records:
        key = record.group or record.source_id
        keys.append(key)
        if record.split is not None and explicit.setdefault(key, record.split) != record.split:
            kind = "group" if record.group else "source"
            raise DataError(
                f"{kind} '{key}' of '{images.name}' is in two splits, {explicit[key]} and {record.split} "
                f"(picture '{record.id}'): give all its pictures one `split`, or none."
            )
    codes = {key: SPLITS.index(explicit.get(key) or split_of(key)) for key in dict.fromkeys(keys)}
    found = np.asarray([codes[key] for key in keys], dtype=np.int8)
    _check_sources(images, found)
    return found


def split(
    images: ManipulationSet, unseen_editors: Sequence[str] = (), leave_out_category: str | None = None
) -> ManipulationSplits:
    """Split one set into train, val and the test sets ``test`` and perhaps ``unseen``.

    Args:
        images: all pictures.
        unseen_editors: editors that training must not see; ``closed`` stands for all with closed access.
        leave_out_category: a kind of edit that training must not see.

    Raises:
        DataError: twins are in two splits, or an editor or category never occurs.
    """
    codes = split_codes(images)
    parts = {name: images.subset(np.flatnonzero(codes == number), name) for number, name in enumerate(SPLITS)}
    return _held_out(parts, unseen_editors, leave_out_category)


def ready_splits(
    parts: Mapping[str, ManipulationSet], unseen_editors: Sequence[str] = (), leave_out_category: str | None = None
) -> ManipulationSplits:
    """Take the splits of sets that came apart: ``train``, ``test`` and perhaps ``val``, a tenth of train otherwise.

    Raises:
        DataError: one of them has pictures of another one's source or group, or no `train` is there; as in
            :func:`split`.
    """
    if "train" not in parts:
        raise DataError("there are no pictures to train on: a data set in parts needs 'train' beside 'test'.")
    check_apart(parts)
    parts = dict(parts)
    if "val" not in parts:
        parts["train"], parts["val"] = carve(parts["train"], 0.1)
    return _held_out(parts, unseen_editors, leave_out_category)


def check_apart(parts: Mapping[str, ManipulationSet]) -> None:
    """Check that no source and no group is in two of the sets.

    Raises:
        DataError: names the first one that is.
    """
    seen: dict[tuple[str, str], str] = {}
    for name, images in parts.items():
        for record in images.records:
            for kind, key in (("source", record.source_id), ("group", record.group)):
                if key is not None and seen.setdefault((kind, key), name) != name:
                    raise DataError(
                        f"{kind} '{key}' is in two splits, {seen[kind, key]} and {name} (picture '{record.id}'): "
                        "twins in both would be recognised, not judged; keep all pictures of a source in one."
                    )


def carve(images: ManipulationSet, share: float) -> tuple[ManipulationSet, ManipulationSet]:
    """Carve off a stable `share` for validation, by sources and groups like :func:`split_of`: (rest, validation)."""
    limit = round(share * 100)
    taken = np.asarray([bucket(record.group or record.source_id) < limit for record in images.records], dtype=bool)
    _check_sources(images, taken.astype(np.int8))
    return images.subset(np.flatnonzero(~taken), "train"), images.subset(np.flatnonzero(taken), "val")


def leave_one_editor_out(images: ManipulationSet) -> Iterator[tuple[str, ManipulationSplits]]:
    """Yield (editor, the splits in which training never sees it) for every editor of the set."""
    for editor in images.editors.names:
        yield editor, split(images, unseen_editors=(editor,))


def leave_one_category_out(images: ManipulationSet) -> Iterator[tuple[str, ManipulationSplits]]:
    """Yield (category, the splits in which training never sees it) for every category of the set."""
    for category in images.categories.names:
        yield category, split(images, leave_out_category=category)


def _held_out(parts: Mapping[str, ManipulationSet], editors: Sequence[str], category: str | None) -> ManipulationSplits:
    tests = {name: images for name, images in parts.items() if name not in ("train", "val")}
    if not editors and category is None:
        return ManipulationSplits(parts["train"], parts["val"], tests)
    editors = _expanded(editors, parts.values())
    _check_known("editor", editors, {name for images in parts.values() for name in images.editors.names})
    if category is not None:
        _check_known("category", [category], {name for images in parts.values() for name in images.categories.names})
    held = {name: _is_held(images, editors, category) for name, images in parts.items()}
    kept = {name: images.subset(np.flatnonzero(~held[name])) for name, images in parts.items()}
    unseen = {
        "unseen" if len(tests) == 1 else f"{name}/unseen": images.subset(
            np.flatnonzero(held[name] | (images.labels == REAL)), "unseen" if len(tests) == 1 else f"{name}/unseen"
        )
        for name, images in tests.items()
    }
    return ManipulationSplits(kept["train"], kept["val"], {name: kept[name] for name in tests} | unseen)


def _is_held(images: ManipulationSet, editors: Sequence[str], category: str | None) -> np.ndarray:
    of_editor = np.isin(
        images.editors.codes, [images.editors.names.index(e) for e in editors if e in images.editors.names]
    )
    names = images.categories.names
    of_category = images.categories.codes == (names.index(category) if category in names else -2)
    return (of_editor | of_category) & (images.labels == EDITED)


def _expanded(editors: Sequence[str], sets: Iterable[ManipulationSet]) -> list[str]:
    """Return `editors` with ``closed`` replaced by the editors whose access is closed."""
    if CLOSED not in editors:
        return list(editors)
    records: Iterator[PictureRecord] = (record for images in sets for record in images.records)
    closed = {record.editor for record in records if record.editor_access == CLOSED and record.editor is not None}
    if not closed:
        raise DataError("unseen_editors names 'closed', but no picture has editor_access 'closed': name the editors.")
    return sorted(closed | set(editors) - {CLOSED})


def _check_known(kind: str, names: Sequence[str], known: Iterable[str]) -> None:
    known = sorted(known)
    for name in names:
        if name not in known:
            have = ", ".join(known) or "none is annotated"
            raise DataError(f"{kind} '{name}' does not occur.{near_miss(name, known)} There are: {have}.")


def _check_sources(images: ManipulationSet, codes: np.ndarray) -> None:
    """Refuse groups that tear a source apart which the keys alone would keep together."""
    pairs = np.unique(np.stack([images.sources.codes, codes.astype(np.int32)]), axis=1)
    sources, counts = np.unique(pairs[0], return_counts=True)
    torn = sources[counts > 1]
    if len(torn):
        raise DataError(
            f"source '{images.sources.names[torn[0]]}' of '{images.name}' falls into two splits because its pictures "
            "have different groups or only some have a `split`: give them all the same."
        )
