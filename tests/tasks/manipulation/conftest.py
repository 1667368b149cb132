"""Pieces of real photographs with two planted edits each, as a data set of the schema, and a recipe for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.multimodal import fresh
from PIL import Image

from vision_lowrank.config import load_config
from vision_lowrank.data.manipulation.base import EDITED, REAL, PictureRecord, Region, Vocabulary
from vision_lowrank.data.manipulation.schema import write_schema
from vision_lowrank.data.photos import photographs
from vision_lowrank.studies.run import run

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
    images = photographs()
    whole = [images.image(index) for index, label in enumerate(images.labels) if images.classes[label] in NAMES]
    while True:
        for photograph in whole:
            width, height = (64, 64) if rng.random() < 0.5 else (64, 48)
            small = photograph.resize((photograph.width // 2, photograph.height // 2))
            x, y = rng.integers(small.width - width + 1), rng.integers(small.height - height + 1)
            yield small.crop((x, y, x + width, y + height))


def write_pair(folder, split, name, photo, rng, editors=tuple(EDITS), sides=(20, 36)):
    """A photograph and one edit of every kind, as files; their records."""
    photo.save(folder / f"{name}.png")
    known = {"width": photo.width, "height": photo.height, "scope": "local", "split": split}
    records = [PictureRecord(name, f"{name}.png", REAL, name, boxes=(), cues=(), **known)]
    for editor in editors:
        edit, cues, category = EDITS[editor]
        width, height = rng.integers(*sides, size=2)
        x, y = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
        box = tuple(int(value) for value in (x, y, x + width, y + height))
        own, mask = f"{name}-{editor}", np.zeros((photo.height, photo.width), dtype=bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        Image.fromarray(edit(np.asarray(photo), box)).save(folder / f"{own}.png")
        Image.fromarray(mask).save(folder / f"{own}-mask.png")
        records.append(
            PictureRecord(
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
  contrast: {{steps: 4, lr: 1.0e-3}}
  width: 32
  heads: 4
  boxes: 4
data: {{type: manipulation, path: {data}}}
adapter: {{type: lora, r: 2, alpha: 4, dropout: 0.1, towers: [vision], modules: [q, v, fc1], layers: "all"}}
engine: {{steps: 6, batch_size: 3, lr: 2.0e-3, tensorboard: false, checkpoint_every: 2, log_every: 1}}
"""


def write_recipe(folder, data, weights):
    """The recipe as a file of `folder`."""
    path = folder / "detection.yaml"
    path.write_text(RECIPE.format(out=folder / "runs", weights=weights, data=data))
    return path


@pytest.fixture
def detection(tmp_path, edited, tiny_weights):
    """A recipe with stages A, B and C that runs in seconds."""
    return write_recipe(tmp_path, edited, tiny_weights)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, edited, tiny_weights):
    """One run of that recipe, for tests that only look at it: (config, result, folder of its seed)."""
    config = load_config(write_recipe(tmp_path_factory.mktemp("finished"), edited, tiny_weights), ["name=finished"])
    return config, run(config), Path(config.out) / "finished" / "seed-1"


@pytest.fixture(scope="session")
def mllm_weights(tmp_path_factory):
    """A file of weights for tiny-internvl3_5 that pass a signal."""
    path = tmp_path_factory.mktemp("mllm") / "tiny.pt"
    torch.save(fresh("tiny-internvl3_5").model.state_dict(), path)
    return path


@pytest.fixture
def explaining(detection, mllm_weights):
    """Overrides that make the recipe a multimodal LLM's, with stage D."""
    return [
        f"backbone={{name: 'hf:tiny-internvl3_5', weights: {mllm_weights}}}",
        "task.explanation={steps: 3, lr: 0.05, adapter: {type: lora, r: 2, modules: [q, v]}}",
        "task.contrast.steps=2",
        "engine.steps=3",
    ]
