"""Example pictures of a trained detector, failures included: ``gallery.webp`` beside this file.

    python benchmarks/manipulation/gallery.py ARTEFACT
    python benchmarks/manipulation/gallery.py ARTEFACT --out FILE --squares 1       # a trial

Pictures: squares of scikit-image's photographs, which may be shown, edited by every kind that pastes no object of
others, as large as the detector's input. It must have been trained on other photographs. Four rows of four, each
picture with its annotated edit outlined, and what the detector says of it:

    found       edited and called edited, the highest pixel F1
    by chance   edited pictures, drawn with seed 1
    missed      edited and called real, the lowest probability
    false       real and called edited, the highest probability

In each row no photograph comes twice, nor does a kind of edit. A row may be short.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import RUNS, outputs_of
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from vision_lowrank.data.edits.generate import make_edits
from vision_lowrank.data.edits.kinds import KINDS
from vision_lowrank.data.edits.options import EditOptions
from vision_lowrank.data.edits.reader import read_edits
from vision_lowrank.data.manipulation.base import REAL, ManipulationSet
from vision_lowrank.tasks.manipulation.model import ManipulationModel
from vision_lowrank.tasks.manipulation.scoring import Priors, score
from vision_lowrank.viz.encoding import encode_webp
from vision_lowrank.viz.overlay import overlay

SIDE, ACROSS, GAP, TEXT = 192, 4, 6, 18
LIMIT = 300_000  # bytes
OUTLINE = (255, 64, 200)
Row = dict[str, Any]


def pictures_of(crops: int, side: int) -> ManipulationSet:
    """Make edits of squares of the built-in photographs, all of them for testing."""
    kinds = tuple(name for name, kind in KINDS.items() if not kind.objects)
    options = EditOptions(kinds=kinds, per_photo=4, crops=crops, size=side, fractions=(0, 0, 1))
    folder = RUNS / "data" / f"edits_gallery_{crops}_{side}"
    make_edits(options, folder)
    return read_edits(folder).tests["seen"]


def chosen(rows: list[Row]) -> dict[str, list[Row]]:
    """Choose the rows of the sheet, by the rule above."""
    order = np.random.default_rng(1).permutation(len(rows))
    edited = [row for row in rows if row["label"] != REAL]
    called = [row for row in edited if row["verdict"] == "edited"]
    missed = [row for row in edited if row["verdict"] == "real"]
    false = [row for row in rows if row["label"] == REAL and row["verdict"] == "edited"]
    return {
        "found": _distinct(sorted(called, key=lambda row: -(row["pixel_f1"] or 0.0))),
        "by chance": _distinct(rows[i] for i in order if rows[i]["label"] != REAL),
        "missed": _distinct(sorted(missed, key=lambda row: row["probability"])),
        "false": _distinct(sorted(false, key=lambda row: -row["probability"])),
    }


def _distinct(rows: Iterable[Row]) -> list[Row]:
    """Return the first rows of different photographs and kinds."""
    kept: list[Row] = []
    for row in rows:
        repeats = any(row["photo"] == other["photo"] or (row["editor"] or row) == other["editor"] for other in kept)
        if len(kept) < ACROSS and not repeats:
            kept.append(row)
    return kept


def sheet(detector: ManipulationModel, pictures: ManipulationSet) -> Image.Image:
    """Draw all rows with their names."""
    found = score(
        detector, pictures, outputs_of(detector, pictures), detector.calibration, Priors.of(pictures, detector.cues)
    )
    photos = [record.group or record.source_id for record in pictures.records]
    rows = [row | {"index": i, "photo": photos[i]} for i, row in enumerate(found.rows)]
    groups = chosen(rows)
    font = ImageFont.load_default(13)
    wide, high = 2 * SIDE + GAP, SIDE + 2 * TEXT + GAP
    canvas = Image.new("RGB", (ACROSS * (wide + GAP) - GAP, len(groups) * high), "white")
    draw = ImageDraw.Draw(canvas)
    for line, (name, members) in enumerate(groups.items()):
        draw.text((0, line * high + 1), name, fill="black", font=font)
        for column, row in enumerate(members):
            left, top = column * (wide + GAP), line * high + TEXT
            canvas.paste(_pair(detector, pictures, row["index"]), (left, top))
            percentage = f"{100 * row['probability']:.0f} %"
            draw.text((left, top + SIDE), f"{row['editor'] or 'real'}: {row['verdict']}, {percentage}", "black", font)
    return canvas


def _pair(detector: ManipulationModel, pictures: ManipulationSet, index: int) -> Image.Image:
    """Draw the picture with the outline of its edit, and under the detector's map and boxes."""
    image, mask = pictures.image(index), pictures.mask(index)
    (finding,) = detector.predict([image])
    outlined = np.array(image)
    if mask is not None:
        outlined[binary_dilation(mask, iterations=2) & ~mask] = OUTLINE
    both = Image.fromarray(outlined), overlay(image, finding.heatmap, finding.boxes, "")
    pair = Image.new("RGB", (2 * SIDE + GAP // 2, SIDE), "white")
    for place, each in enumerate(both):
        pair.paste(each.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place * (SIDE + GAP // 2), 0))
    return pair


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path, help="folder of a detector that was not trained on these photographs")
    parser.add_argument("--squares", type=int, default=4, help="squares of each photograph at most")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gallery.webp"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    detector = ManipulationModel.load(given.artefact)
    content = encode_webp(sheet(detector, pictures_of(given.squares, detector.framing.size)), LIMIT)
    given.out.write_bytes(content)
    print(given.out, len(content))


if __name__ == "__main__":
    main()
