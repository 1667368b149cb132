import json

import numpy as np
import pytest
from fixtures.manipulation_trees import mani, mask, picture
from pydantic import ValidationError

from vision_lowrank.data.manipulation.base import EDITED, REAL, ManipulationSet, PictureRecord, Region
from vision_lowrank.data.manipulation.imdl import read_balanced, read_json, read_mani, read_tests, write_json
from vision_lowrank.data.manipulation.joined import JoinedSet
from vision_lowrank.data.manipulation.lists import PROTOCOLS, SETS, ImdlConfig, imdl
from vision_lowrank.data.manipulation.sampling import EqualDraws, draws_of
from vision_lowrank.errors import DataError
from vision_lowrank.registry import registry


def listed(path, *pairs):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(pairs))
    return path


@pytest.mark.parametrize("suffix", ["", "_gt", "_mask", "_forged"])
def test_mani_pairs_by_stem_whatever_the_order(tmp_path, suffix):
    root = mani(tmp_path / "set", ("b", "a_1", "c"), suffix)
    mask(root / "Gt" / f"a_1{suffix}.png", box=(0, 0, 1, 1))
    images = read_mani(root)
    assert [(r.id, r.mask) for r in images.records] == [
        (f"Tp/{stem}.jpg", f"Gt/{stem}{suffix}.png") for stem in ("a_1", "b", "c")
    ]
    assert images.labels.tolist() == [EDITED] * 3
    assert [images.mask(i).sum() for i in range(3)] == [1, 42, 42]
    assert images.name == "set"
    assert images.records[0].source_id == "Tp/a_1.jpg"


def test_mani_falls_back_to_order_with_a_warning(tmp_path):
    for number in (2, 1):
        picture(tmp_path / "Tp" / f"img{number}.png")
        mask(tmp_path / "Gt" / f"truth{number}.png", box=(0, 0, number, 1))
    with pytest.warns(UserWarning, match="paired by sorted order"):
        images = read_mani(tmp_path)
    assert [r.mask for r in images.records] == ["Gt/truth1.png", "Gt/truth2.png"]


def test_mani_names_files_without_a_partner(tmp_path):
    mani(tmp_path, ("a", "b"))
    picture(tmp_path / "Tp" / "alone.png")
    with pytest.raises(DataError, match=r"3 pictures and 2 masks .*no mask for 'Tp/alone\.png'\."):
        read_mani(tmp_path)
    mask(tmp_path / "Gt" / "widow.png")
    with pytest.raises(DataError, match=r"no mask for 'Tp/alone\.png'; no picture for 'Gt/widow\.png'"):
        read_mani(tmp_path)
    picture(tmp_path / "Tp" / "a.png")
    with pytest.raises(DataError, match="have one stem"):
        read_mani(tmp_path)
    with pytest.raises(DataError, match="has no folder 'Tp'"):
        read_mani(tmp_path / "Tp")


def test_negative_black_mask_and_label_0_are_the_same(tmp_path):
    for name in ("n", "b", "e"):
        picture(tmp_path / f"{name}.png")
    (
        mask(tmp_path / "black.png", box=None),
        mask(tmp_path / "dark.png", value=127),
        mask(tmp_path / "grey.png", value=128),
    )
    picture(tmp_path / "d.png")
    path = listed(
        tmp_path / "x.json", ["n.png", "Negative"], ["b.png", "black.png"], ["d.png", "dark.png"], ["e.png", "grey.png"]
    )
    images = read_json(path)
    schema = ManipulationSet.of("s", [PictureRecord("n", "n.png", REAL, "n")], tmp_path)
    assert images.labels.tolist() == [REAL, REAL, REAL, EDITED]
    for index in range(3):
        assert np.array_equal(images.mask(index), schema.mask(0))
    assert images.mask(3).sum() == 42
    assert read_json(path, check_masks=False).labels.tolist() == [REAL, EDITED, EDITED, EDITED]


