import hashlib
from pathlib import Path

import pytest
from PIL import Image

from vision_lowrank.data.base import ImageSet
from vision_lowrank.data.images import read_image
from vision_lowrank.data.manipulation.base import EDITED, REAL, ManipulationSet, PictureRecord
from vision_lowrank.data.pictures import PictureSet

KEYS = ("b", "a", "c", "d")


@pytest.fixture(params=["classes", "edits"])
def pictures(request, tmp_path):
    """Four pictures, each as wide as its place, as either kind of set."""
    for index, key in enumerate(KEYS):
        Image.new("RGB", (index + 1, 2)).save(tmp_path / f"{key}.png")
    if request.param == "classes":
        return ImageSet("four", ("x", "y"), (0, 1, 1, 0), KEYS, lambda key: read_image(tmp_path / f"{key}.png"))
    labels = (REAL, EDITED, EDITED, REAL)
    records = [PictureRecord(key, f"{key}.png", label, "s") for key, label in zip(KEYS, labels, strict=True)]
    return ManipulationSet.of("four", records, tmp_path)


def test_pictures_have_keys_and_are_read_when_asked_for(pictures):
    assert isinstance(pictures, PictureSet)
    assert (pictures.name, len(pictures), tuple(pictures.keys)) == ("four", 4, KEYS)
    assert [pictures.image(index).width for index in range(4)] == [1, 2, 3, 4]


def test_a_subset_is_a_set_of_the_same_kind(pictures):
    some = pictures.subset([2, 0])
    assert type(some) is type(pictures)
    assert (len(some), tuple(some.keys)) == (2, ("c", "b"))
    assert [some.image(index).width for index in range(2)] == [3, 1]
    assert list(some.facts()) == [list(pictures.facts())[index] for index in (2, 0)]


def test_the_hash_is_of_keys_and_facts_in_any_order(pictures):
    facts = ("x", "y", "y", "x") if isinstance(pictures, ImageSet) else (0, 1, 1, 0)
    lines = sorted(f"{key}\t{fact}" for key, fact in zip(KEYS, facts, strict=True))
    assert pictures.hash == hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert pictures.subset([3, 1, 0, 2]).hash == pictures.hash != pictures.subset([3, 1, 0]).hash


def test_hashes_that_results_record_stay(tmp_path):
    images = ImageSet("x", ("cat", "dog"), (0, 1), ("1.jpg", "2.jpg"), lambda key: None)
    records = [PictureRecord("1", "1.jpg", 0, "1"), PictureRecord("2", "2.jpg", 1, "1")]
    assert images.hash == "0d474f2143372546"
    assert ManipulationSet.of("x", records, Path()).hash == "589091f98d52d0f1"
