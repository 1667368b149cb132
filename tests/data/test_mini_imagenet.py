import pytest
from PIL import Image

from vision_lowrank.data.mini_imagenet import MiniImagenetConfig, mini_imagenet
from vision_lowrank.errors import DataError
from vision_lowrank.registry import registry

HEADER = "filename,label\n"
TRAIN = ["n020,n02", "n011,n01", "n010,n01", "n021,n02"]  # neither files nor ids are sorted
TEST = ["n015,n01", "n025,n02"]


def table(rows):
    return HEADER + "".join(row.replace(",", ".jpg,") + "\n" for row in rows)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "miniimagenet"
    (folder / "images").mkdir(parents=True)
    (folder / "split").mkdir()
    for width, row in enumerate(TRAIN + TEST, 4):
        Image.new("RGB", (width, 4)).save(folder / "images" / f"{row.partition(',')[0]}.jpg")
    (folder / "split" / "train.csv").write_text(table(TRAIN))
    (folder / "split" / "test.csv").write_text(table(TEST))
    return tmp_path


def read(root, **options):
    return mini_imagenet(MiniImagenetConfig(root=str(root), **options))


def test_registered_under_its_name():
    assert registry.get("data", "mini_imagenet").target is mini_imagenet


def test_rows_keep_their_order_and_labels_are_ranks_of_the_ids(root):
    splits = read(root)
    assert splits.train.keys == ("n020.jpg", "n011.jpg", "n010.jpg", "n021.jpg")
    assert splits.train.labels == (1, 0, 0, 1)
    assert (splits.tests["test"].keys, splits.tests["test"].labels) == (("n015.jpg", "n025.jpg"), (0, 1))
    assert splits.train.classes == ("n01", "n02")
    assert len(splits.val) == 0
    assert splits.train.image(2).size == (6, 4)
    assert read(root / "miniimagenet").train.keys == splits.train.keys


def test_names_come_from_a_file_of_ids_and_words(root):
    names = root / "names.txt"
    names.write_text("n09 no such\nn02 house_finch\nn01 king crab\n")
    assert read(root, names=str(names)).train.classes == ("king crab", "house finch")
    names.write_text("n02 house finch\n")
    with pytest.raises(DataError, match=r"names.txt' has no name for 'n01': add lines"):
        read(root, names=str(names))
    with pytest.raises(DataError, match=r"nam.txt' does not exist: check data.names"):
        read(root, names=str(root / "nam.txt"))


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (table([*TRAIN, "n021,n03"]), "only one of train.csv and test.csv has class 'n03'"),
        (table(TRAIN[1:3]), "only one of train.csv and test.csv has class 'n02'"),
        (table([*TRAIN, "n029,n02"]), r"1 of 7 pictures are not in '.*images', 'n029.jpg'"),
        (table([*TRAIN, "n025,n02"]), "name 'n025.jpg' more than once"),
        (table([*TRAIN, "n025,"]), "train.csv' is not a table with the columns filename,label"),
        ("file,label\na.jpg,n01\n", "train.csv' is not a table"),
        ("", "train.csv' is not a table"),
    ],
)
def test_tables_that_do_not_fit_are_named(root, train, said):
    (root / "miniimagenet" / "split" / "train.csv").write_text(train)
    with pytest.raises(DataError, match=said) as caught:
        read(root)
    assert "get miniImageNet as https://" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_table_says_where_to_get_it(root):
    (root / "miniimagenet" / "split" / "test.csv").unlink()
    with pytest.raises(DataError, match=r"has no 'split/test.csv': get miniImageNet as https://"):
        read(root)
