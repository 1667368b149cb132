import json

import numpy as np
import pytest
from fixtures.manipulation_trees import mani, mask, picture
from PIL import Image

from vision_lowrank.cli.manipulation_data import convert_command
from vision_lowrank.data.manipulation.base import EDITED, REAL, SYNTHETIC, PictureRecord, Region, Vocabulary
from vision_lowrank.data.manipulation.convert import convert
from vision_lowrank.data.manipulation.folders import read_folders
from vision_lowrank.data.manipulation.imdl import read_mani
from vision_lowrank.data.manipulation.schema import read_schema, write_schema
from vision_lowrank.data.manipulation.sid_set import read_sid_parts
from vision_lowrank.data.manipulation.validate import validate
from vision_lowrank.errors import DataError


def test_json_to_schema_and_back_keeps_paths_labels_and_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [["z/b.png", "Negative"], ["a.jpg", "m.png"], ["z/a.png", "m.png"], ["c.png", "Negative"]]
    for image, _ in rows:
        picture(tmp_path / "data" / image)
    mask(tmp_path / "data" / "m.png")
    (tmp_path / "data" / "in.json").write_text(json.dumps(rows))
    for folder in ("data", "elsewhere/deep"):
        schema = tmp_path / folder / "set.jsonl"
        convert("imdl-json", tmp_path / "data" / "in.json", schema)
        images = read_schema(schema)
        assert images.labels.tolist() == [REAL, EDITED, EDITED, REAL]
        assert images.mask(1).sum() == 42
        assert validate(schema).problems == []
        convert("imdl-json", schema, tmp_path / "data" / "out.json")
        assert json.loads((tmp_path / "data" / "out.json").read_text()) == rows


def test_mani_to_schema_and_back(tmp_path):
    mani(tmp_path / "in", ("b", "a"))
    mask(tmp_path / "in" / "Gt" / "b_gt.png", box=(1, 1, 2, 2))
    convert("imdl-folder", tmp_path / "in", tmp_path / "set.jsonl")
    convert("imdl-folder", tmp_path / "set.jsonl", tmp_path / "out")
    one, two = read_mani(tmp_path / "in"), read_mani(tmp_path / "out")
    assert len(one) == len(two) == 2
    for index in range(2):
        assert np.array_equal(one.mask(index), two.mask(index))
        files = [images.root / images.records[index].image for images in (one, two)]
        assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(DataError, match="has pictures already"):
        convert("imdl-folder", tmp_path / "set.jsonl", tmp_path / "out")


def test_sid_set_to_schema_and_back(tmp_path):
    root = tmp_path / "in"
    for part in ("train", "validation"):
        picture(root / part / "real" / "r.jpg"), picture(root / part / "full_synthetic" / "s.png")
        picture(root / part / "tampered" / "t.png"), mask(root / part / "masks" / "t.png")
    convert("sid-set", root, tmp_path / "set.jsonl")
    assert validate(tmp_path / "set.jsonl").problems == []
    convert("sid-set", tmp_path / "set.jsonl", tmp_path / "out")
    one, two = read_sid_parts(root), read_sid_parts(tmp_path / "out")
    assert one.labels.tolist() == two.labels.tolist() == [REAL, SYNTHETIC, EDITED] * 2
    assert [r.split for r in two.records] == ["train"] * 3 + ["test"] * 3
    assert [two.mask(i).sum() for i in (2, 5)] == [42, 42]


def twins(root):
    for number in range(3):
        picture(root / "real" / f"p{number}.jpg")
        for editor, box in (("x", (0, 0, 4, 4)), ("y", (1, 1, 9, 8))):
            picture(root / "edited" / editor / f"p{number}.png")
            if number:
                mask(root / "masks" / editor / f"p{number}.png", box=box)
    return root


