"""Readers of plain folders and of SID-Set, and the data set in the schema."""

import json

import numpy as np
import pytest
from fixtures.manipulation_trees import mask, picture

from vision_lowrank.data.manipulation.base import EDITED, REAL, SYNTHETIC, PictureRecord, Vocabulary
from vision_lowrank.data.manipulation.folders import EditedFoldersConfig, edited_folders, read_folders
from vision_lowrank.data.manipulation.jsonl import ManipulationConfig, manipulation
from vision_lowrank.data.manipulation.schema import write_schema
from vision_lowrank.data.manipulation.sid_set import (
    SidSetConfig,
    read_sid,
    records_of_rows,
    rows_of_records,
    sid_set,
)
from vision_lowrank.data.manipulation.validate import validate
from vision_lowrank.errors import DataError
from vision_lowrank.registry import registry


def tree(root):
    for name in ("a1.jpg", "a1_x.jpg", "b.png", "unused.png"):
        picture(root / "real" / name)
    for name in ("a1.png", "a1_x_2.png", "a1-7.png", "b2.png", "firefly/b.png", "gpt/deep/b 2.webp"):
        picture(root / "edited" / name)
    mask(root / "masks" / "a1_mask.png")
    mask(root / "masks" / "firefly" / "b.png", box=(0, 0, 2, 2))
    return root


def test_folders_pair_edits_with_originals_and_masks_by_stem(tmp_path):
    images = read_folders(tree(tmp_path / "set"))
    found = {r.id: (r.source_id, r.editor, r.mask) for r in images.records if r.label == EDITED}
    assert found == {
        "edited/a1.png": ("real/a1.jpg", None, "masks/a1_mask.png"),
        "edited/a1-7.png": ("real/a1.jpg", None, None),
        "edited/a1_x_2.png": ("real/a1_x.jpg", None, None),  # the longest stem that fits
        "edited/b2.png": ("edited/b2.png", None, None),  # no original: a source of its own
        "edited/firefly/b.png": ("real/b.png", "firefly", "masks/firefly/b.png"),
        "edited/gpt/deep/b 2.webp": ("real/b.png", "gpt", None),
    }
    reals = [r for r in images.records if r.label == REAL]
    assert [r.id for r in reals] == [r.source_id for r in reals] == sorted(r.id for r in reals)
    assert images.mask(images.editors.codes.tolist().index(images.editors.names.index("firefly"))).sum() == 4


def test_folders_that_cannot_be_paired(tmp_path):
    root = tree(tmp_path / "set")
    mask(root / "masks" / "zebra.png")
    with pytest.raises(DataError, match=r"1 masks have no edited picture, 'masks/zebra\.png'"):
        read_folders(root)
    (root / "masks" / "zebra.png").unlink()
    picture(root / "real" / "more" / "b.jpg")
    with pytest.raises(DataError, match=r"'real/b.png' and 'real/more/b.jpg' have one stem"):
        read_folders(root)
    with pytest.raises(DataError, match="has no folder 'real'"):
        read_folders(tmp_path)
    (tmp_path / "empty" / "real").mkdir(parents=True)
    with pytest.raises(DataError, match="has no pictures"):
        read_folders(tmp_path / "empty")


def test_folders_as_a_data_set(tmp_path):
    for number in range(60):
        picture(tmp_path / "one" / "real" / f"{number}.png")
        for editor in ("x", "y"):
            picture(tmp_path / "one" / "edited" / editor / f"{number}.png")
    splits = edited_folders(EditedFoldersConfig(root=str(tmp_path / "one"), unseen_editors=("y",)))
    assert {r.editor for r in splits.train.records} == {None, "x"}
    assert {r.editor for r in splits.tests["unseen"].records} == {None, "y"}
    for part in ("train", "test"):
        for number in range(20):
            picture(tmp_path / "two" / part / "real" / f"{part}{number}.png")
            picture(tmp_path / "two" / part / "edited" / f"{part}{number}.png")
    splits = edited_folders(EditedFoldersConfig(root=str(tmp_path / "two")))
    assert len(splits.train) + len(splits.val) == len(splits.tests["test"]) == 40
    assert splits.tests["test"].image(0).size == (16, 8)
    assert registry.get("data", "edited_folders").target is edited_folders


def sid(root, parts=("train", "validation")):
    for part in parts:
        for number in range(20):
            for folder in ("real", "full_synthetic", "tampered"):
                picture(root / part / folder / f"{part}{folder}{number}.jpg")
            mask(root / part / "masks" / f"{part}tampered{number}.png")
    return root


