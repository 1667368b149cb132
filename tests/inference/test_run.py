import errno
import json

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.errors import UserError
from vision_lowrank.inference import run
from vision_lowrank.inference.run import Options, scan
from vision_lowrank.inference.sources import find_files

HEADER = {"settings": {"model": "m"}}


def scanned(root, edit_model, out, header=HEADER, **options):
    sources = find_files([root], recursive=True, leave_out=out).sources
    batches = scan(sources, edit_model, edit_model.calibration, out, header, Options(**options))
    return [row for rows in batches for row in rows]


def by_name(rows, root):
    return {row.path.removeprefix(f"{root}/"): row for row in rows}


def test_every_input_gives_a_row(zoo, edit_model, tmp_path):
    rows = scanned(zoo, edit_model, tmp_path / "out", batch=4)
    assert len(rows) == len({row.path for row in rows}) == 16
    named = by_name(rows, zoo)
    broken = {"truncated.jpg", "empty.png", "text.bmp", "dangling.png", "fails.png", "nan.png"}
    assert {name for name, row in named.items() if row.error} == broken
    assert "out of memory" in named["fails.png"].error
    assert "\n" not in named["fails.png"].error
    assert "no number" in named["nan.png"].error
    for name in broken:
        assert named[name].verdict is named[name].probability is named[name].heatmap is None


def test_rows_say_what_the_detector_found(zoo, edit_model, tmp_path):
    named = by_name(scanned(zoo, edit_model, tmp_path / "out", npy=True, overlay=True), zoo)
    white = named["b/same.png"]
    assert (white.verdict, white.probability, white.width, white.height) == ("edited", 1.0, 160, 140)
    assert white.boxes == ({"xyxy": [40.0, 35.0, 80.0, 70.0], "score": 0.9},)
    assert white.cues == ({"name": "texture", "prob": 0.7},)
    assert (white.explanation, white.explained_by, white.format) == ("It is edited.", "template", "PNG")
    turned = named["turned.jpg"]
    assert (turned.width, turned.height) == (150, 200)
    with Image.open(tmp_path / "out" / turned.overlay) as shown:
        assert shown.size == (150, 200)
    grey = np.load(tmp_path / "out" / turned.npy)
    assert grey.shape == (200, 150)
    assert grey.dtype == np.float32
    levels = np.asarray(Image.open(tmp_path / "out" / turned.heatmap))
    assert levels.dtype == np.uint8
    assert np.abs(levels - 255.0 * grey).max() <= 0.5


def test_equal_names_in_sub_folders_stay_apart(zoo, edit_model, tmp_path):
    out = tmp_path / "out"
    named = by_name(scanned(zoo, edit_model, out, overlay=True), zoo)
    assert named["a/same.png"].overlay == "overlays/a/same.png.png"
    assert named["b/same.png"].heatmap == "heatmaps/b/same.png.png"
    assert np.asarray(Image.open(out / named["b/same.png"].heatmap)).min() == 255
    assert np.asarray(Image.open(out / named["a/same.png"].heatmap)).min() < 128


def test_the_batch_changes_nothing_but_the_grouping(zoo, edit_model, tmp_path, monkeypatch):
    one = scanned(zoo, edit_model, tmp_path / "1", batch=1)
    assert max(map(len, edit_model.batches)) == 1
    edit_model.batches.clear()
    seven = scanned(zoo, edit_model, tmp_path / "7", batch=7)
    assert 1 < max(map(len, edit_model.batches)) <= 7
    monkeypatch.setattr(run, "PIXELS", 2 * 150 * 200)
    bounded = scanned(zoo, edit_model, tmp_path / "p", batch=7)
    assert max(sum(w * h for w, h in sizes) for sizes in edit_model.batches[-4:]) <= 2 * 150 * 200

    def stated(rows):
        return [{**row.to_dict(), "seconds": None} for row in rows]

    assert stated(one) == stated(seven) == stated(bounded)


def test_resume_computes_nothing_again(zoo, edit_model, tmp_path):
    first = scanned(zoo, edit_model, tmp_path / "out", thumbnails=True)
    (zoo / "fails.png").unlink()
    (zoo / "nan.png").unlink()
    edit_model.batches.clear()
    again = scanned(zoo, edit_model, tmp_path / "out", thumbnails=True, resume=True)
    assert edit_model.batches == []
    assert again == [row for row in first if "fails" not in row.path and "nan" not in row.path]


@pytest.mark.parametrize("change", ["bytes", "file lost", "more wanted", "no resume"])
def test_resume_computes_what_changed(zoo, edit_model, tmp_path, change):
    out = tmp_path / "out"
    for name in ("fails.png", "nan.png"):
        (zoo / name).unlink()
    rows = by_name(scanned(zoo, edit_model, out), zoo)
    edit_model.batches.clear()
    options = {"resume": change != "no resume", "overlay": change == "more wanted"}
    expected = 10
    if change == "bytes":
        Image.new("RGB", (160, 140)).save(zoo / "b" / "same.png")
        expected = 1
    elif change == "file lost":
        (out / rows["cmyk.jpg"].heatmap).unlink()
        expected = 1
    again = by_name(scanned(zoo, edit_model, out, **options), zoo)
    assert sum(map(len, edit_model.batches)) == expected
    assert len(again) == 14
    if change == "bytes":
        assert again["b/same.png"].verdict == "real"


