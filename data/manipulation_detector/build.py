#!/usr/bin/env python3
"""Make the data set that the detector of this folder is trained on, from a folder of photographs and scikit-image's.

    python data/manipulation_detector/build.py PHOTOS
    vision-lowrank train configs/manipulation/photos_detector.yaml
    cp -r runs/photos_detector/seed-1/artefact/. data/manipulation_detector/

Photographs are split once, by name. Those for training are edited twice: squares of 96 pixels, which the detector sees
as they are, and whole, squeezed into its input. Those for validation and testing are whole, as pictures are scanned.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from vision_lowrank.data.edits.generate import make_edits
from vision_lowrank.data.edits.options import EditOptions
from vision_lowrank.data.images import named_as_picture
from vision_lowrank.data.manipulation.joined import relocated
from vision_lowrank.data.manipulation.schema import read_schema, write_schema
from vision_lowrank.data.manipulation.splits import SPLITS
from vision_lowrank.data.photos import photographs

DATA = Path("runs/data/detector")
PHOTOS = DATA / "photographs"
UNSEEN = ("inpaint-ns", "splice-poisson", "material", "resize-region")
WHOLE = EditOptions(photos=str(PHOTOS), size=224, per_photo=8, unseen_kinds=UNSEEN, fractions=(0.76, 0.12, 0.12))
SETS = {"whole": WHOLE, "squares": WHOLE.model_copy(update={"size": 96, "crops": 2, "per_photo": 6})}


def gather(folder: Path) -> int:
    """Copy the photographs to :data:`PHOTOS` and count them."""
    PHOTOS.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("*")):
        if named_as_picture(path.name):
            shutil.copyfile(path, PHOTOS / path.name)
    ours = photographs()
    for index, key in enumerate(ours.keys):
        ours.image(index).save(PHOTOS / f"skimage_{Path(key).stem}.png")
    return sum(1 for _ in PHOTOS.iterdir())


def join(split: str) -> None:
    """Write ``SPLIT.jsonl`` of all sets for training, of whole photographs else."""
    names = SETS if split == "train" else ("whole",)
    parts = {name: read_schema(DATA / name / f"{split}.jsonl") for name in names}
    records = (
        replace(relocated(each, part.root, DATA), id=f"{name}/{each.id}", source_id=f"{name}/{each.source_id}")
        for name, part in parts.items()
        for each in part.records
    )
    write_schema(DATA / f"{split}.jsonl", records, parts["whole"].vocabulary)


def main() -> None:
    """Gather, edit and join."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of photographs")
    found = gather(parser.parse_args().photos)
    for name, options in SETS.items():
        make_edits(options, DATA / name)
    for split in SPLITS:
        join(split)
    print(f"{found} photographs, edited, in {DATA}")


if __name__ == "__main__":
    main()