def test_json_paths_start_from_the_working_directory_or_the_file(tmp_path, monkeypatch):
    picture(tmp_path / "data" / "a.png")
    mask(tmp_path / "data" / "m.png")
    monkeypatch.chdir(tmp_path)
    for where, prefix in (("lists", "data/"), ("data", "")):
        images = read_json(listed(tmp_path / where / "x.json", [f"{prefix}a.png", f"{prefix}m.png"]))
        assert images.image(0).size == (16, 8)
        assert images.records[0].id == f"{prefix}a.png"
    with pytest.raises(DataError, match=r"names 1 files that exist neither from the working directory .* 'no\.png'"):
        read_json(listed(tmp_path / "data" / "y.json", ["a.png", "Negative"], ["no.png", "m.png"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must be a list of pairs"),
        ("[", "no valid JSON"),
        ('[["a.png"]]', r"entry 0: \[\"a.png\"\] is no pair"),
        ('[["a.png", "Negative"], ["a.png", "m.png"]]', "lists 'a.png' more than once"),
    ],
)
def test_wrong_lists(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"does not exist\. Did you mean 'x.json'"):
        read_json(tmp_path / "xx.json")


def test_a_written_list_has_masks_of_boxes_and_refuses_bare_edits(tmp_path):
    picture(tmp_path / "in" / "a.png")
    boxed = PictureRecord("a", "a.png", EDITED, "a", boxes=(Region((1, 1, 5, 5)),))
    write_json(tmp_path / "out" / "x.json", ManipulationSet.of("s", [boxed], tmp_path / "in"))
    assert json.loads((tmp_path / "out" / "x.json").read_text()) == [["../in/a.png", "x_masks/000000.png"]]
    assert read_json(tmp_path / "out" / "x.json").mask(0).sum() == 16
    bare = ManipulationSet.of("s", [PictureRecord("a", "a.png", EDITED, "a")], tmp_path / "in")
    with pytest.raises(DataError, match="1 edited pictures of 's' have neither mask nor boxes, 'a'"):
        write_json(tmp_path / "out" / "y.json", bare)


def test_lists_of_tests_and_balanced_sets(tmp_path):
    mani(tmp_path / "one")
    picture(tmp_path / "r.png")
    listed(tmp_path / "two.json", ["r.png", "Negative"])
    (tmp_path / "tests.json").write_text(json.dumps({"First": "one", "Second": "two.json"}))
    tests = read_tests(tmp_path / "tests.json")
    assert {name: (images.name, len(images)) for name, images in tests.items()} == {
        "First": ("First", 3), "Second": ("Second", 1),
    }  # fmt: skip
    balanced = read_balanced(listed(tmp_path / "b.json", ["ManiDataset", "one"], ["JsonDataset", "two.json"]))
    assert balanced.parts.tolist() == [0, 0, 0, 1]
    assert len(draws_of(balanced, 0)) == 2 * 1840
    assert balanced.image(3).size == balanced.image(0).size == (16, 8)
    with pytest.raises(DataError, match=r"unknown class 'JsonDatset'\. Did you mean 'JsonDataset'"):
        read_balanced(listed(tmp_path / "c.json", ["ManiDataset", "one"], ["JsonDatset", "two.json"]))
    (tmp_path / "tests.json").write_text('["one"]')
    with pytest.raises(DataError, match="must be an object of names and paths"):
        read_tests(tmp_path / "tests.json")


def published(root, names):
    for name in names:
        mani(root / name, [f"{i}" for i in range(30)])
    return root


MVSS = ("CASIA2.0", "casia_v1", "Columbia", "COVERAGE", "NIST16_1024", "IMD_20_1024")


def test_mvss_finds_the_folders_that_users_have(tmp_path):
    splits = imdl(ImdlConfig(protocol="mvss", root=str(published(tmp_path, MVSS))))
    assert list(splits.tests) == ["CASIAv1", "Columbia", "Coverage", "NIST16", "IMD2020"]
    assert len(splits.train) + len(splits.val) == 30
    assert len(splits.val) >= 1
    assert not isinstance(splits.train, JoinedSet)
    assert not {r.id for r in splits.train.records} & {r.id for r in splits.val.records}


def test_a_test_set_of_the_protocols_own_name_is_refused(tmp_path):
    root, more = published(tmp_path / "all", MVSS), published(tmp_path / "more", ["mine", "other"])
    config = ImdlConfig(protocol="mvss", root=str(root), tests={"Mine": str(more / "mine")})
    assert list(imdl(config).tests) == ["CASIAv1", "Columbia", "Coverage", "NIST16", "IMD2020", "Mine"]
    config = config.model_copy(update={"tests": {"Columbia": str(more / "other")}})
    with pytest.raises(DataError, match=r"data\.tests names 'Columbia', a test set of protocol mvss itself"):
        imdl(config)


def test_cat_joins_seven_sets_with_equal_draws(tmp_path):
    published(tmp_path, ("CASIA2.0", "CASIAv1", "Columbia", "Coverage", "NIST16", "IMD2020"))
    for name in (
        "FantasticReality_v1/FantasticReality",
        *(f"tampCOCO/{p}_COCO_list" for p in ("sp", "cm", "bcm", "bcmc")),
    ):
        picture((tmp_path / name).parent / "a.png"), mask((tmp_path / name).parent / "m.png")
        listed((tmp_path / name).with_suffix(".json"), ["a.png", "m.png"])
    splits = imdl(ImdlConfig(protocol="cat", root=str(tmp_path), val_share=0))
    assert isinstance(splits.train, JoinedSet)
    draws = draws_of(splits.train, 0)
    assert isinstance(draws, EqualDraws)
    assert len(draws) == 12_880
    assert len(splits.train) == 2 * 30 + 5
    assert len(splits.val) == 0
    assert list(splits.tests) == ["CASIAv1", "Columbia", "Coverage", "NIST16"]


def test_missing_sets_are_named_with_their_pages(tmp_path):
    published(tmp_path, MVSS[:3])
    with pytest.raises(DataError, match=r"lacks 3 data sets.*never downloaded") as caught:
        imdl(ImdlConfig(protocol="mvss", root=str(tmp_path)))
    for name in ("Coverage", "NIST16", "IMD2020"):
        assert f"{name}: {SETS[name].home}" in str(caught.value)
    assert "CASIAv2" not in str(caught.value)
    published(tmp_path, (*MVSS[3:], "CASIAv2"))
    with pytest.raises(DataError, match=r"CASIAv2 is in '.*' twice"):
        imdl(ImdlConfig(protocol="mvss", root=str(tmp_path)))
    with pytest.raises(DataError, match="does not exist"):
        imdl(ImdlConfig(protocol="mvss", root=str(tmp_path / "no")))
    assert {name for p in PROTOCOLS.values() for name in (*p.train, *p.tests)} <= set(SETS)


def test_custom_sets_and_a_pattern_that_keeps_twins_together(tmp_path):
    rows = []
    for number in range(40):
        picture(tmp_path / f"{number}.png"), picture(tmp_path / f"{number}t.png")
        rows += [[f"{number}.png", "Negative"], [f"{number}t.png", "m.png"]]
    mask(tmp_path / "m.png")
    listed(tmp_path / "train.json", *rows)
    options = {"train": (str(tmp_path / "train.json"),), "tests": {"Own": str(mani(tmp_path / "own"))}}
    splits = imdl(ImdlConfig(**options, source_pattern=r"(\d+)t?\.png", val_share=0.3))
    stems = [{r.id.removesuffix(".png").removesuffix("t") for r in part.records} for part in (splits.train, splits.val)]
    assert not stems[0] & stems[1]
    assert min(map(len, stems)) > 5
    assert list(splits.tests) == ["Own"]
    joined = imdl(ImdlConfig(train=(*options["train"], str(mani(tmp_path / "b"))), tests=options["tests"], draws=7))
    assert len(draws_of(joined.train, 0)) == 14
    plain = imdl(ImdlConfig(train=(*options["train"], str(tmp_path / "b")), tests=options["tests"], draws=None))
    assert not isinstance(draws_of(plain.train, 0), EqualDraws)
    balanced = listed(tmp_path / "bal.json", ["JsonDataset", "train.json"], ["ManiDataset", "b"])
    assert len(draws_of(imdl(ImdlConfig(train=(str(balanced),), tests=options["tests"])).train, 0)) == 2 * 1840
    with pytest.raises(DataError, match="trains and tests at once"):
        imdl(ImdlConfig(train=options["train"], tests={"x": options["train"][0]}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs `train` and `tests`"),
        ({"protocol": "mvss"}, "needs `root`"),
        ({"protocol": "cat", "root": "x", "train": ["y"]}, "no `train`"),
        ({"train": ["a"], "tests": {"a": "b"}, "source_pattern": "a"}, "exactly one group"),
        ({"train": ["a"], "tests": {"a": "b"}, "source_pattern": "("}, "no regular expression"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValidationError, match=message):
        ImdlConfig(**options)


def test_registered():
    assert registry.get("data", "imdl").target is imdl
