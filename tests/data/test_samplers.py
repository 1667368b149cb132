import random

import pytest

from vision_lowrank.data.base import ImageSet
from vision_lowrank.data.samplers import few_shot, split_by_group
from vision_lowrank.errors import DataError


def make(labels, prefix="t", classes=("a", "b", "c")):
    keys = tuple(f"{prefix}{i}" for i in range(len(labels)))
    return ImageSet(prefix, classes, tuple(labels), keys, load=None, captions=tuple((key.upper(),) for key in keys))


def group(images):
    """Keys per label, labels in order of first appearance, as a plain dictionary."""
    found = {}
    for key, label in zip(images.keys, images.labels, strict=True):
        found.setdefault(label, []).append(key)
    return found


def by_hand(images, count, repeat):
    """The published draw, with the global generator."""
    chosen = []
    for items in group(images).values():
        if len(items) >= count:
            chosen += random.sample(items, count)
        elif repeat:
            chosen += random.choices(items, k=count)
        else:
            chosen += items
    return tuple(chosen)


TRAIN = make([2, 0, 0, 1, 2, 2, 1, 0, 2, 1, 0, 2, 2, 1, 0, 0, 1])
VAL = make([1, 2, 0, 1, 0, 2, 1, 0, 2, 2, 1, 0, 2, 0, 1], "v")


@pytest.mark.parametrize("shots", [1, 2, 4, 5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_coop_draw_is_that_of_a_seeded_global_generator_train_first(shots, seed):
    random.seed(seed)
    want = by_hand(TRAIN, shots, repeat=False), by_hand(VAL, min(shots, 4), repeat=False)
    train, val = few_shot(TRAIN, shots, seed, "coop", VAL)
    assert (train.keys, val.keys) == want


@pytest.mark.parametrize("shots", [1, 2, 4, 5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_clip_lora_draw_is_that_of_a_seeded_global_generator_val_first(shots, seed):
    random.seed(seed)
    want_val = by_hand(VAL, min(shots, 4), repeat=True)
    want_train = by_hand(TRAIN, shots, repeat=True)
    train, val = few_shot(TRAIN, shots, seed, "clip_lora", VAL)
    assert (train.keys, val.keys) == (want_train, want_val)


@pytest.mark.parametrize(("sampler", "repeat"), [("coop", False), ("clip_lora", True)])
def test_short_classes_follow_their_sampler(sampler, repeat):
    train = make([0, 1, 1, 1, 2, 0, 1, 2, 1])
    random.seed(7)
    want = by_hand(train, 4, repeat)
    got, val = few_shot(train, 4, 7, sampler, None, allow_fewer=True)
    assert got.keys == want
    assert val is None
    assert len(got) == (12 if repeat else 2 + 4 + 2)


def test_draw_keeps_labels_and_captions_with_their_pictures():
    train, _ = few_shot(TRAIN, 3, 1)
    where = {key: i for i, key in enumerate(TRAIN.keys)}
    assert [TRAIN.labels[where[key]] for key in train.keys] == list(train.labels)
    assert [caption for (caption,) in train.captions] == [key.upper() for key in train.keys]
    assert sorted(train.labels) == [0] * 3 + [1] * 3 + [2] * 3
    assert len(set(train.keys)) == 9


def test_draw_does_not_touch_the_global_generator():
    random.seed(1)
    before = random.getstate()
    few_shot(TRAIN, 2, 1)
    assert random.getstate() == before


def test_an_empty_validation_pool_is_none():
    assert few_shot(TRAIN, 2, 1, val=VAL.subset([]))[1] is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: few_shot(make([0, 0, 1, 2, 2]), 2, 1), "class 'b' has 1 training pictures, 2 needed.*allow_fewer"),
        (lambda: few_shot(make([0, 0]), 2, 1), r"class 'b' \(and 1 more classes\) has 0 training pictures"),
        (lambda: few_shot(make([0, 1]), 2, 1, allow_fewer=True), "class 'c' has 0 training pictures, 1 needed"),
        (lambda: few_shot(TRAIN, 2, 1, "coup"), "unknown sampler 'coup'. Did you mean 'coop'"),
        (lambda: few_shot(TRAIN, 0, 1), "at least 1"),
    ],
)
def test_impossible_draws_are_refused(call, said):
    with pytest.raises(DataError, match=said):
        call()


def test_hash_names_the_subset_whatever_its_order():
    forward, backward = TRAIN.subset([0, 1, 2]), TRAIN.subset([2, 1, 0])
    assert forward.hash == backward.hash
    assert forward.hash != TRAIN.subset([0, 1, 3]).hash
    # printf 't0\tc\nt1\ta\nt2\ta' | sha256sum
    assert forward.hash == "635863bdff33523d"


def test_split_of_single_pictures_meets_the_fractions_in_every_class():
    images = make([i % 3 for i in range(300)])
    parts = split_by_group(images, (0.6, 0.1, 0.3), 0, images.keys)
    assert [[len(found) for found in part.by_class()] for part in parts] == [[60] * 3, [10] * 3, [30] * 3]
    assert sorted(key for part in parts for key in part.keys) == sorted(images.keys)


def test_split_shares_out_what_the_minimum_leaves():
    images = make([0] * 44, classes=("a",))
    sizes = [len(part) for part in split_by_group(images, (0.4, 0.1, 0.5), 0, images.keys, (16, 4, 4))]
    assert sizes == [16 + 8, 4 + 2, 4 + 10]
    small = make([0] * 12, classes=("a",))
    assert [len(part) for part in split_by_group(small, (0.4, 0.1, 0.5), 0, small.keys, (16, 4, 4))] == [8, 2, 2]


def test_groups_stay_together_within_and_across_classes():
    rng = random.Random(0)
    images = make([i % 3 for i in range(240)])
    groups = [f"g{rng.randrange(70)}" for _ in range(240)]
    parts = split_by_group(images, (0.5, 0.2, 0.3), 1, groups)
    where = dict(zip(images.keys, groups, strict=True))
    sides = [{where[key] for key in part.keys} for part in parts]
    assert sum(map(len, sides)) == len(set().union(*sides)) == len(set(groups))
    assert all(0.3 < len(parts[0].by_class()[label]) / 80 < 0.7 for label in range(3))


def test_split_depends_on_the_seed_and_not_on_the_order_of_pictures():
    images = make([0] * 60, classes=("a",))
    reverse = images.subset(range(59, -1, -1))
    one, same, other = (
        split_by_group(images, (0.5, 0.5), 0, images.keys),
        split_by_group(reverse, (0.5, 0.5), 0, reverse.keys),
        split_by_group(images, (0.5, 0.5), 1, images.keys),
    )
    assert [part.hash for part in one] == [part.hash for part in same]
    assert one[0].hash != other[0].hash


def test_split_that_leaves_a_part_empty_is_refused():
    images = make([0, 1, 2])
    with pytest.raises(DataError, match=r"too few pictures per class \(3 in 3 classes\)"):
        split_by_group(images, (0.7, 0.1, 0.2), 0, images.keys)
