"""Pairs of frames, against statements that are checked by counting."""

from collections import Counter

import numpy as np
import pytest

from vision_lowrank.data.tracking.base import Clip, ClipSet
from vision_lowrank.data.tracking.pairs import PairSource, block_of, draw_frames
from vision_lowrank.data.tracking.reading import FileClips
from vision_lowrank.errors import DataError, UserError


class Marked(Clip):
    """A clip of which nothing but boxes is known."""

    def __init__(self, name, visible):
        self.name, self.visible, self.size, self.attributes = name, np.array(visible, bool), (8, 6), ()
        self.boxes = np.tile([1.0, 1, 2, 2], (len(self.visible), 1))

    def __len__(self):
        return len(self.visible)


def clips(name, count, frames=5):
    return ClipSet(name, tuple(Marked(f"{name}{index}", [1] * frames) for index in range(count)))


def test_a_pair_is_a_function_of_seed_and_number():
    source = PairSource([clips("a", 7), clips("b", 3)], (2, 1))
    told = [source.draw(5, number) for number in range(60)]
    order = np.random.default_rng(0).permutation(60)
    again = PairSource([clips("a", 7), clips("b", 3)], (2, 1))
    for number in order:
        pair = again.draw(5, int(number))
        assert (pair.clip.name, *pair[1:]) == (told[number].clip.name, *told[number][1:])
    other = [source.draw(6, number).clip.name for number in range(60)]
    assert other != [pair.clip.name for pair in told]


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((), (1, 1, 1)),
        ((2, 1, 1), (2, 1, 1)),
        ((0.5, 0.25, 0.25), (2, 1, 1)),
        ((1, 0, 3), (1, 0, 3)),
        ((7,) * 3, (1,) * 3),
    ],
)
def test_every_block_has_each_sets_share(weights, counts):
    source = PairSource([clips("a", 4), clips("b", 4), clips("c", 4)], weights)
    assert block_of(weights or (1, 1, 1)) == counts
    size = sum(counts)
    drawn = [source.draw(1, number).clip.name[0] for number in range(30 * size)]
    for start in range(0, len(drawn), size):
        found = Counter(drawn[start : start + size])
        assert tuple(found[name] for name in "abc") == counts
    assert len({tuple(drawn[start : start + size]) for start in range(0, len(drawn), size)}) > 1  # orders differ


def test_shares_without_common_parts_are_thousandths():
    counts = block_of((np.pi, np.e, 1))
    assert sum(counts) <= 1001
    assert np.array(counts) / sum(counts) == pytest.approx(np.array([np.pi, np.e, 1]) / (np.pi + np.e + 1), abs=2e-3)


def test_every_sequence_of_a_set_is_drawn_once_before_one_is_drawn_again():
    source = PairSource([clips("a", 7), clips("b", 3)], (2, 1))
    drawn = [source.draw(3, number).clip.name for number in range(300)]
    for name, count in (("a", 7), ("b", 3)):
        own = [each for each in drawn if each[0] == name]
        rounds = [own[start : start + count] for start in range(0, len(own) - count + 1, count)]
        assert all(len(set(each)) == count for each in rounds)
        assert len(set(map(tuple, rounds))) > 1  # shuffled anew


def test_frames_are_uniform_over_those_that_show_the_target_within_reach():
    clip = Marked("x", [1, 1, 0, 1, 0, 0, 0, 1, 1])
    clip.boxes[8, 2] = 0  # seen, of no size
    clip.boxes[1] = np.nan  # seen, not known
    usable, gap = [0, 3, 7], 4
    rng = np.random.default_rng(0)
    pairs = Counter(draw_frames(clip, gap, rng) for _ in range(6000))
    expected = {}
    for template in usable:
        near = [index for index in usable if 0 < abs(index - template) <= gap] or [template]
        expected |= {(template, search): 6000 / len(usable) / len(near) for search in near}
    assert pairs.keys() == expected.keys() == {(0, 3), (3, 0), (3, 7), (7, 3)}
    for pair, count in expected.items():
        assert abs(pairs[pair] - count) < 5 * np.sqrt(count)


def test_rare_frames_are_found():
    visible = np.zeros(3000)
    visible[[17, 2900]] = 1
    found = {draw_frames(Marked("x", visible), 100, np.random.default_rng(seed)) for seed in range(20)}
    assert found == {(17, 17), (2900, 2900)}


def test_one_frame_is_both():
    assert draw_frames(Marked("x", [1]), 100, np.random.default_rng(0)) == (0, 0)
    assert draw_frames(Marked("x", [0, 0]), 100, np.random.default_rng(0)) is None


def test_groups_are_sequences_of_which_one_clip_is_drawn():
    """The objects of a picture: pictures are drawn equally often, whatever they hold."""
    members = tuple(Marked(f"o{index}", [1]) for index in range(6))
    source = PairSource([FileClips("coco", members, groups=([0, 1, 2, 3, 4], [5]))])
    drawn = Counter(source.draw(0, number).clip.name for number in range(3000))
    assert drawn["o5"] == 1500
    for index in range(5):
        assert abs(drawn[f"o{index}"] - 300) < 5 * np.sqrt(300)
    part = source.sets[0].subset([5, 1, 3])
    assert [list(group) for group in part.groups] == [[1, 2], [0]]


def test_another_attempt_is_another_pair_of_the_same_set():
    source = PairSource([clips("a", 50), clips("b", 50)])
    for number in range(20):
        first = source.draw(0, number)
        others = {source.draw(0, number, attempt).clip.name for attempt in range(1, 8)}
        assert {name[0] for name in others} == {first.clip.name[0]}
        assert len(others) > 3


def test_a_clip_that_never_shows_its_target_is_passed_over():
    hidden = ClipSet("a", (Marked("hidden", [0, 0]), Marked("seen", [0, 1])))
    assert {PairSource([hidden]).draw(0, number).clip.name for number in range(20)} == {"seen"}
    with pytest.raises(DataError, match="clip 'hidden' and 19 others never show their targets"):
        PairSource([hidden.subset([0])]).draw(0, 0)


def test_mistakes_are_one_line():
    with pytest.raises(DataError, match="pairs cannot be drawn: 'b' has no clips; give training clips"):
        PairSource([clips("a", 1), clips("b", 0)])
    with pytest.raises(DataError, match="pairs cannot be drawn: there are no sets"):
        PairSource([])
    with pytest.raises(UserError, match="1 weights for 2 sets of clips: give one each"):
        PairSource([clips("a", 1), clips("b", 1)], (1.0,))
    for weights in ((0, 0), (1, -1), (1, float("nan"))):
        with pytest.raises(UserError, match=r"give numbers of 0 or more, one at least above 0"):
            PairSource([clips("a", 1), clips("b", 1)], weights)
    with pytest.raises(UserError, match="one is less than a thousandth of all"):
        PairSource([clips("a", 1), clips("b", 1)], (1, 1e-6))
