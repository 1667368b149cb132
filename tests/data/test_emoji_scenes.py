"""The data set of scenes: splits, numbering, options, and photographs of one's own."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.config.schema import Section
from vision_lowrank.data.emoji import emoji_table
from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.data.gives import read_data
from vision_lowrank.data.scenes import pools as scene_pools
from vision_lowrank.data.scenes.pools import pools
from vision_lowrank.errors import DataError, UserError
from vision_lowrank.registry import registry


def photographs(folder, stems, suffix=".png"):
    folder.mkdir(parents=True)
    for number, stem in enumerate(stems):
        Image.new("RGB", (90, 70), (number, 90, 160)).save(folder / f"{stem}{suffix}")
    return folder


def test_splits_share_no_concept_and_no_photograph():
    found = pools(None)
    assert list(found) == ["train", "val", "test"]
    concepts = [{row.concept for row in pool.emoji} for pool in found.values()]
    assert set.union(*concepts) == {row.concept for row in emoji_table()}
    assert sum(map(len, concepts)) == len(set.union(*concepts))
    assert all(len(each) > 90 for each in concepts)
    keys = [{key for key, _ in pool.photographs} for pool in found.values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) >= 10
    assert min(map(len, keys)) >= 1


def test_two_sizes_of_a_photograph_stay_together_whatever_the_order(tmp_path):
    stems = [f"scene{number}" for number in range(30)]
    large, small = photographs(tmp_path / "large", stems), photographs(tmp_path / "small", stems[::2], ".jpg")
    found = pools((str(large), str(small)))
    sides = {}
    for split, pool in found.items():
        assert [key for key, _ in pool.photographs] == sorted(key for key, _ in pool.photographs)
        for key, path in pool.photographs:
            assert sides.setdefault(Path(key).stem, split) == split
            assert path.is_file()
    assert len(sides) == 30
    assert sum(len(pool.photographs) for pool in found.values()) == 45
    turned = pools((str(small), str(large)))
    assert sides == {Path(key).stem: split for split, pool in turned.items() for key, _ in pool.photographs}


def test_what_cannot_be_read_is_left_out_with_a_warning(tmp_path):
    folder = photographs(tmp_path / "photos", [f"scene{number}" for number in range(12)])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xffno picture")
    with pytest.warns(UserWarning, match=r"1 of 13 pictures in .* cannot be read, the first is 'broken.jpg'"):
        found = pools((str(folder),))
    assert sum(len(pool.photographs) for pool in found.values()) == 12


def test_clips_of_own_photographs_show_them(tmp_path):
    folder = photographs(tmp_path / "photos", [f"scene{number}" for number in range(12)])
    config = EmojiScenesConfig(photographs=str(folder), objects=("emoji",), size=(96, 64), frames=3, test_clips=2)
    scene = emoji_scenes(config).val[0].scene
    scene._order, scene._noise, scene._light = [], 0, np.ones_like(scene._light)
    assert len(np.unique(scene.frame(1).reshape(-1, 3), axis=0)) == 1
    assert tuple(scene.frame(1)[0, 0][1:]) == (90, 160)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: (path / "nowhere",), r"folder of photographs '.*nowhere' does not exist: give folders, or ship"),
        (lambda path: (photographs(path / "a", "ab"),), r"2 different photographs cannot be divided .*10 or more\.$"),
        (lambda path: (photographs(path / "a", "abcdef"), path / "a"), r"folder of photographs '.*a' is given twice"),
    ],
)
def test_photographs_that_do_not_do_are_refused_in_one_line(tmp_path, make, said):
    with pytest.raises(DataError, match=said) as refused:
        pools(tuple(map(str, make(tmp_path))))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_sizes": (50, 20)}, "50 to 20 is no range of sizes: give the smaller first, 8 pixels or more"),
        ({"target_sizes": (2, 20)}, "2 to 20 is no range of sizes"),
        ({"size": (320, 20)}, "greater than or equal to 64"),
        ({"frames": 1}, "greater than or equal to 2"),
        ({"objects": ()}, "at least 1 item"),
        ({"objects": ("cat",)}, "'emoji' or 'photograph'"),
        ({"styles": ("flunt",)}, "unknown emoji style 'flunt'. Did you mean 'fluent'?"),
        ({"twins": 1.5}, "less than or equal to 1"),
        ({"photos": "x"}, "Extra inputs"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises((ValueError, UserError)) as refused:
        EmojiScenesConfig(**options)
    assert said in str(refused.value)


def test_one_folder_or_several_may_be_given():
    assert EmojiScenesConfig().folders is None
    assert EmojiScenesConfig(photographs="a").folders == ("a",)
    assert EmojiScenesConfig(photographs=("a", "b")).folders == ("a", "b")


def test_the_data_set_gives_clips_boxes_and_masks():
    config = EmojiScenesConfig(size=(96, 64), frames=3, test_clips=2)
    assert isinstance(config, Section)
    assert registry.get("data", "emoji_scenes").gives == "clips boxes masks"
    splits = read_data(config, "clips")
    assert splits.classes[-1] == "photograph"
    assert len(splits.classes) == 9
    assert (len(splits.train), len(splits.val), len(splits.tests["emoji_scenes"])) == (10_000, 2, 2)
    clip = splits.tests["emoji_scenes"][1]
    assert clip.name == "test-000001"
    assert [each.name for each in splits.val.subset([1, 0]).clips] == ["val-000001", "val-000000"]
    assert splits.train[-1].name == "train-009999"
    with pytest.raises(IndexError, match="clip 2 of 2"):
        splits.val[2]


def test_scenes_have_no_end_and_are_those_of_the_clips():
    clips = emoji_scenes(EmojiScenesConfig(size=(96, 64), frames=3, train_clips=2)).train.clips
    assert np.array_equal(clips.scene(1).frame(2), clips[1].frame(2))
    assert clips.scene(10**9).frame(0).shape == (64, 96, 3)


def test_clips_travel_to_other_processes():
    """As a data loader sends them: before they are drawn, and after."""
    clips = emoji_scenes(EmojiScenesConfig(size=(96, 64), frames=3, test_clips=2)).val.clips
    frame = clips[0].frame(1)
    assert np.array_equal(pickle.loads(pickle.dumps(clips))[0].frame(1), frame)


def test_decoded_photographs_are_kept_within_a_limit(monkeypatch, tmp_path):
    folder = photographs(tmp_path / "photos", [f"scene{number}" for number in range(12)])
    decoded = scene_pools._Decoded()
    monkeypatch.setattr(scene_pools, "MEMORY", 3 * 90 * 70 * 4)
    files = sorted(folder.iterdir())
    first = decoded.read("0", files[0])
    for number, path in enumerate(files[:3]):
        decoded.read(str(number), path)
    assert decoded.read("0", files[0]) is first
    for number, path in enumerate(files):
        decoded.read(str(number), path)
        assert decoded._bytes <= scene_pools.MEMORY
    assert len(decoded._pictures) == 3
    assert decoded.read("0", files[0]) is not first
