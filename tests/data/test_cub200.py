import pytest
from PIL import Image

from vision_lowrank.data.cub200 import Cub200Config, cub200
from vision_lowrank.errors import DataError
from vision_lowrank.registry import registry

CLASSES = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
# The order of images.txt is not that of the classes or names: (class, file, 1 = train).
IMAGES = [(2, "b.jpg", 1), (1, "z.jpg", 1), (1, "a.jpg", 0), (1, "c.jpg", 1), (2, "a.jpg", 0)]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    paths = [f"{CLASSES[label - 1]}/{name}" for label, name, _ in IMAGES]
    for width, path in enumerate(paths, 4):
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, 4)).save(folder / "images" / path)
    lists = {
        "images": paths,
        "image_class_labels": [label for label, _, _ in IMAGES],
        "train_test_split": [side for _, _, side in IMAGES],
        "classes": CLASSES,
    }
    for name, values in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{i} {value}\n" for i, value in enumerate(values, 1)))
    return tmp_path


def read(root):
    return cub200(Cub200Config(root=str(root)))


def edit(root, name, old, new):
    path = root / "CUB_200_2011" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_registered_under_its_name():
    assert registry.get("data", "cub200").target is cub200


def test_the_official_split_in_the_order_of_the_list(root):
    splits = read(root)
    first, second = CLASSES
    assert splits.train.keys == (f"{second}/b.jpg", f"{first}/z.jpg", f"{first}/c.jpg")
    assert splits.train.labels == (1, 0, 0)
    assert (splits.tests["test"].keys, splits.tests["test"].labels) == ((f"{first}/a.jpg", f"{second}/a.jpg"), (0, 1))
    assert splits.train.classes == ("Black footed Albatross", "Laysan Albatross")
    assert len(splits.val) == 0
    assert splits.train.image(1).size == (5, 4)
    assert read(root / "CUB_200_2011").train.keys == splits.train.keys


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            "image_class_labels.txt",
            "2 1",
            "2 2",
            r"image 2 has class 2 in image_class_labels.txt, but its path is '001",
        ),
        ("image_class_labels.txt", "2 1", "2 9", "image 2 has class 9 in image_class_labels.txt"),
        ("image_class_labels.txt", "5 2\n", "", "only one of images.txt and image_class_labels.txt has image 5"),
        ("train_test_split.txt", "5 0\n", "5 0\n6 1\n", "only one of images.txt and train_test_split.txt has image 6"),
        ("train_test_split.txt", "5 0", "5 2", "has '2' for image 5, not 0 or 1"),
        ("classes.txt", "2 002", "3 002", "does not number its classes 1 to 2"),
        ("images.txt", "2 001", "1 001", "each id once"),
        ("images.txt", "2 001.Black_footed_Albatross/z.jpg", "2", "is not a list with one 'id value' per line"),
        (
            "images.txt",
            "/z.jpg",
            "/y.jpg",
            r"1 of 5 pictures are not in '.*images', '001.Black_footed_Albatross/y.jpg'",
        ),
        ("images.txt", "/z.jpg", "/a.jpg", "name '001.Black_footed_Albatross/a.jpg' more than once"),
    ],
)
def test_lists_that_contradict_each_other_are_named(root, name, old, new, said):
    edit(root, name, old, new)
    with pytest.raises(DataError, match=said) as caught:
        read(root)
    assert "unpack CUB_200_2011.tgz from https://" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_list_says_where_to_get_it(root):
    (root / "CUB_200_2011" / "train_test_split.txt").unlink()
    with pytest.raises(DataError, match=r"has no 'train_test_split.txt': unpack CUB_200_2011.tgz"):
        read(root)