def test_folders_to_schema_and_back(tmp_path):
    convert("folders", twins(tmp_path / "in"), tmp_path / "set.jsonl")
    assert validate(tmp_path / "set.jsonl").problems == []
    convert("folders", tmp_path / "set.jsonl", tmp_path / "out")
    one, two = read_folders(tmp_path / "in"), read_folders(tmp_path / "out")

    def content(images):
        """Per source: label, editor and area of the mask of its pictures."""
        rows = {}
        for index, record in enumerate(images.records):
            area = None if images.mask(index) is None else int(images.mask(index).sum())
            rows.setdefault(record.source_id, []).append((record.label, record.editor, area))
        return sorted((sorted(each, key=str) for each in rows.values()), key=str)

    assert content(one) == content(two)
    assert len(content(two)) == 3
    assert not (tmp_path / "out" / ".filled").exists()


def test_annotated_boxes_become_masks_where_a_format_has_masks_only(tmp_path):
    picture(tmp_path / "e.png"), picture(tmp_path / "r.png")
    records = [
        PictureRecord("r", "r.png", REAL, "r"),
        PictureRecord("e", "e.png", EDITED, "r", boxes=(Region((2, 1, 6, 5)),)),
    ]
    write_schema(tmp_path / "set.jsonl", records, Vocabulary())
    convert("folders", tmp_path / "set.jsonl", tmp_path / "folders")
    convert("imdl-folder", tmp_path / "set.jsonl", tmp_path / "mani")
    images = read_folders(tmp_path / "folders")
    assert [images.mask(i).sum() for i in range(2)] == [0, 16]
    assert read_mani(tmp_path / "mani").mask(0).sum() == 16


def test_an_editors_name_never_leads_out_of_the_folder(tmp_path):
    picture(tmp_path / "e.png")
    write_schema(tmp_path / "set.jsonl", [PictureRecord("e", "e.png", EDITED, "e", editor="../../up")], Vocabulary())
    convert("folders", tmp_path / "set.jsonl", tmp_path / "a" / "b" / "out")
    written = [path for path in tmp_path.rglob("*.png") if path.name != "e.png"]
    assert len(written) == 1
    assert written[0].is_relative_to(tmp_path / "a" / "b" / "out" / "edited")


def test_derive_fills_in_boxes_and_automatic_masks(tmp_path):
    root, random = tmp_path / "in", np.random.default_rng(0)
    values = random.integers(80, 90, (48, 48, 3)).astype(np.uint8)
    edited = values.copy()
    edited[10:30, 12:34] += 100
    for folder, name, each in (
        ("real", "a.png", values), ("edited", "a_1.png", edited), ("edited", "a_2.png", edited),
        ("edited", "a_3.png", 255 - values), ("edited", "lost.png", edited),
    ):  # fmt: skip
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(each).save(root / folder / name)
    mask(root / "masks" / "a_2.png", size=(48, 48), box=(5, 6, 20, 30))
    convert("folders", root, tmp_path / "out" / "set.jsonl", derive=True)
    images = read_schema(tmp_path / "out" / "set.jsonl")
    real, auto, drawn, everything, lost = images.records
    assert real.boxes is None
    assert (auto.annotator, auto.derived, auto.scope, auto.mask) == ("auto", True, "local", "masks_auto/000001.png")
    assert np.abs(np.asarray(auto.boxes[0].xyxy) - [12, 10, 34, 30]).max() <= 3
    assert images.mask(1)[15, 20]
    assert (drawn.annotator, drawn.derived, [b.xyxy for b in drawn.boxes]) == (None, True, [(5, 6, 20, 30)])
    assert (everything.scope, everything.mask, everything.boxes) == ("global", None, None)
    assert (lost.boxes, lost.mask, lost.annotator) == (None, None, None)
    assert validate(tmp_path / "out" / "set.jsonl").problems == []


def test_the_command_and_its_mistakes(tmp_path, capsys):
    mani(tmp_path / "in")
    convert_command("imdl-folder", tmp_path / "in", tmp_path / "set.jsonl", False)
    assert "3 pictures, 3 of them edited" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"unknown format 'imdl-foldr'\. Did you mean 'imdl-folder'\?"):
        convert("imdl-foldr", tmp_path, tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="can only be read"):
        convert("magicbrush", tmp_path / "set.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match="--derive fills in the schema"):
        convert("folders", tmp_path / "set.jsonl", tmp_path / "out", derive=True)
