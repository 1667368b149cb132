"""A data set of edits: twins alike, splits apart, the same bytes again, and interrupted runs that go on."""

import json
import shutil
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from vision_lowrank.config.schema import Section
from vision_lowrank.data.edits import generate
from vision_lowrank.data.edits.base import Donor
from vision_lowrank.data.edits.dividing import divide
from vision_lowrank.data.edits.generate import make_edits, plan
from vision_lowrank.data.edits.kinds import KINDS
from vision_lowrank.data.edits.objects import folder_objects, objects_by_split
from vision_lowrank.data.edits.options import EditOptions
from vision_lowrank.data.edits.photographs import Photograph, find_photographs, sources_of
from vision_lowrank.data.edits.reader import EditsConfig, edits, read_edits
from vision_lowrank.data.manipulation.base import EDITED, REAL
from vision_lowrank.errors import DataError, UserError
from vision_lowrank.registry import registry

FAST = ("splice-hard", "copy-move", "recolour", "noise", "inpaint-telea")
COLOURS = [(r, g, b) for r in (40, 200) for g in (60, 210) for b in (50, 120, 190)]


def picture(number, size=(80, 64)):
    """A photograph of one colour with grain and a slope of light."""
    rng = np.random.default_rng(number)
    slope = np.linspace(-25, 25, size[0])[None, :, None]
    pixels = np.array(COLOURS[number]) + slope + rng.normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    (root / "below").mkdir()
    for number in range(12):
        picture(number).save(root / ("below" if number % 2 else ".") / f"p{number}.png")
    return root


@pytest.fixture(scope="module")
def options(photos):
    return EditOptions(photos=str(photos), per_photo=2, kinds=FAST, unseen_kinds=("noise",))


@pytest.fixture(scope="module")
def made(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "set"
    return out, make_edits(options, out)


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sets(folder):
    splits = read_edits(folder, ("noise",))
    return [splits.train, splits.val, *splits.tests.values()]


def test_what_is_made(made):
    out, manifest = made
    assert manifest["complete"]
    assert not (out / "progress.jsonl").exists()
    for images in sets(out):
        assert set(images.labels.tolist()) == {REAL, EDITED}
        for index, record in enumerate(images.records):
            assert images.image(index).size == (record.width, record.height)
            mask = images.mask(index)
            assert mask.shape == (record.height, record.width)
            assert mask.any() == (record.label == EDITED)
            assert record.annotator == "generator"
            assert record.source_id.startswith(record.group.split("/")[-1].split(".")[0])
            if record.label == EDITED:
                assert record.cues == record.boxes[0].cues
                assert (out / record.source_image).is_file()


def test_splits_are_apart_and_seen_kinds_only(made):
    out, _ = made
    train, val, seen, unseen = sets(out)
    groups = [{record.group for record in images.records} for images in (train, val, seen)]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for images in (train, val, seen):
        assert "noise" not in [images.editors[index] for index in range(len(images))]
    assert {unseen.editors[index] for index in range(len(unseen))} == {None, "noise"}
    reals = [{r.id for r in images.records if r.label == REAL} for images in (seen, unseen)]
    assert reals[0] == reals[1]


def test_twins_are_encoded_alike(made):
    out, _ = made
    qualities = set()
    for record in (record for images in sets(out) for record in images.records if record.label == EDITED):
        with Image.open(out / record.image) as edit, Image.open(out / record.source_image) as real:
            assert edit.format == real.format == "JPEG"
            assert edit.quantization == real.quantization
            assert JpegImagePlugin.get_sampling(edit) == JpegImagePlugin.get_sampling(real)
            assert edit.size == real.size
            assert not edit.getexif()
            qualities.add(str(real.quantization))
    assert len(qualities) > 3


def test_outside_the_mask_only_the_encoding_differs(made):
    out, _ = made
    images = sets(out)[0]
    for index in np.flatnonzero(images.labels == EDITED):
        record, mask = images.records[index], images.mask(index)
        real = np.asarray(Image.open(out / record.source_image)).astype(int)
        difference = np.abs(np.asarray(images.image(index)).astype(int) - real).mean(axis=-1)
        far = np.ones_like(mask)
        for left, top, right, bottom in (region.xyxy for region in record.boxes):
            far[max(0, int(top) - 32) : int(bottom) + 32, max(0, int(left) - 32) : int(right) + 32] = False
        if far.any():
            assert difference[far].max() == 0  # blocks that the edit does not touch have the same code
        assert difference[mask].mean() > 2


def test_donors_are_of_the_same_split(photos, tmp_path):
    options = EditOptions(photos=str(photos), per_photo=3, kinds=("splice-hard",), quality=(95, 95))
    make_edits(options, tmp_path / "set")
    keys = [("below/" if number % 2 else "") + f"p{number}.png" for number in range(12)]
    sides = divide(keys, options.fractions)
    splits = read_edits(tmp_path / "set")
    checked = 0
    for split, images in (("train", splits.train), ("val", splits.val), ("test", splits.tests["seen"])):
        for index in np.flatnonzero(images.labels == EDITED):
            colour = np.asarray(images.image(index))[images.mask(index)].mean(axis=0)
            nearest = int(np.abs(np.array(COLOURS) - colour).sum(axis=1).argmin())
            assert sides[keys[nearest]] == split
            assert keys[nearest] != images.records[index].group
            checked += 1
    assert checked >= 30


def test_same_seed_same_bytes(options, made, tmp_path):
    manifest = make_edits(options, tmp_path / "again")
    assert content(tmp_path / "again") == content(made[0])
    assert manifest == made[1]
    other = make_edits(options.model_copy(update={"seed": 2}), tmp_path / "other")
    assert other["sha256"] != manifest["sha256"]


def test_an_edit_does_not_depend_on_what_else_is_made(options, made, tmp_path):
    fewer = options.model_copy(update={"per_photo": 1, "kinds": ("recolour", "noise")})
    make_edits(fewer, tmp_path / "set")
    here, there = content(tmp_path / "set"), content(made[0])
    shared = [name for name in here if name in there and name.endswith((".jpg", ".png"))]
    assert any("recolour" in name for name in shared)
    assert all(here[name] == there[name] for name in shared)


def test_an_interrupted_run_goes_on(options, made, tmp_path, monkeypatch):
    out, count, write = tmp_path / "set", 0, generate._Maker._write

    def stop_soon(self, name, data):
        nonlocal count
        count += 1
        if count == 25:
            raise KeyboardInterrupt
        write(self, name, data)

    monkeypatch.setattr(generate._Maker, "_write", stop_soon)
    with pytest.raises(KeyboardInterrupt):
        make_edits(options, out)
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    with open(out / "progress.jsonl", "a") as file:
        file.write('{"id": "cut sho')
    lost = next((out / "real").glob("*.jpg"))
    lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "real").glob("*.jpg")}
    monkeypatch.setattr(generate._Maker, "_write", write)
    make_edits(options, out)
    assert content(out) == content(made[0])
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_a_finished_set_needs_no_photographs(options, made, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "find_photographs", lambda photos: pytest.fail("looked for photographs"))
    assert make_edits(options, made[0]) == made[1]