def test_what_was_done_before_a_stop_is_on_disk(zoo, edit_model, tmp_path):
    out = tmp_path / "out"
    sources = find_files([zoo], recursive=True).sources
    batches = scan(sources, edit_model, edit_model.calibration, out, HEADER, Options(batch=2))
    first = next(batches) + next(batches)
    batches.close()
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().split("\n") if line]
    assert [line["path"] for line in lines[1:]] == [row.path for row in first]
    edit_model.batches.clear()
    again = scanned(zoo, edit_model, out, resume=True)
    assert [row for row in again[: len(first)] if not row.error] == [row for row in first if not row.error]
    assert len(again) == 16


def test_files_of_resumed_rows_are_not_written_over(zoo, edit_model, tmp_path):
    out = tmp_path / "out"
    scanned(zoo / "b", edit_model, out)  # its same.png is white and has no folder before it
    Image.new("RGB", (150, 150)).save(zoo / "same.png")
    named = by_name(scanned(zoo, edit_model, out, resume=True), zoo)
    maps = {name: np.asarray(Image.open(out / named[name].heatmap)) for name in ("same.png", "b/same.png")}
    assert maps["same.png"].max() == 0
    assert maps["b/same.png"].min() == 255


def test_what_has_a_row_is_not_computed_again_when_a_folder_is_added(zoo, edit_model, tmp_path):
    out = tmp_path / "out"
    scanned(zoo / "b", edit_model, out, overlay=True, npy=True, thumbnails=True)
    edit_model.batches.clear()
    sources = find_files([zoo / "a", zoo / "b"]).sources  # now below a/ and b/
    options = Options(overlay=True, npy=True, thumbnails=True, resume=True)
    _, b = next(scan(sources, edit_model, edit_model.calibration, out, HEADER, options))
    assert edit_model.batches == [[(200, 150)]]
    assert (b.path, b.overlay, b.npy) == (
        str(zoo / "b" / "same.png"), "overlays/b/same.png.png", "heatmaps/b/same.png.npy"
    )  # fmt: skip
    assert np.asarray(Image.open(out / b.heatmap)).min() == 255
    assert all((out / name).is_file() for names in b.files.values() for name in names)


@pytest.mark.parametrize(
    "change", [{"explain": True}, {"header": {"settings": {"model": "another"}}}, {"explain": True, "resume": False}]
)
def test_a_scan_that_cannot_be_leaves_the_journal_as_it_is(zoo, edit_model, tmp_path, change):
    scanned(zoo / "a", edit_model, tmp_path / "out")
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    edit_model.explains = False
    with pytest.raises(UserError, match=r"--explain: this|model \"m\", now \"another\".*leave --resume out"):
        scanned(zoo / "a", edit_model, tmp_path / "out", **({"resume": True} | change))
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_mistakes_of_the_user_stop_the_scan(zoo, edit_model, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise UserError("cannot explain")

    monkeypatch.setattr(edit_model, "predict_batch", refuse)
    with pytest.raises(UserError, match="cannot explain"):
        scanned(zoo, edit_model, tmp_path / "out")


def test_an_output_that_cannot_be_written_is_said(zoo, edit_model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "heatmaps").write_text("in the way")
    with pytest.raises(UserError, match=r"heatmaps.* cannot be written: .*--resume"):
        scanned(zoo, edit_model, tmp_path / "out")


def test_one_output_that_cannot_be_written_is_the_error_of_its_row(edit_model, tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    (root / "a.png").mkdir(parents=True)
    Image.new("RGB", (130, 130)).save(root / "a", "JPEG")
    Image.new("RGB", (130, 130), "white").save(root / "a.png" / "x.png")
    Image.new("RGB", (130, 130), "white").save(root / "b.png")
    named = by_name(scanned(root, edit_model, out, batch=1), root)
    assert {name for name, row in named.items() if row.error} == {"a.png/x.png"}
    error = named["a.png/x.png"].error
    assert str(out / "heatmaps" / "a.png") in error
    assert "cannot be written" in error
    assert named["a.png/x.png"].heatmap is named["a.png/x.png"].verdict is None
    assert named["b.png"].verdict == "edited"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_an_output_folder_that_takes_nothing_stops_the_scan(zoo, edit_model, tmp_path, monkeypatch, code):
    def refuse(*args):
        raise OSError(code, "no way", "file.png")

    monkeypatch.setattr(run, "_save", refuse)
    with pytest.raises(UserError, match=r"'file.png' cannot be written: no way\. .*--resume"):
        scanned(zoo, edit_model, tmp_path / "out")


def test_names_too_long_for_an_ending_are_cut(edit_model, tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for last in "ab":
        Image.new("RGB", (130, 130), "white").save(root / f"{'x' * 250}{last}.jpg")
    rows = scanned(root, edit_model, tmp_path / "out", overlay=True, thumbnails=True)
    assert [row.error for row in rows] == [None, None]
    assert len({row.overlay for row in rows}) == 2
