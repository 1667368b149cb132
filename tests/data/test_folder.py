import os
import pickle

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from vision_lowrank.data.folder import FolderConfig, folder, read_tree
from vision_lowrank.errors import DataError
from vision_lowrank.inference.sources import find_files
from vision_lowrank.registry import registry


def plant(root, counts, colour="red"):
    """`counts[class folder]` small pictures in each class folder."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8), colour).save(root / name / f"{i:02d}.png")
    return root


def test_registered_under_its_name():
    assert registry.get("data", "folder").target is folder


def test_a_tree_gives_sorted_keys_labels_and_readable_names(tmp_path):
    root = plant(tmp_path / "pets", {"tabby_cat": 2, "Dog": 1})
    (root / "Dog" / "deep").mkdir()
    Image.new("RGB", (5, 4), "blue").save(root / "Dog" / "deep" / "x.JPG")
    (root / "Dog" / "notes.txt").write_text("no picture")
    (root / "Dog" / ".hidden.png").write_text("no picture")
    (root / ".git").mkdir()
    images = read_tree(root)
    assert images.classes == ("Dog", "tabby cat")
    assert images.keys == ("Dog/00.png", "Dog/deep/x.JPG", "tabby_cat/00.png", "tabby_cat/01.png")
    assert images.labels == (0, 0, 1, 1)
    assert images.image(1).size == (5, 4)


def test_one_tree_is_split_by_fractions_and_the_split_is_stable(tmp_path):
    root = plant(tmp_path / "pets", {"a": 10, "b": 20})
    splits = folder(FolderConfig(root=str(root)))
    parts = [splits.train, splits.val, splits.tests["test"]]
    assert [[len(found) for found in part.by_class()] for part in parts] == [[7, 14], [1, 2], [2, 4]]
    assert sorted(key for part in parts for key in part.keys) == sorted(read_tree(root).keys)
    again = folder(FolderConfig(root=str(root)))
    assert again.train.hash == splits.train.hash
    assert folder(FolderConfig(root=str(root), seed=1)).train.hash != splits.train.hash


def test_ready_made_splits_keep_their_pictures_apart(tmp_path):
    plant(tmp_path / "tr", {"a": 2, "b": 3}, "red")
    plant(tmp_path / "te", {"a": 1, "b": 1}, "blue")
    splits = folder(FolderConfig(train=str(tmp_path / "tr"), test=str(tmp_path / "te")))
    assert splits.train.keys[0] == "train/a/00.png"
    assert splits.tests["test"].keys == ("test/a/00.png", "test/b/00.png")
    assert len(splits.val) == 0
    assert np.asarray(splits.tests["test"].image(0))[0, 0].tolist() == [0, 0, 255]
    plant(tmp_path / "va", {"a": 1, "b": 2})
    splits = folder(
        FolderConfig(
            train=str(tmp_path / "tr"), val=str(tmp_path / "va"), test=str(tmp_path / "te"), templates=("{}!",)
        )
    )
    assert len(splits.val) == 3
    assert splits.templates == ("{}!",)


def test_a_root_with_train_and_test_has_ready_made_splits(tmp_path):
    root = tmp_path / "imagenet-r"
    plant(root / "train", {"n02": 2, "n01": 1})
    plant(root / "test", {"n01": 1, "n02": 1})
    (root / ".cache").mkdir()
    splits = folder(FolderConfig(root=str(root)))
    assert splits.train.classes == ("n01", "n02")
    assert splits.train.keys == ("train/n01/00.png", "train/n02/00.png", "train/n02/01.png")
    assert splits.tests["test"].keys == ("test/n01/00.png", "test/n02/00.png")
    assert len(splits.val) == 0
    plant(root / "val", {"n01": 1, "n02": 2})
    assert len(folder(FolderConfig(root=str(root))).val) == 3


def test_a_root_with_train_and_val_alone_is_not_two_classes(tmp_path):
    plant(tmp_path / "train", {"a": 2})
    plant(tmp_path / "val", {"a": 2})
    with pytest.raises(DataError, match=r"holds 'train' and 'val' but no 'test': name the trees by data\.train"):
        folder(FolderConfig(root=str(tmp_path)))


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "validation", "test"),
        ("Train", "Valid", "Test"),
        ("TRAINING", "dev", "testing"),
        ("training_set", "val_set", "test_set"),
        ("train-images", "val-images", "test-images"),
        ("train2017", "val2017", "test2017"),
        ("1_train", "2_val", "3_test"),
        ("images_train", "images_val", "images_test"),
    ],
)
def test_usual_names_of_splits_are_splits_and_that_is_said(tmp_path, train, val, test):
    for name, count in ((train, 3), (val, 2), (test, 1)):
        plant(tmp_path / name, {"a": count, "b": count})
    splits = folder(FolderConfig(root=str(tmp_path)))
    assert splits.train.classes == ("a", "b")
    assert [len(each) for each in (splits.train, splits.val, splits.tests["test"])] == [6, 4, 2]
    assert (splits.train.keys[0], splits.val.keys[0]) == ("train/a/00.png", "val/a/00.png")
    assert splits.train.notes == (f"ready-made splits: '{train}' is train, '{val}' is val, '{test}' is test",)
    assert splits.train.image(0).size == (8, 8)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (
            ("train", "test", "extra"),
            "holds 'test' and 'train', called as splits are, and 'extra', called as none: move",
        ),
        (("train", "images"), "holds 'train', called as splits are, and 'images'"),
        (("train", "val", "valid", "test"), "'val' and 'valid' both mean val: keep one"),
        (("Train", "train", "test"), "'Train' and 'train' both mean train"),
        (("train",), r"but no 'test': .*or split one tree by data\.root='.*/train'"),
        (("val", "test"), "holds 'test' and 'val' but no 'train'"),
        (("valid",), "but no 'train' and no 'test'"),
    ],
)
def test_folders_that_are_neither_splits_nor_classes_are_refused(tmp_path, folders, said):
    for name in folders:
        plant(tmp_path / name, {"a": 2, "b": 2})
    with pytest.raises(DataError, match=said) as caught:
        folder(FolderConfig(root=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_what_is_left_out_is_said(tmp_path):
    root = plant(tmp_path / "pets", {"a": 20, "b": 20, "__MACOSX": 1, ".cache": 1})
    Image.new("RGB", (8, 8)).save(root / "loose.png")
    for name in ("notes.txt", "a/readme.md", "a/.DS_Store"):
        (root / name).write_text("no picture")
    (root / "b" / "up").symlink_to(root, target_is_directory=True)
    splits = folder(FolderConfig(root=str(root)))
    assert splits.train.classes == ("a", "b")
    assert len(splits.train) + len(splits.val) + len(splits.tests["test"]) == 40
    assert splits.train.notes == (
        f"'{root}': left out: 2 no picture ('notes.txt', 'a/readme.md'), 2 hidden ('.cache', 'a/.DS_Store'), "
        "1 made by a system ('__MACOSX'), 1 seen before ('b/up'), 1 beside the folders ('loose.png')",
    )


def test_loose_pictures_beside_ready_made_splits_are_said(tmp_path):
    for name in ("train", "test"):
        plant(tmp_path / name, {"a": 1, "b": 1})
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    assert folder(FolderConfig(root=str(tmp_path))).train.notes[1] == "left out: 1 beside the folders ('loose.png')"


def test_predicting_and_training_find_the_same_pictures(tmp_path):
    root = plant(tmp_path / "pets", {"a": 1, "b": 1, "__MACOSX": 1, ".hidden": 1})
    for name in ("x.jfif", "x.jpe", "x.JPG"):
        Image.new("RGB", (8, 8)).save(root / "a" / name, "JPEG")
    Image.new("RGB", (8, 8)).save(root / "a" / "ending", "PNG")
    Image.new("RGB", (8, 8)).save(root / "b" / ".hidden.png")
    (root / "b" / "link.png").symlink_to(root / "a" / "00.png")
    (root / "b" / "notes.txt").write_text("no picture")
    (root / "b" / "loop").symlink_to(root / "b", target_is_directory=True)
    found = find_files([root], recursive=True)
    keys = ("a/00.png", "a/ending", "a/x.JPG", "a/x.jfif", "a/x.jpe", "b/00.png", "b/link.png")
    assert read_tree(root).keys == tuple(sorted(source.name for source in found.sources)) == keys
    assert {why: len(names) for why, names in found.left_out.items()} == {
        "hidden": 2, "made by a system": 1, "no picture": 1, "seen before": 1,
    }  # fmt: skip


def test_a_class_folder_under_a_second_name_is_refused(tmp_path):
    root = plant(tmp_path / "pets", {"a": 1})
    (root / "b").symlink_to(root / "a", target_is_directory=True)
    with pytest.raises(DataError, match="b' is another class's folder under a second name: remove it"):
        read_tree(root)


def test_pipes_are_broken_pictures_and_do_not_hang(tmp_path):
    root = plant(tmp_path / "pets", {"a": 1, "b": 1})
    os.mkfifo(root / "a" / "pipe.png")
    with pytest.raises(DataError, match=r"1 of 3 pictures .* 'a/pipe\.png': no regular file"):
        read_tree(root)


def test_train_beside_other_folders_is_a_class(tmp_path):
    root = plant(tmp_path / "vehicles", {"train": 10, "tram": 10})
    assert folder(FolderConfig(root=str(root))).train.classes == ("train", "tram")


def test_linked_class_folders_are_followed(tmp_path):
    real = plant(tmp_path / "real", {"a": 2})
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(real / "a", target_is_directory=True)
    assert read_tree(tmp_path / "links").keys == ("a/00.png", "a/01.png")


def test_trees_travel_to_worker_processes(tmp_path):
    images = read_tree(plant(tmp_path / "pets", {"a": 1}))
    assert pickle.loads(pickle.dumps(images)).image(0).size == (8, 8)


def test_missing_folder_names_the_nearest(tmp_path):
    plant(tmp_path / "train", {"a": 1})
    with pytest.raises(DataError, match=r"trian' does not exist. Did you mean 'train'"):
        read_tree(tmp_path / "trian")


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match="is a file"):
        read_tree(tmp_path / "x.zip")


def test_no_class_folders(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="no class folders"):
        read_tree(tmp_path)


def test_a_class_without_pictures_says_what_is_looked_for(tmp_path):
    root = plant(tmp_path / "pets", {"a": 1, "b": 0})
    with pytest.raises(DataError, match=r"b' has no pictures \(looked for \.jpg \.jpeg \.png"):
        read_tree(root)


def test_two_folders_of_one_name(tmp_path):
    root = plant(tmp_path / "pets", {"big_dog": 1, "big dog": 1})
    with pytest.raises(DataError, match=r"'big dog', 'big_dog' .*same class name 'big dog'"):
        read_tree(root)


def test_broken_pictures_stop_or_are_left_out_with_a_warning(tmp_path):
    root = plant(tmp_path / "pets", {"a": 3, "b": 1})
    (root / "a" / "01.png").write_bytes(b"oops")
    with pytest.raises(DataError, match=r"1 of 4 pictures .* 'a/01.png': not a picture"):
        read_tree(root)
    with pytest.warns(UserWarning, match="1 of 4 pictures"):
        assert read_tree(root, skip_broken=True).keys == ("a/00.png", "a/02.png", "b/00.png")
    (root / "b" / "00.png").write_bytes(b"oops")
    with pytest.warns(UserWarning, match="2 of 4"), pytest.raises(DataError, match="b' has no readable pictures"):
        read_tree(root, skip_broken=True)


def test_different_class_folders_are_listed(tmp_path):
    plant(tmp_path / "tr", {"a": 1, "b": 1, "c": 1})
    plant(tmp_path / "te", {"a": 1, "d": 1})
    with pytest.raises(DataError, match=r"train and test .*only train has 'b', 'c'; only test has 'd'"):
        folder(FolderConfig(train=str(tmp_path / "tr"), test=str(tmp_path / "te")))


def test_the_same_folder_twice(tmp_path):
    root = plant(tmp_path / "tr", {"a": 1})
    with pytest.raises(DataError, match="train and test are the same folder"):
        folder(FolderConfig(train=str(root), test=f"{root}/../tr"))


@pytest.mark.parametrize(
    "values",
    [{}, {"train": "x"}, {"root": "x", "test": "y"}, {"root": "x", "fractions": (0.5, 0.1, 0.1)}, {"rooot": "x"}],
)
def test_configs_that_make_no_sense(values):
    with pytest.raises(ValidationError):
        FolderConfig(**values)
