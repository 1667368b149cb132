import os

import pytest
from PIL import Image

from vision_lowrank.errors import DataError
from vision_lowrank.inference.sources import find_files


def names(found):
    return [source.name for source in found.sources]


@pytest.fixture
def tree(tmp_path):
    """x.png at three places, and what is no input."""
    root = tmp_path / "in"
    for folder in (".", "a", "b", ".git"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / folder / "x.png")
    (root / "notes.txt").write_text("words")
    (root / ".hidden.jpg").write_bytes(b"")
    return root


def test_folders_give_pictures_by_name_and_mirror_their_tree(tree):
    assert names(find_files([tree])) == ["x.png"]
    found = find_files([tree], recursive=True)
    assert names(found) == ["x.png", "a/x.png", "b/x.png"]
    assert [source.path for source in found.sources] == [tree / "x.png", tree / "a" / "x.png", tree / "b" / "x.png"]
    assert found.others == 1


def test_names_are_below_what_all_inputs_share(tree):
    assert names(find_files([tree / "a", tree / "b"])) == ["a/x.png", "b/x.png"]
    assert names(find_files([tree / "b" / "x.png", tree / "x.png"])) == ["b/x.png", "x.png"]
    assert names(find_files([tree / "b" / "x.png"])) == ["x.png"]


def test_each_input_counts_once(tree):
    (tree / "link").symlink_to(tree / "a")
    (tree / "a" / "up").symlink_to(tree)
    (tree / "a" / "self.png").symlink_to("self.png")
    given = [tree / "a" / "x.png", tree / "a" / ".." / "a" / "x.png", tree / "link" / "x.png", tree, tree]
    found = find_files(given, recursive=True)
    assert sorted(names(found)) == ["a/self.png", "a/x.png", "b/x.png", "x.png"]
    assert names(find_files([tree / "link"])) == ["self.png", "x.png"]
    assert len(find_files([tree / "a", tree], recursive=True).sources) == 4  # through a/up, then nothing new


def test_a_file_that_is_given_is_an_input_whatever_it_is(tree):
    assert names(find_files([tree / "notes.txt", tree / ".hidden.jpg"])) == ["notes.txt", ".hidden.jpg"]


def test_pictures_without_an_ending_are_found_by_their_first_bytes(tree):
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF"):
        Image.new("RGB", (4, 4)).save(tree / kind.lower(), kind)
    assert names(find_files([tree])) == ["gif", "jpeg", "png", "tiff", "webp", "x.png"]


@pytest.mark.parametrize("out", ["out", ".", "a"])
def test_pictures_that_a_scan_writes_are_no_inputs_and_those_beside_them_are(tree, out):
    for folder in ("heatmaps", "overlays/b", "thumbnails/picture"):
        (tree / out / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tree / out / folder / "x.png.png")
    found = find_files([tree], recursive=True, leave_out=tree / out)
    assert names(found) == ["x.png", "a/x.png", "b/x.png"]


def test_a_fifo_does_not_block(tree):
    os.mkfifo(tree / "pipe.png")
    os.mkfifo(tree / "pipe")
    assert names(find_files([tree])) == ["pipe.png", "x.png"]


def test_a_folder_that_cannot_be_listed_is_a_row(tree, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_files([tree], recursive=True)
    assert [(source.name, bool(source.problem)) for source in found.sources] == [
        ("x.png", False),
        ("a/x.png", False),
        ("b", True),
    ]
    assert "Permission denied" in found.sources[-1].problem


@pytest.mark.parametrize(
    ("given", "message"), [("a/y.png", r"does not exist\. Did you mean 'x.png'\?"), ("empty", "no pictures in")]
)
def test_nothing_to_look_at_is_an_error(tree, given, message):
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        find_files([tree / given])
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_is_a_glob(tree):
    assert names(find_files([tree / "*" / "x.png"])) == ["a/x.png", "b/x.png"]
    assert names(find_files([tree / "?"])) == ["a/x.png", "b/x.png"]  # folders too
    (tree / "[a].png").write_bytes(b"")
    assert names(find_files([tree / "[a].png"])) == ["[a].png"]
    with pytest.raises(DataError, match=r"\*\.jpg' matches nothing"):
        find_files([tree / "*.jpg"])
