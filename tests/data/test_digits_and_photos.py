import numpy as np
from sklearn.datasets import load_digits

from vision_lowrank.data.digits import DigitsConfig, digits
from vision_lowrank.data.photos import PhotosConfig, photographs, photos
from vision_lowrank.registry import registry


def test_both_are_registered():
    assert registry.get("data", "digits").target is digits
    assert registry.get("data", "photos").target is photos


def test_digits_are_split_in_consecutive_blocks_with_all_classes():
    splits = digits(DigitsConfig())
    test = splits.tests["digits"]
    assert splits.train.keys + splits.val.keys + test.keys == tuple(f"digits/{i:04d}" for i in range(1797))
    assert [len(part) for part in (splits.train, splits.val, test)] == [1000, 297, 500]
    assert min(len(found) for part in (splits.train, splits.val, test) for found in part.by_class()) >= 28
    assert list(test.labels) == load_digits().target[1297:].tolist()
    assert [splits.train.classes[label] for label in splits.train.labels[:3]] == ["zero", "one", "two"]


def test_digit_pictures_are_the_upscaled_ink_on_white():
    splits = digits(DigitsConfig())
    picture = splits.train.image(3)
    assert (picture.mode, picture.size) == ("RGB", (64, 64))
    values = np.asarray(picture, dtype=float)
    ink = load_digits().images[3]
    blocks = 255 - values.mean(axis=2).reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert np.corrcoef(blocks.ravel(), ink.ravel())[0, 1] > 0.98
    assert blocks[ink >= 15].min() > 180
    assert blocks[:, 0].max() < 20


def test_whole_photographs_are_one_class_each():
    images = photographs()
    assert len(images) == len(images.classes) == len(set(images.keys)) >= 10
    assert images.labels == tuple(range(len(images)))
    assert images.image(images.keys.index("coffee.png")).size == (600, 400)


def test_photo_tiles_of_train_val_and_test_never_overlap():
    splits = photos(PhotosConfig())
    parts = [splits.train, splits.val, splits.tests["photos"]]
    assert [{len(found) for found in part.by_class()} for part in parts] == [{16}, {4}, {12}]
    columns = [{int(key[-1]) for key in part.keys} for part in parts]
    assert columns == [{0, 1, 2, 3}, {4}, {5, 6, 7}]
    keys = [key for part in parts for key in part.keys]
    assert len(set(keys)) == len(keys)


def test_a_photo_tile_is_its_square_of_the_photograph():
    whole = photographs()
    coffee = np.asarray(whole.image(whole.keys.index("coffee.png")))
    test = photos(PhotosConfig()).tests["photos"]
    tile = np.asarray(test.load("coffee.png/r1c6"))
    # 600 x 400: side 75, 4 rows centred begin at (400 - 300) / 2 = 50
    assert np.array_equal(tile, coffee[125:200, 450:525])
