import csv
import pickle

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.data.emoji import (
    STYLES,
    EmojiConfig,
    caption_parts,
    emoji,
    emoji_images,
    emoji_rgba,
    in_style,
)
from vision_lowrank.errors import DataError
from vision_lowrank.paths import shipped
from vision_lowrank.registry import registry

FOLDER = shipped("data") / "emoji"


@pytest.fixture(scope="module")
def table():
    with open(FOLDER / "emoji.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def splits():
    return emoji(EmojiConfig())


def codes(images):
    return [key.split("/")[1] for key in images.keys]


def test_registered_under_its_name():
    part = registry.get("data", "emoji")
    assert (part.target, part.config) == (emoji, EmojiConfig)


@pytest.mark.parametrize("style", STYLES)
def test_tile_i_of_every_atlas_is_row_i(style, table):
    with Image.open(FOLDER / f"{style}.webp") as picture:
        atlas = np.asarray(picture.convert("RGBA"))
    for i in (0, 39, 40, 777, len(table) - 1):
        top, left = i // 40 * 64, i % 40 * 64
        assert np.array_equal(np.asarray(emoji_rgba(style, table[i]["code"])), atlas[top : top + 64, left : left + 64])


def test_all_rows_with_readable_classes_and_true_captions(table):
    images = emoji_images("twemoji")
    assert codes(images) == [row["code"] for row in table]
    assert [images.classes[label] for label in images.labels] == [row["subgroup"].replace("-", " ") for row in table]
    row, captions = table[100], images.captions[100]
    assert captions[:2] == (row["name"], row["subgroup"].replace("-", " "))
    assert set(row["keywords"].split(";")) <= set(captions)
    assert all(len(set(texts)) == len(texts) for texts in images.captions)
    name, subgroup, group, keywords = caption_parts(row["code"])
    assert captions == tuple(dict.fromkeys((name, subgroup, group, *keywords)))


def test_every_class_has_sixteen_training_pictures_by_default(splits):
    train = [len(found) for found in splits.train.by_class()]
    test = [len(found) for found in splits.tests["fluent"].by_class()]
    val = [len(found) for found in splits.val.by_class()]
    assert len(train) == 23
    assert min(train) >= 16
    assert min(val) >= 2
    assert min(test) >= 4
    counted = {name: len(found) for name, found in zip(splits.train.classes, splits.train.by_class(), strict=True)}
    assert counted["animal mammal"] == round(16 + 0.4 * (66 - 24))


@pytest.mark.parametrize("config", [EmojiConfig(), EmojiConfig(label="group"), EmojiConfig(min_images=3)])
def test_no_concept_is_on_two_sides(config, table):
    concept = {row["code"]: row["concept"] for row in table}
    splits = emoji(config)
    sides = [{concept[code] for code in codes(part)} for part in (splits.train, splits.val, splits.tests["openmoji"])]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides))


def test_what_trains_for_one_label_is_never_tested_for_the_other(splits, table):
    concept = {row["code"]: row["concept"] for row in table}
    groups = emoji(EmojiConfig(label="group"))
    for one, other in ((splits, groups), (groups, splits)):
        trained = {concept[code] for code in codes(one.train)}
        assert not trained & {concept[code] for code in codes(other.tests["fluent"])}
    assert set(codes(splits.tests["fluent"])) < set(codes(groups.tests["fluent"]))


def test_the_split_covers_the_kept_classes_and_only_these(splits, table):
    counts = {}
    for row in table:
        counts[row["subgroup"]] = counts.get(row["subgroup"], 0) + 1
    want = sorted(row["code"] for row in table if counts[row["subgroup"]] >= 24)
    assert sorted(codes(splits.train) + codes(splits.val) + codes(splits.tests["fluent"])) == want


def test_test_and_retention_sets_draw_the_same_emoji_in_their_styles(splits):
    sets = splits.tests | splits.retention
    assert list(splits.tests) == ["fluent", "openmoji"]
    assert list(splits.retention) == ["noto", "twemoji"]
    for style, images in sets.items():
        assert codes(images) == codes(splits.tests["fluent"])
        assert images.labels == splits.tests["fluent"].labels
        assert images.classes == splits.train.classes
        assert all(key.startswith(f"{style}/") for key in images.keys)


def test_the_split_is_the_same_in_every_training_style(splits):
    other = emoji(EmojiConfig(train_style="noto", test_styles=("fluent",)))
    assert codes(other.train) == codes(splits.train)
    assert other.tests["fluent"].hash == splits.tests["fluent"].hash


def test_transparency_shows_the_background():
    code = "1f600"
    alpha = np.asarray(emoji_rgba("noto", code))[..., 3]
    assert alpha[0, 0] == 0
    for name, colour in (("white", (255, 255, 255)), ("#102030", (16, 32, 48))):
        picture = emoji_images("noto", background=name)
        drawn = picture.load(f"noto/{code}")
        assert drawn.mode == "RGB"
        assert drawn.getpixel((0, 0)) == colour
    rgba = np.asarray(emoji_rgba("noto", code), dtype=float)
    share = rgba[..., 3:] / 255
    want = rgba[..., :3] * share + 255 * (1 - share)
    assert np.abs(np.asarray(emoji_images("noto").load(f"noto/{code}"), dtype=float) - want).max() <= 1


def test_sets_travel_to_worker_processes(splits):
    again = pickle.loads(pickle.dumps(splits.train))
    assert np.array_equal(np.asarray(again.image(0)), np.asarray(splits.train.image(0)))


def test_styles_draw_the_same_emoji_differently(splits):
    noto = in_style(splits.train, "noto")
    assert noto.labels == splits.train.labels
    assert np.abs(np.asarray(noto.image(0), float) - np.asarray(splits.train.image(0), float)).mean() > 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: emoji_images("flunt"), "unknown emoji style 'flunt'. Did you mean 'fluent'"),
        (lambda: EmojiConfig(train_style="openmoij"), "Did you mean 'openmoji'"),
        (lambda: EmojiConfig(test_styles=("notto",)), "Did you mean 'noto'"),
        (lambda: emoji(EmojiConfig(min_images=500)), "no emoji class has 500 pictures .*lower data.min_images"),
        (lambda: emoji_rgba("noto", "1f60"), "unknown emoji code '1f60': see the column"),
    ],
)
def test_mistakes_are_named(call, said):
    with pytest.raises(DataError, match=said):
        call()


@pytest.mark.parametrize("template", ["an emoji", "{} and {}", "a {0}"])
def test_templates_need_one_slot(template):
    with pytest.raises(ValueError, match="needs exactly one"):
        EmojiConfig(templates=(template,))
