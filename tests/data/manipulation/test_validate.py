import json

import numpy as np
import pytest
from fixtures.manipulation_trees import mask, picture
from PIL import Image

from vision_lowrank.cli.manipulation_data import validate_command
from vision_lowrank.data.manipulation.validate import validate
from vision_lowrank.errors import DataError


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(name, label=1, **keys):
    return {"id": name, "image": f"{name}.png", "label": label} | keys


def found(path):
    return [(problem.line, problem.kind, problem.message) for problem in validate(path).problems]


def test_a_good_set_has_no_problems(tmp_path):
    for name in ("r", "e", "s"):
        picture(tmp_path / f"{name}.png")
    mask(tmp_path / "m.png"), mask(tmp_path / "black.png", box=None)
    path = lines(
        tmp_path / "x.jsonl",
        row("r", 0, width=16, height=8, mask="black.png", boxes=[], cues=[], split="train"),
        row("e", source_id="r", mask="m.png", boxes=[{"xyxy": [0, 0, 17, 8]}], cues=["blur"], split="train"),
        row("s", 2),
    )
    checked = validate(path)
    assert checked.problems == []
    assert checked.rows == 3
    assert dict(checked.labels) == {0: 1, 1: 1, 2: 1}
    assert checked.annotated["boxes"] == 2
    assert checked.annotated["explanation"] == 0


def test_all_kinds_of_problems_come_in_one_pass_with_file_names(tmp_path):
    for name in ("r", "r2", "e", "small", "box", "stated"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "r.png").read_bytes()[:40])
    (tmp_path / "text.png").write_text("no picture")
    mask(tmp_path / "m.png"), mask(tmp_path / "black.png", box=None), mask(tmp_path / "faint.png", value=2)
    mask(tmp_path / "tiny.png", size=(8, 8), box=(0, 0, 4, 4))
    (tmp_path / "x.jsonl").write_text("")
    path = lines(
        tmp_path / "x.jsonl",
        row("r", 0, mask="m.png"),
        row("e", mask="black.png"),
        row("small", mask="tiny.png"),
        row("e", mask="faint.png"),
        row("cut"),
        row("text", mask="m.png"),
        row("gone"),
        row("box", boxes=[{"xyxy": [0, 0, 19, 8]}]),
        row("stated", width=8, height=16),
        row("e2", image="e.png", source_id="nobody"),
        row("r2", 0, source_id="r", boxes=[{"xyxy": [0, 0, 2, 2]}]),
        row("e3", image="e.png", mask="gone.png", cues=["blurr"], category="tiger"),
        row("e4", image="e.png", mask="gone.png", source_image="gone.png"),
    )
    assert [(line, kind) for line, kind, _ in found(path)] == [
        (1, "label"), (2, "label"), (3, "size"), (4, "label"), (4, "duplicate"), (5, "unreadable"), (6, "unreadable"),
        (7, "unreadable"), (8, "box"), (9, "size"), (10, "twin"), (11, "label"), (11, "twin"), (12, "line"),
        (12, "line"), (13, "unreadable"), (13, "unreadable"),
    ]  # fmt: skip
    messages = [message for _, _, message in found(path)]
    for text in (
        "'r.png' is real (label 0) but mask 'm.png' is not black",
        "'e.png' is edited (label 1) but mask 'black.png' is black.",
        "mask 'tiny.png' is 8x8, 'small.png' is 16x8: store a mask of the picture's size",
        "mask 'faint.png' is neither black and white nor 0 and 1 (its highest value is 2; white is 255)",
        "id 'e' is that of",
        "picture 'cut.png' cannot be read",
        "picture 'text.png' cannot be read: not a picture",
        "picture 'gone.png' does not exist",
        "box [0, 0, 19, 8] lies beyond 'box.png' of 16x8",
        "'stated.png' is 16x8, not 8x16 as stated.",
        "'e.png' has source_id 'nobody', but no real picture has that id",
        "source_id must be its own id 'r2', not 'r'",
        "category 'tiger' is not in the vocabulary",
        "cues 'blurr' not in the vocabulary (did you mean 'blur'?)",
        "mask 'gone.png' does not exist",
        "original 'gone.png' does not exist",
    ):
        assert any(text in message for message in messages), text
    assert len(validate(path, files_too=False).problems) == 6


