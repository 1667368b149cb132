"""A model of pixels instead of weights, and a folder of every kind of file that people have."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.boxes import Boxes
from vision_lowrank.data.manipulation.framing import Framing
from vision_lowrank.metrics.calibration import Calibration
from vision_lowrank.tasks.manipulation.finding import Finding


class MeanModel:
    """Takes the mean brightness for the probability, the grey values for the heat map, and the middle for the box."""

    def __init__(self):
        self.identity = "0123456789abcdef"
        self.framing = Framing("resize", 56)
        self.calibration = Calibration(threshold=0.5, origin="0.5: a test", reals=120, edits=80, uncertain=(0.4, 0.5))
        self.about = {"limits": ["Sees brightness only."], "trained on": "nothing"}
        self.explains = True
        self.batches = []

    def predict_batch(self, images, *, calibration=None, explain=False):
        self.batches.append([image.size for image in images])
        return [self._finding(image, calibration or self.calibration, explain) for image in images]

    def _finding(self, image, calibration, explain):
        if image.size == (77, 77):
            raise RuntimeError("out of memory\nwith a long story")
        grey = np.asarray(image.convert("L"), dtype=np.float32) / 255
        probability = float("nan") if image.size == (78, 78) else float(grey.mean())
        verdict = calibration.verdict(probability)
        width, height = image.size
        boxes = Boxes([(width / 4, height / 4, width / 2, height / 2)], [0.9], size=image.size)
        text, by = ("<b>words</b>", "model") if explain else (f"It is {verdict}.", "template")
        found = verdict != "real"
        return Finding(verdict, probability, boxes[: int(found)], (("texture", 0.7),) * found, text, by, grey)


@pytest.fixture
def edit_model():
    return MeanModel()


@pytest.fixture
def zoo(tmp_path):
    """16 inputs, 6 of them broken, in sub-folders with equal names; beside them what is no input."""
    root = tmp_path / "zoo"
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (150, 200, 3), dtype=np.uint8))
    photo.save(root / "photo.jpg", quality=90)
    photo.save(root / "a" / "same.png")
    Image.new("RGB", (160, 140), "white").save(root / "b" / "same.png")
    photo.convert("CMYK").save(root / "cmyk.jpg")
    photo.convert("P").save(root / "palette.gif", save_all=True, append_images=[photo.convert("P").rotate(90)])
    photo.save(root / "photo.webp")
    Image.fromarray(rng.integers(0, 65535, (140, 130), dtype=np.uint16)).save(root / "deep.tif")
    photo.convert("RGBA").save(root / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(root / "turned.jpg", exif=exif)
    photo.save(root / "nosuffix", "JPEG")
    data = (root / "photo.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (root / "empty.png").write_bytes(b"")
    (root / "text.bmp").write_text("no picture")
    (root / "dangling.png").symlink_to(root / "nowhere")
    Image.new("RGB", (77, 77)).save(root / "fails.png")
    Image.new("RGB", (78, 78)).save(root / "nan.png")
    (root / "notes.txt").write_text("no input")
    photo.save(root / ".hidden.png")
    (root / "loop").symlink_to(root)
    return root
