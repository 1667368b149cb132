import os
import pickle
import struct

import numpy as np
import pytest
from torchvision.datasets import utils

from vision_lowrank.data import cifar100 as module
from vision_lowrank.data.cifar100 import Cifar100Config, cifar100
from vision_lowrank.errors import DataError
from vision_lowrank.registry import registry

NAMES = ["apple", "aquarium_fish", "baby"]
LABELS = {"train": [2, 0, 1, 2], "test": [1, 0]}


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote into the official files: protocol 2, and plain byte strings for every string."""

    def save_string(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string, str: save_string}


def dump(path, tree, protocol=None):
    """`tree` as Python 2 would pickle it, or as we do in `protocol`."""
    with open(path, "wb") as file:
        (Python2Pickler(file, 2) if protocol is None else pickle.Pickler(file, protocol)).dump(tree)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def rows(split):
    return np.random.default_rng(len(split)).integers(0, 256, (len(LABELS[split]), 3072), dtype=np.uint8)


def tree(split, **changed):
    return {"data": rows(split), "fine_labels": LABELS[split], "coarse_labels": [0], "filenames": ["x"]} | changed


@pytest.fixture
def root(tmp_path):
    plant(tmp_path)
    return tmp_path


def plant(root, protocol=None):
    (root / "cifar-100-python").mkdir(exist_ok=True)
    for split in LABELS:
        dump(root / "cifar-100-python" / split, tree(split), protocol)
    dump(root / "cifar-100-python" / "meta", {"fine_label_names": NAMES, "coarse_label_names": []}, protocol)


def read(root):
    return cifar100(Cifar100Config(root=str(root)))


def test_registered_under_its_name():
    assert registry.get("data", "cifar100").target is cifar100


def test_order_labels_and_names_are_those_of_the_files(root):
    splits = read(root)
    assert splits.train.keys == ("train/00000", "train/00001", "train/00002", "train/00003")
    assert (splits.train.labels, splits.tests["test"].labels) == ((2, 0, 1, 2), (1, 0))
    assert splits.train.classes == splits.val.classes == ("apple", "aquarium fish", "baby")
    assert (len(splits.val), list(splits.tests)) == (0, ["test"])
    assert read(root / "cifar-100-python").train.hash == splits.train.hash


def test_a_row_is_three_planes_of_32_rows(root):
    image = read(root).tests["test"].image(1)
    picture = np.asarray(image)
    row = rows("test")[1]
    assert (image.mode, picture.shape) == ("RGB", (32, 32, 3))
    for y, x, channel in [(0, 0, 0), (3, 5, 1), (31, 30, 2)]:
        assert picture[y, x, channel] == row[channel * 1024 + y * 32 + x]


def test_fortran_order_gives_the_same_pictures(root):
    expected = read(root).train.image(2).tobytes()
    module._content.cache_clear()
    dump(root / "cifar-100-python" / "train", tree("train", data=np.asfortranarray(rows("train"))))
    assert read(root).train.image(2).tobytes() == expected


@pytest.mark.parametrize("protocol", [3, 4])
def test_files_pickled_anew_by_python_3_are_read(tmp_path, protocol):
    plant(tmp_path, protocol)
    splits = read(tmp_path)
    assert splits.train.classes[1] == "aquarium fish"
    assert np.array_equal(np.asarray(splits.train.image(3))[..., 0].ravel(), rows("train")[3][:1024])


def test_pictures_travel_to_worker_processes(root):
    images = read(root).train
    assert pickle.loads(pickle.dumps(images)).image(0).tobytes() == images.image(0).tobytes()


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["train", "meta"])
@pytest.mark.parametrize("place", ["alone", "beside", "inside"])
def test_code_in_a_file_is_refused_and_not_run(root, name, place):
    trace = root / "trace"
    evil = Calls(os.system, f"touch {trace}")
    honest = tree("train", fine_label_names=NAMES)
    honest = honest | ({"more": evil} if place == "beside" else {"fine_labels": [evil], "fine_label_names": [evil]})
    path = root / "cifar-100-python" / name
    dump(path, evil if place == "alone" else honest)
    with pytest.raises(DataError, match=rf"{name}' was refused: it refers to '{os.name}\.system'") as caught:
        read(root)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", r"builtins\.eval"),
        (b"cnumpy\nload\n.", r"numpy\.load"),
        (b"cnumpy\nndarray.__class__\n.", r"numpy\.ndarray\.__class__"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"os\.system"),
    ],
)
def test_other_names_are_refused(root, data, name):
    (root / "cifar-100-python" / "train").write_bytes(data)
    with pytest.raises(DataError, match=f"refers to '{name}'"):
        read(root)


def test_a_file_cut_short_says_what_to_do(root):
    path = root / "cifar-100-python" / "train"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"train' is damaged \(.*\): unpack 'CIFAR-100 python version' from http.* again"
    ):
        read(root)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fine_labels": [0, 1, 2]}, "does not hold N pictures"),
        ({"fine_labels": None}, "does not hold N pictures"),
        ({"data": rows("train").astype(np.int16)}, "does not hold N pictures"),
        ({"data": rows("train")[:, :300]}, "does not hold N pictures"),
        ({"data": [1, 2]}, "does not hold N pictures"),
        ({"fine_labels": [0, 1, 2, 3]}, r"labels that 'meta' has no name for \(0 to 2\)"),
        ({"fine_labels": [0, 1, 2, -1]}, "no name for"),
    ],
)
def test_arrays_and_labels_that_do_not_fit(root, changed, said):
    dump(root / "cifar-100-python" / "train", tree("train", **changed))
    with pytest.raises(DataError, match=said) as caught:
        read(root)
    assert "again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [3, {"label_names": NAMES}, {"fine_label_names": [3]}])
def test_a_meta_file_of_something_else(root, content):
    dump(root / "cifar-100-python" / "meta", content)
    with pytest.raises(DataError, match="meta' does not hold `fine_label_names`: unpack"):
        read(root)


def test_missing_files_and_folders_say_where_to_get_them(root):
    with pytest.raises(DataError, match=r"does not exist. Did you mean 'cifar-100-python'.*kriz/cifar.html"):
        read(root / "cifar-100-pyton")
    (root / "cifar-100-python" / "meta").unlink()
    with pytest.raises(DataError, match=r"has no 'meta': unpack .*kriz/cifar.html"):
        read(root)
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no folder 'cifar-100-python' and is none itself .*download=true"):
        read(root / "empty")


def test_a_download_is_checked_by_its_hash_and_made_once(tmp_path, monkeypatch):
    calls = []

    def bring(url, root, filename, md5):
        calls.append((url, filename, md5))
        plant(tmp_path)

    monkeypatch.setattr(utils, "download_and_extract_archive", bring)
    config = Cifar100Config(root=str(tmp_path), download=True)
    assert cifar100(config).train.hash == cifar100(config).train.hash
    assert [md5 for _, _, md5 in calls] == ["eb9058c3a382ffc7106e4002c42a8d85"]


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("File not found\nor corrupted.")

    monkeypatch.setattr(utils, "download_and_extract_archive", fail)
    with pytest.raises(DataError, match="download of CIFAR-100 failed: File not found or corrupted"):
        cifar100(Cifar100Config(root=str(tmp_path), download=True))