def test_sid_set_labels_masks_and_splits(tmp_path):
    splits = sid_set(SidSetConfig(root=str(sid(tmp_path))))
    test = splits.tests["test"]
    assert [int((test.labels == label).sum()) for label in (REAL, EDITED, SYNTHETIC)] == [20, 20, 20]
    assert {r.id.split("/")[0] for r in test.records} == {"validation"}
    assert {r.id.split("/")[0] for part in (splits.train, splits.val) for r in part.records} == {"train"}
    tampered = next(i for i in range(60) if test.labels[i] == EDITED)
    assert test.mask(tampered).sum() == 42
    two = sid_set(SidSetConfig(root=str(tmp_path), synthetic=False))
    assert set(two.train.labels.tolist()) == {REAL, EDITED}
    assert registry.get("data", "sid_set").target is sid_set


def test_sid_set_that_is_incomplete(tmp_path):
    sid(tmp_path, ("train",))
    with pytest.raises(
        DataError, match=r"no folder 'validation': unpack SID-Set there, see https://github\.com/hzlsaber"
    ):
        sid_set(SidSetConfig(root=str(tmp_path)))
    (tmp_path / "train" / "masks" / "traintampered3.png").unlink()
    mask(tmp_path / "train" / "masks" / "odd.png")
    with pytest.raises(DataError, match=r"do not pair: 'tampered/traintampered3\.jpg', 'masks/odd\.png'"):
        read_sid(tmp_path)


def test_sid_rows_swap_the_labels_and_come_back():
    rows = [
        {
            "img_id": f"i{label}",
            "image": f"{label}.jpg",
            "mask": "m.png" if label == 2 else None,
            "width": 9,
            "height": 7,
            "label": label,
        }
        for label in (0, 1, 2)
    ]
    records = list(records_of_rows(rows))
    assert [r.label for r in records] == [REAL, SYNTHETIC, EDITED]
    assert (records[2].mask, records[2].width, records[2].height) == ("m.png", 9, 7)
    assert list(rows_of_records(records)) == rows
    with pytest.raises(DataError, match="row 'i0': label 3"):
        list(records_of_rows([rows[0] | {"label": 3}]))


def twins(count, start=0):
    for number in range(start, start + count):
        yield PictureRecord(f"s{number}", "r.png", REAL, f"s{number}")
        yield PictureRecord(f"e{number}", "r.png", EDITED, f"s{number}", editor="e", category="color")


def test_the_schema_as_one_file_and_as_a_folder(tmp_path):
    picture(tmp_path / "one" / "r.png")
    write_schema(tmp_path / "one" / "all.jsonl", twins(100), Vocabulary())
    of_file = manipulation(ManipulationConfig(path=str(tmp_path / "one" / "all.jsonl")))
    of_folder = manipulation(ManipulationConfig(path=str(tmp_path / "one")))
    assert of_file.train.hash == of_folder.train.hash
    assert len(of_file.train) + len(of_file.val) + len(of_file.tests["test"]) == 200
    assert validate(tmp_path / "one").problems == []
    two = tmp_path / "two"
    write_schema(two / "train.jsonl", twins(50), Vocabulary())
    write_schema(two / "val.jsonl", twins(5, 100), Vocabulary())
    write_schema(two / "test.jsonl", twins(9, 200), Vocabulary())
    splits = manipulation(ManipulationConfig(path=str(two)))
    assert [len(splits.train), len(splits.val), len(splits.tests["test"])] == [100, 10, 18]
    write_schema(two / "test.jsonl", twins(9, 40), Vocabulary())
    with pytest.raises(DataError, match="source 's40' is in two splits, train and test"):
        manipulation(ManipulationConfig(path=str(two)))
    held = manipulation(ManipulationConfig(path=str(tmp_path / "one"), leave_out_category="color"))
    assert set(held.train.labels.tolist()) == {REAL}
    (two / "train.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"has no train\.jsonl, and not one JSON Lines file but 'test\.jsonl', 'val\.jsonl'"
    ):
        manipulation(ManipulationConfig(path=str(two)))
    assert json.loads((two / "schema.json").read_text())["version"] == 1
    assert registry.get("data", "manipulation").target is manipulation
    assert np.array_equal(of_file.train.labels, of_folder.train.labels)