def test_other_options_are_refused(options, made, tmp_path):
    with pytest.raises(DataError, match=r"made otherwise: seed 1 there, 7 now\. Give another folder"):
        make_edits(options.model_copy(update={"seed": 7}), made[0])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds no data set of edits"):
        make_edits(options, tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        make_edits(options, tmp_path / "damaged")


def test_changed_photographs_are_refused_on_resume(options, made, photos, tmp_path):
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    out, wanted = tmp_path / "set", options.model_copy(update={"photos": str(mine)})
    make_edits(wanted, out)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    (mine / "p0.png").unlink()
    with pytest.raises(DataError, match="photographs '"):
        make_edits(wanted, out)


def test_odd_files_are_left_out_and_counted(photos, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    (root / "broken.jpg").write_bytes(b"no picture")
    (root / "notes.txt").write_text("no picture either")
    picture(0, (63, 100)).save(root / "small.png")
    shutil.copy(root / "p0.png", root / "twice.png")
    upright = Image.Exif()
    upright[0x0112] = 6
    picture(3, (100, 70)).save(root / "turned.jpg", exif=upright)
    with pytest.warns(UserWarning, match="1 unreadable, 1 too small, 1 repeated of 16 pictures"):
        found = find_photographs(str(root))
    assert len(found.sizes) == 13
    assert found.sizes["turned.jpg"] == (70, 100) == found.load("turned.jpg").size
    whole = Photograph("turned", "turned.jpg", "train")
    assert found.pixels(whole, 50).shape == (50, 35, 3)
    assert found.pixels(whole, 500).shape == (100, 70, 3)


def test_a_photograph_that_breaks_off_is_left_out(photos, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    data = (root / "p2.png").read_bytes()
    (root / "p2.png").write_bytes(data[:200] + b"\0" * 40 + data[240:])  # its end is there
    options = EditOptions(photos=str(root), per_photo=1, kinds=("recolour",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manifest = make_edits(options, tmp_path / "set")
    reals = sum(counts["real"] for counts in manifest["counts"].values())
    assert reals == 11
    assert len(manifest["left_out"]["pictures"]) + len(manifest["left_out"]["photographs"]) == 1


def test_missing_photographs(tmp_path):
    with pytest.raises(DataError, match="does not exist: give a folder, or builtin"):
        make_edits(EditOptions(photos=str(tmp_path / "none")), tmp_path / "set")
    with pytest.raises(DataError, match="no file there is a picture"):
        find_photographs(str(tmp_path))


def test_opencv_is_asked_for_before_anything_is_written(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match="needs OpenCV"):
        make_edits(options, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_squares_of_the_builtin_photographs():
    options = EditOptions()
    photos = find_photographs("builtin")
    sides = divide(photos.sizes, options.fractions)
    sources = sources_of(photos, sides, options.pixels, options.squares, options.seed)
    assert 80 <= len(sources) <= 110
    assert {source.split for source in sources} == {"train", "val", "test"}
    for photo, (width, height) in photos.sizes.items():
        covered = np.zeros((height, width), dtype=int)
        for source in (each for each in sources if each.photo == photo):
            left, top, right, bottom = source.box
            assert (right - left, bottom - top) == (192, 192)
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        assert covered.sum() <= 16 * 192**2


def test_plan_uses_every_kind_before_one_twice():
    options = EditOptions(per_photo=7, kinds=FAST, unseen_kinds=("noise",))
    tasks = plan(options, Photograph("a", "a.png", "train"))
    assert [task.number for task in tasks] == [0, 0, 0, 0, 1, 1, 1]
    assert {task.kind for task in tasks[:4]} == set(options.seen)
    tested = plan(options, Photograph("a", "a.png", "test"))
    assert [task.id for task in tested[:7]] == [task.id for task in tasks]
    assert [task.kind for task in tested[7:]] == ["noise"] * 7


def test_divide_is_stable_and_leaves_no_split_empty():
    fractions = (0.7, 0.1, 0.2)
    names = [f"photo{number}" for number in range(10_000)]
    sides = divide(names, fractions)
    for split, share in zip(("train", "val", "test"), fractions, strict=True):
        assert list(sides.values()).count(split) == pytest.approx(10_000 * share, rel=0.08)
    fewer = divide(names[:5000], fractions)
    assert all(sides[name] == split for name, split in fewer.items())
    for count in range(3, 30):
        assert set(divide(names[:count], fractions).values()) == {"train", "val", "test"}
    assert set(divide(names[:50], (0.5, 0.0, 0.5)).values()) == {"train", "test"}
    assert set(divide(names[:2], fractions).values()) == {"train", "val"}
    assert set(divide(names, (1.0, 0.0, 0.0)).values()) == {"train"}


def test_objects_are_apart_by_concept():
    pools = objects_by_split(None, (0.7, 0.1, 0.2))
    assert set(pools) == {"train", "val", "test"}
    groups = [set(pool.groups) for pool in pools.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert min(len(pool.keys) for pool in pools.values()) > 40


def test_objects_of_a_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        folder_objects(tmp_path / "none")
    Image.new("RGB", (40, 40)).save(tmp_path / "opaque.png")
    with pytest.raises(DataError, match=r"no picture with transparent parts, only 'opaque\.png'"):
        folder_objects(tmp_path)
    cut_out = Image.new("RGBA", (40, 40))
    cut_out.paste((200, 30, 30, 255), (10, 12, 30, 20))
    cut_out.save(tmp_path / "red_bar.png")
    pool = folder_objects(tmp_path)
    name, drawn = pool.draw(np.random.default_rng(0))
    assert (name, drawn.size) == ("red bar", (20, 8))
    photo = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    edit = KINDS["paste-object"].edit(photo, Donor(objects=pool), np.random.default_rng(1))
    assert edit.cues == ("relation", "light")  # nothing is said of drawings
    assert "red bar" in edit.prompt


def test_data_part(photos, tmp_path):
    part = registry.get("data", "edits")
    assert issubclass(part.config, Section)
    config = EditsConfig(photos=str(photos), folder=str(tmp_path / "set"), per_photo=1, kinds=("blur", "noise"))
    splits = edits(config)
    assert set(splits.tests) == {"seen"}
    assert len(splits.train) + len(splits.val) + len(splits.tests["seen"]) == 24
    with pytest.raises(DataError, match="per_photo 1 there, 2 now"):
        edits(config.model_copy(update={"per_photo": 2}))
    only = EditsConfig(
        photos=str(photos), folder=str(tmp_path / "all"), per_photo=1, kinds=("noise",), fractions=(1, 0, 0)
    )
    assert [len(each) for each in (edits(only).train, edits(only).val, edits(only).tests["seen"])] == [24, 0, 0]


def test_options_that_contradict_each_other():
    with pytest.raises(DataError, match="unseen kind 'blur' is not among"):
        EditOptions(kinds=("noise",), unseen_kinds=("blur",))
    with pytest.raises(DataError, match="no kind of edit is left to train on"):
        EditOptions(kinds=("noise",), unseen_kinds=("noise",))
    with pytest.raises(DataError, match="quality 95, 75 is no range"):
        EditOptions(quality=(95, 75))
    assert EditOptions().kinds == tuple(KINDS)
