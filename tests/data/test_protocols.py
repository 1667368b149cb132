"""Base-to-novel: which classes and pictures are on which side."""

import pytest

from vision_lowrank.data.base import ImageSet, Splits
from vision_lowrank.data.protocols import base_to_novel
from vision_lowrank.data.samplers import few_shot
from vision_lowrank.errors import DataError
from vision_lowrank.metrics.classification import harmonic_mean


def images(name, classes, each):
    names = tuple("abcdefgh"[:classes])
    labels = tuple(label for _ in range(each) for label in range(classes))  # classes interleaved
    keys = tuple(f"{name}/{index}" for index in range(len(labels)))
    return ImageSet(name, names, labels, keys, load=lambda key: None)


def splits(classes):
    return Splits(
        train=images("train", classes, 5),
        val=images("val", classes, 3),
        tests={"one": images("one", classes, 2), "two": images("two", classes, 2)},
        retention={"old": images("old", 3, 2)},
        templates=("a {}.",),
    )


@pytest.mark.parametrize(("classes", "base"), [(4, 2), (5, 3), (6, 3), (7, 4)])
def test_halves_are_disjoint_and_cover_all_classes(classes, base):
    whole = splits(classes)
    half, _, _ = base_to_novel(whole, whole.train, whole.val)
    assert half.train.classes == whole.train.classes[:base] == half.tests["two"].classes
    novel, templates = half.transfer["novel-two"]
    assert novel.classes == whole.train.classes[base:]
    assert templates == ("a {}.",)
    assert set(novel.keys) | set(half.tests["two"].keys) == set(whole.tests["two"].keys)
    assert not set(novel.keys) & set(half.tests["two"].keys)
    for part in (half.train, half.val, half.tests["one"], novel):
        assert set(part.labels) == set(range(len(part.classes)))


def test_every_picture_keeps_its_class_name():
    whole = splits(5)
    half, _, _ = base_to_novel(whole, whole.train, whole.val)
    names = {key: whole.tests["one"].classes[label] for key, label in zip(*pictures(whole.tests["one"]), strict=True)}
    for part in (half.tests["one"], half.transfer["novel-one"][0]):
        for key, label in zip(*pictures(part), strict=True):
            assert part.classes[label] == names[key]


def pictures(each):
    return each.keys, each.labels


@pytest.mark.parametrize("sampler", ["coop", "clip_lora"])
def test_base_training_set_is_the_all_class_draw_filtered(sampler):
    whole = splits(5)
    train, val = few_shot(whole.train, 2, 3, sampler, whole.val)
    _, base_train, base_val = base_to_novel(whole, train, val)
    assert base_train.keys == tuple(key for key, label in zip(*pictures(train), strict=True) if label < 3)
    assert base_val.keys == tuple(key for key, label in zip(*pictures(val), strict=True) if label < 3)
    assert base_to_novel(whole, train, None)[2] is None


def test_retention_sets_stay_as_they_are():
    whole = splits(4)
    assert base_to_novel(whole, whole.train, None)[0].retention == whole.retention


def test_halves_of_one_class_are_refused():
    whole = splits(3)
    with pytest.raises(DataError, match="four classes"):
        base_to_novel(whole, whole.train, None)


def test_harmonic_mean_of_published_rows():
    assert round(harmonic_mean(82.28, 75.14), 2) == 78.55
    assert round(harmonic_mean(84.26, 76.10), 2) == 79.97
    assert harmonic_mean(0.0, 0.0) == 0.0