def test_an_orientation_that_turns_the_picture_but_not_the_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "e.jpg", size=(16, 8), exif=exif)
    mask(tmp_path / "m.png", size=(16, 8))
    (line, kind, message), *more = found(lines(tmp_path / "x.jsonl", row("e", image="e.jpg", mask="m.png")))
    assert (line, kind, more) == (1, "size", [])
    assert "mask 'm.png' is 16x8, 'e.jpg' is 8x16: it fits the stored pixels, but the EXIF orientation turns" in message
    mask(tmp_path / "m.png", size=(8, 16))
    assert found(tmp_path / "x.jsonl") == []


def test_sources_and_groups_in_two_splits(tmp_path):
    for name in ("r", "e", "f", "g", "h"):
        picture(tmp_path / f"{name}.png")
    rows = [row("r", 0), row("e", source_id="r")]
    path = lines(tmp_path / "x.jsonl", rows[0] | {"split": "train"}, rows[1] | {"split": "test"})
    assert [(line, kind) for line, kind, _ in found(path)] == [(2, "split")]
    assert "source 'r' is in two splits, train and test ('e.png')" in found(path)[0][2]
    path.unlink()
    lines(tmp_path / "train.jsonl", rows[0], row("g", group="roll"), row("f", split="val"))
    lines(tmp_path / "test.jsonl", rows[1], row("h", group="roll"))
    messages = [message for _, _, message in found(tmp_path)]
    assert len(messages) == 3
    assert any("source 'r' is in two splits, test and train" in message for message in messages)
    assert any("group 'roll' is in two splits" in message for message in messages)
    assert any("'f' says split 'val' in the file of 'train'" in message for message in messages)
    lines(tmp_path / "one.jsonl", row("r", 0, group="a"), row("e", source_id="r", group="b"))
    assert "different groups" in found(tmp_path / "one.jsonl")[0][2]


def test_an_original_that_is_only_a_file_is_enough(tmp_path):
    picture(tmp_path / "e.png"), picture(tmp_path / "orig.png")
    rows = row("e", source_id="orig", source_image="orig.png"), row("e2", image="e.png", source_id="orig")
    assert found(lines(tmp_path / "x.jsonl", *rows))[0][:2] == (2, "twin")


def test_more_rows_than_a_block(tmp_path):
    picture(tmp_path / "e.png")
    path = lines(tmp_path / "x.jsonl", *(row(str(i), image="e.png" if i != 1030 else "no.png") for i in range(1200)))
    checked = validate(path)
    assert checked.rows == 1200
    assert [problem.line for problem in checked.problems] == [1031]


def test_the_command_prints_counts_and_writes_json(tmp_path, capsys):
    picture(tmp_path / "e.png")
    good = lines(tmp_path / "good.jsonl", row("e"))
    assert validate_command(good, None)
    assert "1 pictures (0 real, 1 edited, 0 synthetic; nothing annotated): 0 problems" in capsys.readouterr().out
    bad = lines(tmp_path / "bad.jsonl", *(row(f"no{i}") for i in range(120)))
    assert not validate_command(bad, tmp_path / "out.json")
    out = capsys.readouterr().out
    assert f"{bad}:1: picture 'no0.png' does not exist" in out
    assert "... and 20 more" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written["problems"]) == 120
    assert written["problems"][7] == {
        "file": str(bad), "line": 8, "id": "no7", "kind": "unreadable", "message": "picture 'no7.png' does not exist.",
    }  # fmt: skip
    with pytest.raises(DataError, match="no JSON Lines file"):
        validate_command(tmp_path / "no.jsonl", None)


def test_palette_and_two_level_masks_count_as_they_look(tmp_path):
    picture(tmp_path / "e.png")
    values = np.zeros((8, 16), np.uint8)
    values[2:4, 2:4] = 1
    palette = Image.fromarray(values).convert("P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.save(tmp_path / "p.png")
    Image.fromarray(values.astype(bool)).save(tmp_path / "b.png")
    assert found(lines(tmp_path / "x.jsonl", row("e", mask="p.png"), row("e1", image="e.png", mask="b.png"))) == []


def test_masks_are_judged_as_training_reads_them(tmp_path):
    picture(tmp_path / "e.png")
    mask(tmp_path / "ones.png", value=1)
    Image.new("RGBA", (16, 8), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    path = lines(tmp_path / "x.jsonl", row("e", mask="ones.png"), row("e1", image="e.png", mask="clear.png"))
    with pytest.warns(UserWarning, match="hold 0 and 1"):
        [(line, kind, message)] = found(path)
    assert (line, kind) == (2, "label")
    assert "mask 'clear.png' is white where it is transparent" in message
