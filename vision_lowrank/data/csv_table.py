"""Pictures listed in a table: columns ``image,label`` and perhaps ``split`` (train, val or test).

The table is UTF-8 CSV, or tab-separated where the file ends in ``.tsv``; other columns are passed over. ``image`` is a
path below `root`, or an absolute one anywhere. ``split`` may be in the usual words, ``Training`` or ``valid`` too;
without that column the pictures are split by `fractions`.
"""

from __future__ import annotations

import csv
import os
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from ..config.marks import File, Folder
from ..config.schema import Section
from ..errors import DataError, near_miss
from ..registry import register
from .base import ImageSet, Splits
from .images import listed, read_under, readable
from .options import Fractions, Templates, class_name
from .samplers import split_by_group
from .split_names import SPLITS, split_of


class CsvConfig(Section):
    """Options of ``data: {type: csv}``."""

    type: Literal["csv"] = "csv"
    file: File = Field(description="the table")
    root: Folder | None = Field(
        None, description="folder that the paths in `image` start from; null = the table's folder"
    )
    fractions: Fractions = Field((0.7, 0.1, 0.2), description="shares of train, val and test without a split column")
    seed: int = Field(0, ge=0, description="seed of that split")
    templates: Templates = Field(("a photo of a {}.",), description="prompt templates, {} = class name")
    skip_broken: bool = Field(False, description="leave out pictures that cannot be read, with a warning")


class Row(NamedTuple):
    """One line of the table: POSIX path, class name, and split ("" where there is no such column).

    The path is relative to the root, absolute where it lies outside.
    """

    key: str
    label: str
    split: str


@register(
    "data",
    "csv",
    summary="pictures listed in a table with columns image,label[,split]",
    config=CsvConfig,
    gives="classes",
)
def csv_table(config: CsvConfig) -> Splits:
    """Load the splits that a table describes.

    Raises:
        DataError: the table is missing, empty, lacks a column or has a bad line; a picture is missing or broken; a
            class of val or test never occurs in train.
    """
    table = Path(config.file)
    root = Path(config.root) if config.root is not None else table.parent
    rows = read_rows(table, root)
    kept = set(readable(root, [row.key for row in rows], config.skip_broken))
    rows = sorted(row for row in rows if row.key in kept)
    if not rows:
        raise DataError(f"table '{table}' lists no readable pictures.")
    classes = tuple(sorted({row.label for row in rows}))
    images = ImageSet(
        name=table.stem,
        classes=classes,
        labels=tuple(classes.index(row.label) for row in rows),
        keys=tuple(row.key for row in rows),
        load=partial(read_under, root),
    )
    if rows[0].split:
        train, val, test = (images.subset([i for i, row in enumerate(rows) if row.split == split]) for split in SPLITS)
        _check_classes(table, train, val, test)
    else:
        train, val, test = split_by_group(images, config.fractions, config.seed, images.keys)
    return Splits(train, val, {"test": test} if len(test) else {}, templates=config.templates)


def read_rows(table: Path, root: Path) -> list[Row]:
    """Read the lines of a table and check them.

    Args:
        table: the CSV or TSV file.
        root: folder that paths in the ``image`` column start from.

    Raises:
        DataError: names the table, the line and the reason.
    """
    if not table.is_file():
        siblings = [path.name for path in table.parent.glob("*.?sv")] if table.parent.is_dir() else []
        raise DataError(f"table '{table}' does not exist.{near_miss(table.name, siblings)} Check the path.")
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
            columns = _check_columns(table, reader.fieldnames or ())
            rows = [_row(f"table '{table}' line {reader.line_num}", line, columns, root) for line in reader]
    except UnicodeDecodeError:
        raise DataError(f"table '{table}' is not UTF-8 text: save it as CSV in UTF-8.") from None
    except csv.Error as error:
        raise DataError(f"table '{table}' is not valid CSV: {error}.") from None
    seen: set[str] = set()
    for row in rows:
        if row.key in seen:
            raise DataError(f"table '{table}' lists picture '{row.key}' twice: keep one line per picture.")
        seen.add(row.key)
    return rows


def _check_columns(table: Path, header: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Map our column names to the table's own, which may have blanks around them."""
    columns = {str(name).strip(): name for name in header}
    for needed in ("image", "label"):
        if needed not in columns:
            hint = near_miss(needed, columns)
            found = ", ".join(columns) or "none"
            raise DataError(f"table '{table}' has no column '{needed}'.{hint} Columns found: {found}; rename one.")
    return columns


def _row(where: str, line: dict[str, str], columns: dict[str, str], root: Path) -> Row:
    values = {name: (line.get(columns[name]) or "").strip() for name in ("image", "label", "split") if name in columns}
    for name, value in values.items():
        if not value:
            raise DataError(f"{where}: column '{name}' is empty.")
    split = split_of(values["split"]) if "split" in values else ""
    if split is None:
        hint = near_miss(values["split"], SPLITS)
        raise DataError(f"{where}: unknown split '{values['split']}'.{hint} Known: {', '.join(SPLITS)}.")
    image, base = Path(values["image"]).expanduser(), Path(os.path.abspath(root))
    path = Path(os.path.abspath(base / image))
    if not path.is_file():
        under = "" if image.is_absolute() else f" under '{root}'"
        raise DataError(f"{where}: picture '{image}' does not exist{under}: check the path or set `root`.")
    if path.is_relative_to(base):
        return Row(path.relative_to(base).as_posix(), class_name(values["label"]), split)
    if not image.is_absolute():
        raise DataError(f"{where}: picture '{image}' lies outside '{root}': set `root` to a folder above it.")
    return Row(path.as_posix(), class_name(values["label"]), split)


def _check_classes(table: Path, train: ImageSet, *others: ImageSet) -> None:
    if not len(train):
        raise DataError(f"table '{table}' has no lines with split 'train'.")
    unseen = {label for images in others for label in images.labels} - set(train.labels)
    if unseen:
        names = listed(train.classes[label] for label in sorted(unseen))
        raise DataError(f"table '{table}': {names} only in val or test, never in train: every class needs train lines.")
