"""Base-to-novel: which classes and pictures are on which side. Transfer: which sets, under which names."""

from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.coop_trees import plant

from vision_lowrank.config import load_config
from vision_lowrank.data.base import ImageSet, Splits
from vision_lowrank.data.coop import CoopConfig
from vision_lowrank.data.digits import DigitsConfig
from vision_lowrank.data.protocols import base_to_novel, with_transfer
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


RECIPES = sorted((Path(__file__).parents[2] / "configs" / "fewshot").glob("*.yaml"))
TRANSFERS = [path for path in RECIPES if "transfer:" in path.read_text()]


def test_recipes_that_transfer_are_shipped():
    assert [path.stem for path in TRANSFERS] == [
        "coop_cross_data_set_vit_b16",
        "coop_domains_vit_b16",
        "emoji_transfer",
    ]


@pytest.mark.parametrize("path", TRANSFERS, ids=lambda path: path.stem)
def test_every_shipped_recipe_yields_as_many_sets_as_it_lists(tmp_path, path):
    listed, sizes = load_config(path).task.transfer, {}
    sections = [each.model_copy(update={"root": str(tmp_path)}) if each.type == "coop" else each for each in listed]
    for each in sections:
        if each.type == "coop":
            sizes[each.name] = len(plant(tmp_path, each.name)["test"])
    whole = replace(splits(4), tests={"test": images("test", 4, 2), "fluent": images("fluent", 4, 2)})
    found = with_transfer(whole, sections).transfer
    assert len(found) == len(listed)
    assert list(found) == (list(sizes) or ["digits", "emoji-fluent"])
    assert all(len(found[name][0]) == size for name, size in sizes.items())


def test_names_that_clash_are_numbered_and_nothing_is_overwritten(tmp_path):
    plant(tmp_path, "dtd")
    again = CoopConfig(root=str(tmp_path), name="dtd")
    whole = replace(
        splits(4), tests={"dtd": images("dtd", 4, 1)}, transfer={"digits": (images("old", 2, 1), ("x {}",))}
    )
    found = with_transfer(whole, [DigitsConfig(), again, DigitsConfig(), again]).transfer
    assert list(found) == ["digits", "digits-digits", "coop-dtd", "digits-digits-2", "coop-dtd-2"]
    assert found["digits"] == whole.transfer["digits"]
    assert found["coop-dtd"][0].keys == found["coop-dtd-2"][0].keys
