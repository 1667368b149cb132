"""The contract of a clip, and sets of clips."""

import numpy as np
import pytest

from vision_lowrank.data.tracking.base import Clip, ClipSet
from vision_lowrank.errors import DataError


class Still(Clip):
    """Grey frames with a box in the middle."""

    def __init__(self, name, length=3):
        self.name, self.length, self.size = name, length, (8, 6)
        self.boxes = np.tile([2.0, 2, 4, 2], (length, 1))
        self.visible, self.attributes = np.ones(length, bool), ()

    def __len__(self):
        return self.length

    def frame(self, index):
        return np.full((6, 8, 3), 128, np.uint8)


def test_a_set_is_known_by_names_and_lengths_in_any_order():
    clips = ClipSet("test", (Still("a"), Still("b", 5)))
    assert clips.hash == ClipSet("other", (Still("b", 5), Still("a"))).hash
    assert clips.hash != ClipSet("test", (Still("a"), Still("b", 4))).hash
    assert clips.hash != ClipSet("test", (Still("a"), Still("c", 5))).hash


def test_a_subset_keeps_the_order_that_was_asked_for():
    clips = ClipSet("test", tuple(Still(name) for name in "abc")).subset([2, 0])
    assert [clip.name for clip in clips] == ["c", "a"]
    assert len(clips) == 2
    assert clips[0].name == "c"
    assert clips.name == "test"


def test_two_clips_of_one_name_are_refused():
    with pytest.raises(DataError, match="clip 'a' is twice in 'test'"):
        ClipSet("test", (Still("a"), Still("b"), Still("a")))
