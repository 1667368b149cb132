"""Pieces of real photographs with two planted edits each, as a data set of the schema, and a recipe for it."""

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.manipulation.base import EDITED, REAL, Record, Region, Vocabulary
from vision_lowrank.data.manipulation.schema import write_schema
from vision_lowrank.data.photos import photographs

SOURCES = {"train": 6, "val": 6, "test": 4}
NAMES = ("astronaut", "cat", "cup of coffee", "rocket")


def speckled(pixels, box):
    """A checkerboard on a rectangle."""
    x0, y0, x1, y1 = box
    board = np.indices((y1 - y0, x1 - x0)).sum(axis=0) % 2 * 120 - 60
    part = pixels[y0:y1, x0:x1].astype(int) + board[..., None]
    return _with(pixels, box, part.clip(0, 255))


def recoloured(pixels, box):
    """A rectangle with its channels exchanged."""
    x0, y0, x1, y1 = box
    return _with(pixels, box, 255 - pixels[y0:y1, x0:x1, ::-1].astype(int))


def _with(pixels, box, part):
    x0, y0, x1, y1 = box
    changed = pixels.copy()
    changed[y0:y1, x0:x1] = part
    return changed


EDITS = {"speckle": (speckled, ("noise", "texture"), "material"), "recolour": (recoloured, ("color",), "color")}


def photos():
    """Squares and wide pieces of photographs, of 64 pixels at most, without end."""
    rng = np.random.default_rng(0)
    whole = [photograph for name, photograph in photographs() if name in NAMES]
    while True:
        for photograph in whole:
            width, height = (64, 64) if rng.random() < 0.5 else (64, 48)
            small = photograph.resize((photograph.width // 2, photograph.height // 2))
            x, y = rng.integers(small.width - width + 1), rng.integers(small.height - height + 1)
            yield small.crop((x, y, x + width, y + height))


def write_pair(folder, split, name, photo, rng):
    """A photograph and one edit of every kind, as files; their records."""
    photo.save(folder / f"{name}.png")
    known = {"width": photo.width, "height": photo.height, "scope": "local", "split": split}
    records = [Record(name, f"{name}.png", REAL, name, boxes=(), cues=(), **known)]
    for editor, (edit, cues, category) in EDITS.items():
        width, height = rng.integers(20, 36, size=2)
        x, y = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
        box = tuple(int(value) for value in (x, y, x + width, y + height))
        own, mask = f"{name}-{editor}", np.zeros((photo.height, photo.width), dtype=bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        Image.fromarray(edit(np.asarray(photo), box)).save(folder / f"{own}.png")
        Image.fromarray(mask).save(folder / f"{own}-mask.png")
        records.append(
            Record(
                own, f"{own}.png", EDITED, name, editor=editor, category=category, mask=f"{own}-mask.png", cues=cues,
                boxes=(Region(tuple(map(float, box))),), explanation=f"A region shows {cues[0]}.", **known,
            )
        )  # fmt: skip
    return records


@pytest.fixture(scope="session")
def edited(tmp_path_factory):
    """The folder of the data set: train.jsonl, val.jsonl and test.jsonl."""
    folder, rng, supply = tmp_path_factory.mktemp("edited"), np.random.default_rng(1), photos()
    for split, sources in SOURCES.items():
        pairs = [write_pair(folder, split, f"{split}-{n}", next(supply), rng) for n in range(sources)]
        write_schema(folder / f"{split}.jsonl", [record for pair in pairs for record in pair], Vocabulary())
    return folder


RECIPE = """\
out: {out}
backbone: {{name: tiny-clip, weights: {weights}}}
task:
  type: manipulation
  seeds: [1]
  contrast: {{steps: 4, lr: 1.0e-3}}
  width: 32
  heads: 4
  boxes: 4
data: {{type: manipulation, path: {data}}}
adapter: {{type: lora, r: 2, alpha: 4, dropout: 0.1, towers: [vision], modules: [q, v, fc1], layers: "all"}}
engine: {{steps: 6, batch_size: 3, lr: 2.0e-3, tensorboard: false, checkpoint_every: 2, log_every: 1}}
"""


@pytest.fixture
def detection(tmp_path, edited, tiny_weights):
    """A recipe with stages A, B and C that runs in seconds."""
    path = tmp_path / "detection.yaml"
    path.write_text(RECIPE.format(out=tmp_path / "runs", weights=tiny_weights, data=edited))
    return path
