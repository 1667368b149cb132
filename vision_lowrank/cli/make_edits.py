"""``vision-lowrank make-edits``: photographs in, a data set of edited ones out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ..data.edits.generate import make_edits
from ..data.edits.kinds import KINDS, check_kinds
from ..data.edits.options import EditOptions
from ..data.edits.reader import read_edits
from ..data.manipulation.base import ManipulationSet, ManipulationSplits, PictureRecord
from ..data.manipulation.splits import SPLITS
from ..errors import DataError
from .tables import print_table


def make_edits_command(
    photos: str,
    out: Path,
    per_photo: int,
    kinds: str | None,
    exclude: str | None,
    unseen: str | None,
    seed: int,
    size: int | None,
    crops: int | None,
    objects: Path | None,
    fractions: str,
    check: bool,
) -> None:
    """Make the data set in `out`, or go on with it, and print its counts; with `check` also audit it for shortcuts."""
    left_out = check_kinds(_names(exclude))
    chosen = tuple(kind for kind in check_kinds(_names(kinds)) or KINDS if kind not in left_out)
    options = EditOptions(
        photos=photos,
        per_photo=per_photo,
        kinds=chosen,
        unseen_kinds=_names(unseen),
        seed=seed,
        size=size,
        crops=crops,
        objects=None if objects is None else str(objects),
        fractions=_fractions(fractions),
    )
    manifest = make_edits(options, out)
    print_table(_counts(manifest))
    skipped = manifest["left_out"]["pictures"]
    if skipped:
        print(f"left out: {len(skipped)} pictures; {out / 'manifest.json'} says which and why")
    print(f"data set in {out}, SHA-256 {manifest['sha256'][:16]}")
    if check:
        from ..data.manipulation.shortcut_audit import shortcut_audit  # scikit-learn, only for this

        print(shortcut_audit(_all(read_edits(out), out.name)))


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _fractions(text: str) -> tuple[float, float, float]:
    """Parse three numbers with commas between.

    Raises:
        DataError: they are none, or their sum is not 1.
    """
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"fractions '{text}' must be three numbers, such as 0.7,0.1,0.2.") from None
    if min(train, val, test) < 0 or abs(train + val + test - 1) > 1e-6:
        raise DataError(f"fractions '{text}' must be 0 or more and sum to 1, such as 0.7,0.1,0.2.")
    return train, val, test


def _counts(manifest: dict) -> Table:
    table = Table("kind", *SPLITS)
    counts = manifest["counts"]
    table.add_row("(real)", *(str(counts[split]["real"]) for split in SPLITS))
    for kind in KINDS:
        numbers = [counts[split]["edited"].get(kind, 0) for split in SPLITS]
        if any(numbers):
            table.add_row(kind, *map(str, numbers))
    return table


def _all(splits: ManipulationSplits, name: str) -> ManipulationSet:
    """Join all pictures of a data set."""
    parts: Sequence[ManipulationSet] = (splits.train, splits.val, *splits.tests.values())
    records: list[PictureRecord] = [record for part in parts for record in part.records]
    return ManipulationSet.of(name, records, splits.train.root, splits.train.vocabulary)
