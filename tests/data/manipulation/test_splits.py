import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from vision_lowrank.data.manipulation.base import EDITED, REAL, ManipulationSet, PictureRecord
from vision_lowrank.data.manipulation.splits import (
    carve,
    leave_one_category_out,
    leave_one_editor_out,
    ready_splits,
    split,
    split_of,
)
from vision_lowrank.errors import DataError


def made(records):
    return ManipulationSet.of("made", records, Path("."))


def twins(number, editors=("e", "f"), **keys):
    real = PictureRecord(f"s{number}", f"s{number}.png", REAL, source_id=f"s{number}", **keys)
    return [
        real,
        *(
            PictureRecord(f"s{number}-{editor}", "x.png", EDITED, f"s{number}", editor=editor, category=kind, **keys)
            for editor, kind in zip(editors, ("removal", "color"), strict=False)
        ),
    ]


def ids(images):
    return {record.id for record in images.records}


def sources(images):
    return {record.source_id for record in images.records}


def test_ten_thousand_sources_fall_as_the_rule_says_and_never_into_two_splits():
    for i in range(10_000):
        number = int(hashlib.sha1(f"s{i}".encode()).hexdigest(), 16) % 100
        assert split_of(f"s{i}") == ("train" if number < 80 else "val" if number < 90 else "test")
    splits = split(made([record for i in range(10_000) for record in twins(i, ("e",))]))
    parts = [splits.train, splits.val, splits.tests["test"]]
    assert sum(len(part) for part in parts) == 20_000
    assert sum(len(sources(part)) for part in parts) == 10_000
    assert len(set().union(*(sources(part) for part in parts))) == 10_000
    assert [len(part) / 20_000 for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=0.012)


def test_the_split_does_not_depend_on_the_hash_seed():
    code = (
        "from vision_lowrank.data.manipulation.splits import split_of; print([split_of(f's{i}') for i in range(300)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{[split_of(f's{i}') for i in range(300)]}\n"}


def test_another_picture_of_a_known_source_never_moves_it():
    few = [record for i in range(50) for record in twins(i, ("e",))]
    more = few + [PictureRecord(f"s{i}-new", "x.png", EDITED, f"s{i}") for i in range(50)] + twins(99)
    before, after = split(made(few)), split(made(more))
    assert ids(before.train) <= ids(after.train)
    assert ids(before.tests["test"]) <= ids(after.tests["test"])


def test_groups_stay_together_and_explicit_splits_win():
    records = [PictureRecord(f"c{i}", "x", REAL, f"c{i}", group="photo") for i in range(30)]
    splits = split(made(records + twins(1, split="val")[:1] + twins(1)[1:]))
    parts = [splits.train, splits.val, splits.tests["test"]]
    assert [sum(id.startswith("c") for id in ids(part)) for part in parts].count(0) == 2
    assert {"s1", "s1-e", "s1-f"} <= ids(splits.val)  # one explicit twin takes the others along


def test_twins_in_two_splits_are_refused_by_name():
    with pytest.raises(DataError, match=r"source 's1' of 'made' is in two splits, train and test \(picture 's1-e'\)"):
        split(made(twins(1, split="train")[:1] + twins(1, split="test")[1:]))
    with pytest.raises(DataError, match="group 'g' of 'made' is in two splits"):
        split(
            made(
                [PictureRecord("a", "a", 0, "a", "g", split="train"), PictureRecord("b", "b", 0, "b", "g", split="val")]
            )
        )
    groups = [PictureRecord(f"e{i}", "x", 1, "s", group=f"g{i}") for i in range(40)]
    with pytest.raises(DataError, match="source 's' of 'made' falls into two splits"):
        split(made(groups))


def test_unseen_editors_leave_train_and_val_and_come_back_apart():
    images = made([record for i in range(200) for record in twins(i)])
    plain, splits = split(images), split(images, unseen_editors=["f"])
    for part in (splits.train, splits.val, splits.tests["test"]):
        assert "f" not in {record.editor for record in part.records}
        assert {0, 1} == set(part.labels.tolist())
    unseen = splits.tests["unseen"]
    assert {record.editor for record in unseen.records} == {None, "f"}
    assert sources(unseen) == sources(plain.tests["test"])  # nothing whose original trains
    assert len(unseen) == 2 * len(sources(unseen))


def test_closed_stands_for_all_closed_editors():
    records = [record for i in range(100) for record in twins(i)]
    records += [PictureRecord(f"s{i}-g", "x", 1, f"s{i}", editor="g", editor_access="closed") for i in range(100)]
    splits = split(made(records), unseen_editors=["closed", "f"])
    assert {record.editor for record in splits.train.records} == {None, "e"}
    assert {record.editor for record in splits.tests["unseen"].records} == {None, "f", "g"}
    with pytest.raises(DataError, match="no picture has editor_access 'closed'"):
        split(made(twins(1)), unseen_editors=["closed"])


def test_leave_one_out():
    images = made([record for i in range(100) for record in twins(i)])
    folds = dict(leave_one_editor_out(images))
    assert set(folds) == {"e", "f"}
    assert {record.editor for record in folds["e"].train.records} == {None, "f"}
    folds = dict(leave_one_category_out(images))
    assert set(folds) == {"removal", "color"}
    assert {record.category for record in folds["color"].train.records} == {None, "removal"}
    assert {record.category for record in folds["color"].tests["unseen"].records} == {None, "color"}


def test_names_that_do_not_occur():
    with pytest.raises(DataError, match=r"editor 'ff' does not occur\. .*There are: e, f"):
        split(made(twins(1)), unseen_editors=["ff"])
    with pytest.raises(DataError, match=r"category 'colour' does not occur\. Did you mean 'color'\?"):
        split(made(twins(1)), leave_out_category="colour")


def test_ready_parts_are_checked_and_val_is_carved():
    train = made([record for i in range(200) for record in twins(i)])
    splits = ready_splits({"train": train, "test": made(twins(1000))})
    assert 20 < len(splits.val) < 120
    assert not sources(splits.train) & sources(splits.val)
    assert ids(splits.train) | ids(splits.val) == ids(train)
    with pytest.raises(DataError, match=r"source 's3' is in two splits, train and test \(picture 's3-e'\)"):
        ready_splits({"train": train, "test": made(twins(3)[1:])})
    with pytest.raises(DataError, match="group 'g' is in two splits"):
        ready_splits(
            {
                "train": made([PictureRecord("a", "a", 0, "a", "g")]),
                "test": made([PictureRecord("b", "b", 0, "b", "g")]),
            }
        )
    with pytest.raises(DataError, match="no pictures to train on"):
        ready_splits({"test": train})


def test_carving_keeps_its_share():
    rest, val = carve(made([record for i in range(1000) for record in twins(i, ("e",))]), 0.2)
    assert abs(len(val) / 2000 - 0.2) < 0.04
    assert not sources(rest) & sources(val)
