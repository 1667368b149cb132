import pytest

from vision_lowrank.data.tracking.mixture import ClipMixtureConfig, clip_mixture
from vision_lowrank.errors import UserError

SCENES = {"type": "emoji_scenes", "frames": 4, "size": [96, 72], "test_clips": 2}


def test_sets_are_kept_apart_and_named_apart():
    other = SCENES | {"seed": 2, "train_clips": 7}
    splits = clip_mixture(ClipMixtureConfig(train=(SCENES, other), weights=(1, 3), val=SCENES, tests=(SCENES, other)))
    assert [len(clips) for clips in splits.sources] == [10_000, 7]
    assert splits.weights == (1, 3)
    assert list(splits.tests) == ["emoji_scenes", "emoji_scenes-2"]
    assert splits.tests["emoji_scenes"].hash != splits.tests["emoji_scenes-2"].hash
    assert len(splits.val) == 2


def test_one_weight_for_each_set():
    with pytest.raises(UserError, match="3 for 2 training sets"):
        clip_mixture(ClipMixtureConfig(train=(SCENES, SCENES), weights=(1, 2, 3)))


def test_sets_for_testing_do_not_train(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    empty = ClipMixtureConfig(train=(), tests=(SCENES,))
    assert clip_mixture(empty).sources == ()
