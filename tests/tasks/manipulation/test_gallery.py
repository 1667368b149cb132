"""Pictures for people: chosen by their rules, drawn at 160 pixels, failures among them."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
from PIL import Image

from vision_lowrank.data.boxes import Boxes
from vision_lowrank.data.manipulation.base import ManipulationSet, PictureRecord, Region
from vision_lowrank.tasks.manipulation.finding import Finding
from vision_lowrank.tasks.manipulation.gallery import OUTLINE, choose, drawn, write_gallery


def row(number: int, label: int, verdict: str, p: float, f1: float | None = None, iou: float | None = None, **more):
    about = {"id": f"p{number}", "source_id": f"s{number}", "editor": "blur" if label else None}
    return about | {"label": label, "verdict": verdict, "probability": p, "pixel_f1": f1, "box_iou": iou} | more


def chosen(rows) -> dict[str, tuple[int, list[str]]]:
    found = choose([("seen", index, each) for index, each in enumerate(rows)])
    return {title: (count, [c[2]["id"] for c in picked]) for title, _, count, picked in found}


def test_every_group_follows_its_rule():
    hits = [row(n, 1, "edited", 0.99 - n / 100, f1=(n * 7 % 20) / 20) for n in range(20)]
    misses = [row(100 + n, 1, "real", 0.1 + n / 100) for n in range(8)]
    alarms = [row(200 + n, 0, "edited", 0.6 + n / 100) for n in range(3)]
    quiet = [row(300, 0, "real", 0.1), row(301, 1, "uncertain", 0.5), row(302, 0, "uncertain", 0.5)]
    order = np.random.default_rng(0).permutation(34)
    found = chosen([[*hits, *misses, *alarms, *quiet][place] for place in order])
    assert found["Hits"] == (20, ["p0", "p4", "p8", "p11", "p15", "p19"])  # round(19 i / 5)
    assert found["Worst localisations"] == (20, [f"p{n * 3 % 20}" for n in range(6)])  # 7 * 3 = 1 modulo 20
    assert found["Misses"] == (8, [f"p{100 + n}" for n in range(6)])
    assert found["False alarms"] == (3, ["p202", "p201", "p200"])


def test_box_iou_stands_in_for_masks_and_a_source_appears_once():
    rows = [
        row(0, 1, "edited", 0.9, f1=0.5),
        row(1, 1, "edited", 0.8, iou=0.2),
        row(2, 1, "edited", 0.7),  # nothing to judge
        row(3, 1, "edited", 0.6, f1=0.1, source_id="s0"),
    ]
    found = chosen(rows)
    assert found["Worst localisations"] == (3, ["p3", "p1"])
    assert found["Hits"] == (4, ["p0", "p1", "p2"])
    assert chosen([]) == dict.fromkeys(("Hits", "Worst localisations", "Misses", "False alarms"), (0, []))


def test_a_drawn_picture_is_small_and_outlines_the_mask_from_outside():
    mask = np.zeros((200, 400), dtype=bool)
    mask[50:100, 100:200] = True
    shown = np.asarray(drawn(Image.new("RGB", (400, 200), "gray"), np.zeros((200, 400)), Boxes(size=(400, 200)), mask))
    assert shown.shape == (80, 160, 3)
    outline = (shown == OUTLINE).all(axis=-1)
    ys, xs = np.nonzero(outline)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (18, 41, 38, 81)
    assert not outline[20:40, 40:80].any()
    plain = np.asarray(drawn(Image.new("RGB", (30, 20)), np.zeros((20, 30)), Boxes(size=(30, 20)), None))
    assert plain.shape == (20, 30, 3)
    assert not (plain == OUTLINE).all(axis=-1).any()


def test_gallery_file(tmp_path):
    records = [
        PictureRecord(id="real", image="a.png", label=0, source_id="real"),
        PictureRecord(id="edit", image="b.png", label=1, source_id="real", boxes=(Region((40.0, 40.0, 80.0, 80.0)),)),
    ]
    for record in records:
        Image.new("RGB", (320, 320), "gray").save(tmp_path / record.image)
    pictures = ManipulationSet.of("seen", records, tmp_path)
    boxes = Boxes([(160.0, 160.0, 300.0, 300.0)], [0.9], size=(320, 320))

    class Detector:
        asked = 0

        def eval(self):
            self.ready = True

        def predict(self, images):
            self.asked += len(images)
            assert self.ready
            return [Finding("edited", 0.9, boxes, (), "", "template", np.zeros((320, 320), dtype=np.float32))]

    own = SimpleNamespace(rows=[row(0, 0, "edited", 0.8, id="real"), row(1, 1, "edited", 0.9, iou=0.0, id="edit")])
    degraded = SimpleNamespace(rows=[row(2, 1, "real", 0.1)] * 2)
    detector = Detector()
    write_gallery(tmp_path, detector, {"seen": pictures}, {"test/seen": own, "test/seen/jpeg-70": degraded})
    groups = {group["title"]: group for group in json.loads((tmp_path / "gallery.json").read_text())}
    assert [len(group["pictures"]) for group in groups.values()] == [1, 1, 0, 1]
    assert detector.asked == 3
    shown = groups["Worst localisations"]["pictures"][0]
    assert (shown["set"], shown["id"], shown["quality"], shown["measure"]) == ("seen", "edit", 0.0, "box IoU")
    jpeg = base64.b64decode(shown["image"].removeprefix("data:image/jpeg;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)
    assert pixels.shape == (160, 160, 3)
    redness = pixels[..., 0] - pixels[..., 1]
    assert redness[18:20, 20:40].mean() > 60  # outline of the annotated box, scaled by a half
    assert abs(redness[100:120, 100:120].mean()) < 60
