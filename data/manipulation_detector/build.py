#!/usr/bin/env python3
"""Gather the photographs that the detector of this folder is trained on: those of a folder, and scikit-image's.

    python data/manipulation_detector/build.py PHOTOS
    vision-lowrank train configs/manipulation/photos_detector.yaml
    cp -r runs/photos_detector/seed-1/artefact/. data/manipulation_detector/

The recipe splits them once, by photograph, and makes its edits from them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from vision_lowrank.data.images import is_picture
from vision_lowrank.data.photos import photographs

GATHERED = Path("runs/data/detector_photos")


def main() -> None:
    """Copy the photographs to :data:`GATHERED`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of photographs")
    folder = parser.parse_args().photos
    GATHERED.mkdir(parents=True, exist_ok=True)
    found = [path for path in sorted(folder.rglob("*")) if is_picture(path)]
    for path in found:
        shutil.copyfile(path, GATHERED / path.name)
    ours = photographs()
    for index, key in enumerate(ours.keys):
        ours.image(index).save(GATHERED / f"skimage_{Path(key).stem}.png")
    print(f"{len(found)} + {len(ours)} photographs in {GATHERED}")


if __name__ == "__main__":
    main()
