"""Sessions of classes: the 19 published settings on fake data sets of the right sizes, and own sessions."""

import random
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import pytest
from pydantic import ValidationError

from vision_lowrank.data.base import ImageSet, Splits
from vision_lowrank.data.emoji import EmojiConfig, emoji
from vision_lowrank.data.fscil_shots import CIFAR, CUB_SHORT, fixed_shots
from vision_lowrank.data.session_presets import SETTINGS, preset
from vision_lowrank.data.sessions import Session, SessionOptions, Sessions, make_sessions
from vision_lowrank.errors import DataError

ALL = [(name, dataset) for name, settings in SETTINGS.items() for dataset in settings]


def images(name, labels, classes):
    names = tuple(f"class {label}" for label in range(classes))
    keys = tuple(f"{name}/{index}" for index in range(len(labels)))
    return ImageSet(name, names, tuple(labels), keys, load=None, captions=tuple((key,) for key in keys))


def fake(classes, train=15, test=3, val=4):
    """A data set of pictures that are never opened: training pictures in random order, a class's others together."""
    labels = [label for label in range(classes) for _ in range(train)]
    random.Random(0).shuffle(labels)
    parts = (
        images(name, [c for c in range(classes) for _ in range(n)], classes) for name, n in (("v", val), ("t", test))
    )
    validation, tests = parts
    return Splits(images("r", labels, classes), validation, {"test": tests, "other": replace(tests, name="other")})


@lru_cache
def fscil_data(dataset):
    """Training pictures in the published order: only labels matter."""
    if dataset == "mini_imagenet":
        labels, each = [label for label in range(100) for _ in range(500)], 100
    elif dataset == "cifar100":
        groups = [tuple(map(int, group.split())) for line in CIFAR.strip().splitlines() for group in line.split("|")]
        placed = {place: label for label, group in enumerate(groups, 60) for place in group}
        rest = [label for label in range(100) for _ in range(500 if label < 60 else 495)]
        random.Random(0).shuffle(rest)
        labels, each = [placed[place] if place in placed else rest.pop() for place in range(50_000)], 100
    else:
        labels = [label for label in range(200) for _ in range(29 if label in CUB_SHORT else 30)]
        each = 29
    classes = 200 if dataset == "cub200" else 100
    tests = images("t", [label for label in range(classes) for _ in range(each)], classes)
    train = images("r", labels, classes)
    return Splits(train, train.subset([]), {"test": tests})


def data_for(name, dataset):
    return fscil_data(dataset) if name == "fscil" else fake(SETTINGS[name][dataset].classes, train=11)


def made(splits, seed=1, **options):
    return make_sessions(splits, SessionOptions(**options), seed)


def names_by_key(pictures):
    return {key: pictures.classes[label] for key, label in zip(pictures.keys, pictures.labels, strict=True)}


def test_there_are_the_19_settings():
    assert [len(SETTINGS[name]) for name in ("fscil", "fscit")] == [3, 16]


@pytest.mark.parametrize(("name", "dataset"), ALL)
def test_sessions_partition_the_classes_of_every_setting(name, dataset):  # invariants 1 and 2
    setting = SETTINGS[name][dataset]
    assert setting.base + setting.way * (setting.sessions - 1) == setting.classes
    splits, shots = data_for(name, dataset), {"fscil": 5, "fscit": 10}[name]
    cut = made(splits, name=name, dataset=dataset)
    assert cut.sizes == (setting.base,) + (setting.way,) * (setting.sessions - 1)
    assert [label for session in cut.sessions for label in session.classes] == list(range(setting.classes))
    assert cut.classes == splits.train.classes
    whole = splits.val if setting.test else splits.tests["test"]
    before: set[str] = set()
    for t, session in enumerate(cut.sessions):
        assert set(session.train.labels) == set(session.test.labels) == set(session.classes)
        if t or name == "fscit":
            assert [session.train.labels.count(label) for label in session.classes] == [shots] * len(session.classes)
            assert len(session.train) == cut.sizes[t] * shots
        else:
            assert len(session.train) == sum(label < setting.base for label in splits.train.labels)
        seen = cut.seen_test(t)
        assert set(seen.labels) == set(range(cut.seen(t)))
        assert set(seen.keys) == {k for k, label in zip(whole.keys, whole.labels, strict=True) if label < cut.seen(t)}
        assert before < set(seen.keys)
        before = set(seen.keys)
    assert set(cut.seen_test(setting.sessions - 1).keys) == set(whole.keys)


@pytest.mark.parametrize(("name", "dataset"), ALL)
def test_shots_of_every_setting_have_their_label_and_no_test_picture(name, dataset):  # invariant 3
    splits = data_for(name, dataset)
    cut = made(splits, name=name, dataset=dataset)
    truth = names_by_key(splits.train)
    tested = set(cut.seen_test(len(cut.sessions) - 1).keys)
    for session in cut.sessions:
        assert names_by_key(session.train).items() <= truth.items()
        assert len(set(session.train.keys)) == len(session.train)
        assert not tested & set(session.train.keys)


@pytest.mark.parametrize(
    ("dataset", "draw", "most"),
    [("cifar100", "paper", 5), ("cub200", "paper", 5), ("cub200", "first", 8), (None, "seed:3", 8)],
)
def test_low_shot_sets_are_nested(dataset, draw, most):  # invariant 3
    splits = fscil_data(dataset) if dataset else fake(20)
    own = {"dataset": dataset} if dataset else {"base": 8, "way": 4}
    drawn = [
        [set(session.train.keys) for session in made(splits, name="fscil", draw=draw, shots=k, **own).sessions[1:]]
        for k in range(1, most + 1)
    ]
    for fewer, more in pairwise(drawn):
        assert all(one < other for one, other in zip(fewer, more, strict=True))


def test_the_fixed_shots_of_fscil():
    mini = fixed_shots("mini_imagenet", fscil_data("mini_imagenet").train)
    assert list(mini) == list(range(60, 100))
    assert mini[60] == (30047, 30067, 30304, 30340, 30479)
    assert mini[99] == (49547, 49567, 49804, 49840, 49979)
    train = fscil_data("cub200").train
    cub = fixed_shots("cub200", train)
    assert list(cub) == list(range(100, 200))
    members = train.by_class()
    assert [members[100].index(place) for place in cub[100]] == [10, 14, 17, 19, 21]
    assert [members[195].index(place) for place in cub[195]] == [14, 18, 20, 21, 25]
    cifar = fixed_shots("cifar100", fscil_data("cifar100").train)
    assert list(cifar) == list(range(60, 100))
    assert (cifar[60], cifar[99]) == ((33344, 29774, 4815, 6772, 48317), (33728, 30627, 47507, 6299, 4895))
    assert len({place for shots in cifar.values() for place in shots}) == 200


def test_paper_sessions_hold_the_fixed_shots():
    splits = fscil_data("mini_imagenet")
    session = made(splits, name="fscil", dataset="mini_imagenet").sessions[8]
    assert session.train.keys[:5] == tuple(f"r/{500 * 95 + row}" for row in (47, 67, 304, 340, 479))


@pytest.mark.parametrize(
    ("dataset", "change", "said"),
    [
        ("cifar100", lambda train: train.subset(range(49_999, -1, -1)), "is of class .* not 'class 60'"),
        ("mini_imagenet", lambda train: train.subset(range(49_999)), "49,999 training pictures, not 50,000"),
        ("cub200", lambda train: train.subset(range(len(train) - 1)), "'class 199' has 29 training pictures, not 30"),
        ("cub200", lambda train: replace(train, classes=train.classes[:-1]), "199 classes, not 200"),
    ],
)
def test_fixed_shots_of_another_order_are_refused(dataset, change, said):
    with pytest.raises(DataError, match=f"published order, but .*{said}.*draw=seed"):
        fixed_shots(dataset, change(fscil_data(dataset).train))


def test_a_shuffled_order_is_pilots_and_relabels_train_and_test_alike():  # invariant 8
    splits = fake(100)
    cut = made(splits, name="cil", base=10, way=10)
    # The order known from iCaRL on: np.random.seed(1993); np.random.permutation(100).
    assert cut.order[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
    again = made(splits, name="cil", base=10, way=10, seed=2)
    assert again.order == cut.order
    assert [each.train.hash for each in again.sessions] == [each.train.hash for each in cut.sessions]
    assert cut.classes[0] == "class 68"
    truth = names_by_key(splits.train) | names_by_key(splits.tests["test"])
    for session in cut.sessions:
        for part in (session.train, session.test):
            assert part.classes == cut.classes
            assert names_by_key(part).items() <= truth.items()
            assert {cut.order[label] for label in part.labels} == {cut.order[label] for label in session.classes}


def test_orders_follow_the_run_where_they_say_seed():
    splits = fake(12)
    orders = [made(splits, seed, name="cil", base=4, way=4, order="seed").order for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] == made(splits, 9, name="cil", base=4, way=4, order="seed:1").order


def test_a_seeded_draw_depends_on_seed_and_keys_alone():
    splits = fake(12)
    options = {"name": "fscit", "base": 4, "way": 4, "shots": 3, "base_shots": 2}
    drawn = [made(splits, seed, **options) for seed in (1, 1, 2)]
    hashes = [[session.train.hash for session in cut.sessions] for cut in drawn]
    assert hashes[0] == hashes[1]
    assert all(one != other for one, other in zip(hashes[0], hashes[2], strict=True))
    turned = replace(splits, train=splits.train.subset(range(len(splits.train) - 1, -1, -1)))
    assert [session.train.hash for session in made(turned, 1, **options).sessions] == hashes[0]
    fixed = [made(splits, seed, draw="seed:1", **options) for seed in (5, 6)]
    assert [[session.train.hash for session in cut.sessions] for cut in fixed] == [hashes[0]] * 2


def test_the_last_session_of_cil_takes_the_remainder_and_all_pictures():
    cut = made(fake(11), name="cil", base=4, way=3)
    assert cut.sizes == (4, 3, 3, 1)
    assert [len(session.train) for session in cut.sessions] == [60, 45, 45, 15]
    assert made(fake(11), name="cil", base=11, way=1).sizes == (11,)


def test_first_shots_are_those_of_the_file_order():
    splits = fake(6)
    cut = made(splits, name="fscil", base=2, way=2, draw="first")
    members = splits.train.by_class()
    assert cut.sessions[1].train.keys == tuple(splits.train.keys[i] for label in (2, 3) for i in members[label][:5])


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("validation", [0, 4])
def test_validation_pictures_train_and_test_nothing(test, validation):
    splits = fake(6, val=validation)
    if test == "val" and not validation:
        with pytest.raises(DataError, match=r"unknown test set 'val'.*Known: test, other"):
            made(splits, name="fscil", base=2, way=2, test=test)
        return
    cut = made(splits, name="fscil", base=2, way=2, val_shots=3, test=test)
    tested = set(cut.seen_test(2).keys)
    assert {key[0] for key in tested} == {test[0]}
    for session in cut.sessions:
        assert [session.val.labels.count(label) for label in session.classes] == [3, 3]
        assert not set(session.val.keys) & (tested | {key for each in cut.sessions for key in each.train.keys})
        assert {key[0] for key in session.val.keys} == {"v" if validation and test == "test" else "r"}
    assert len(cut.sessions[0].train) == (30 if validation and test == "test" else 24)
    assert [len(session.train) for session in cut.sessions[1:]] == [10, 10]
    assert made(splits, name="fscil", base=2, way=2, test=test).sessions[0].val is None


def test_listed_sessions_come_in_their_order_without_the_other_classes():
    splits = fake(8)
    listed = [["class 6", "class 1", "class 4"], ["class 0"], ["class 7", "class 2"]]
    cut = made(splits, name="fscil", sessions=listed, val_shots=1)
    assert cut.sizes == (3, 1, 2)
    assert cut.classes == ("class 6", "class 1", "class 4", "class 0", "class 7", "class 2")
    assert cut.order == (6, 1, 4, 0, 7, 2)
    truth = names_by_key(splits.train) | names_by_key(splits.val) | names_by_key(splits.tests["test"])
    for session, names in zip(cut.sessions, listed, strict=True):
        for part in (session.train, session.val, session.test):
            assert {part.classes[label] for label in part.labels} == set(names)
            assert names_by_key(part).items() <= truth.items()
    assert [len(session.train) for session in cut.sessions] == [45, 5, 10]
    assert len(cut.seen_test(2)) == 18


def test_listed_sessions_are_those_of_base_and_way_where_they_list_the_same():
    splits = fake(6)
    listed = [[f"class {label}" for label in labels] for labels in ((0, 1), (2, 3), (4, 5))]
    one = made(splits, name="fscit", base=2, way=2, shots=3, draw="seed:4")
    other = made(splits, name="fscit", sessions=listed, shots=3, draw="seed:4")
    assert one.facts() == other.facts()
    options = SessionOptions(name="cil", sessions=listed)
    assert (options.order, options.base, options.way) == ("natural", None, None)
    assert SessionOptions.model_validate(options.model_dump(mode="json")) == options


@pytest.mark.parametrize(
    ("classes", "listed", "said"),
    [
        (
            ("cat", "dog", "owl"),
            [["cat"], ["dgo"]],
            "lists 'dgo', which is no class of the data set. Did you mean 'dog'?",
        ),
        (("cat", "dog", "owl"), [["xyz"]], "lists 'xyz', which is no class .* It has 'cat', 'dog', 'owl'"),
        (("owl", "dog", "owl"), [["dog"], ["owl"]], "lists 'owl', which 2 classes are called"),
    ],
)
def test_listed_classes_must_be_in_the_data_set_once(classes, listed, said):
    splits = fake(3)
    renamed = replace(
        splits,
        train=replace(splits.train, classes=classes),
        val=replace(splits.val, classes=classes),
        tests={"test": replace(splits.tests["test"], classes=classes)},
    )
    with pytest.raises(DataError, match=said):
        made(renamed, name="cil", sessions=listed)


def test_facts_record_what_was_drawn():
    cut = made(fake(6), name="fscil", base=2, way=2, val_shots=1)
    facts = cut.facts()
    assert facts["class_order"] == [0, 1, 2, 3, 4, 5]
    first, second, _ = facts["sessions"]
    session = cut.sessions[1]
    assert second["train_hash"] == session.train.hash
    assert second["train_keys"] == list(session.train.keys)
    assert (second["val_hash"], second["test_hash"]) == (session.val.hash, session.test.hash)
    assert (second["classes"], second["train_images"], second["val_images"], second["test_images"]) == (
        [2, 3],
        10,
        2,
        6,
    )
    assert "train_keys" not in first  # all there are: the hash says it


def test_seen_test_grows_at_its_end_with_captions():
    cut = made(fake(6), name="fscit", base=2, way=2)
    small, large = cut.seen_test(1), cut.seen_test(2)
    assert large.keys[: len(small)] == small.keys
    assert large.captions == tuple((key,) for key in large.keys)


def test_emoji_in_sessions():
    splits = emoji(EmojiConfig())
    cut = made(splits, name="fscil", base=11, way=4, val_shots=2, test="openmoji")
    assert cut.sizes == (11, 4, 4, 4)
    assert [len(session.train) for session in cut.sessions[1:]] == [20, 20, 20]
    assert all(session.val is not None and len(session.val) == 2 * len(session.classes) for session in cut.sessions)
    assert set(cut.seen_test(3).keys) == set(splits.tests["openmoji"].keys)
    assert cut.sessions[2].train.image(0).size == (64, 64)


def test_what_is_given_wins_over_the_preset():
    options = SessionOptions(name="fscil", dataset="cub200", base=120, draw="seed:2")
    assert (options.base, options.way, options.shots, options.base_shots, options.draw) == (120, 10, 5, None, "seed:2")
    assert SessionOptions.model_validate(options.model_dump()) == options
    assert preset("fscit") == {"shots": 10, "base_shots": 10}
    cil = SessionOptions(name="cil", base=5, way=5)
    assert (cil.order, cil.shots, cil.base_shots) == ("seed:1993", None, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "fscil", "dataset": "cifar10"}, "no setting of data set 'cifar10'. Did you mean 'cifar100'?"),
        ({"name": "cil", "dataset": "cifar100"}, "It has none; without `dataset`, give `base` and `way`"),
        ({"name": "fscil", "base": 5}, "give way, or the class names of every session as `sessions`"),
        ({"name": "cil"}, "give base and way, or the class names"),
        ({"name": "cil", "sessions": [["a", "b"], ["c", "a"]]}, "class 'a' is in session 0 and again in session 1"),
        ({"name": "cil", "sessions": [["a", "b"], []]}, "session 1 is empty"),
        ({"name": "cil", "sessions": []}, "there is no session: list the class names"),
        ({"name": "cil", "sessions": [["a"]], "base": 1, "way": 2}, "leave out base, way"),
        ({"name": "fscil", "sessions": [["a"]], "dataset": "cub200"}, "leave out dataset "),
        ({"name": "cil", "sessions": [["a"]], "order": "seed:1993"}, "leave out order"),
        ({"name": "fscil", "sessions": [["a"]], "draw": "paper"}, "draw=paper is for name=fscil with dataset"),
        ({"name": "fscil", "base": 5, "way": 5, "draw": "paper"}, "draw=paper is for name=fscil with dataset cifar100"),
        ({"name": "fscit", "dataset": "cub200", "draw": "paper"}, "draw=paper is for name=fscil"),
        ({"name": "fscil", "dataset": "cub200", "shots": 6}, "draw=paper has 5 shots per class"),
        ({"name": "fscil", "dataset": "cub200", "shots": None}, "draw=paper has 5 shots per class"),
        ({"name": "fscil", "dataset": "cub200", "base": 90}, "fixed shots from class 100 of cub200 on"),
        ({"name": "fscil", "dataset": "cub200", "order": "seed:1"}, "order=natural"),
        ({"name": "cil", "base": 5, "way": 5, "order": "random"}, "must be natural, seed .* or seed:<n>"),
        ({"name": "cil", "base": 5, "way": 5, "draw": "seed:x"}, "must be first, paper, seed"),
        ({"name": "icl", "base": 5, "way": 5}, "'fscil', 'fscit' or 'cil'"),
        ({"name": "cil", "base": 5, "way": 5, "shot": 1}, "Extra inputs"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        SessionOptions(**options)


@pytest.mark.parametrize(
    ("classes", "base", "way", "said"),
    [
        (100, 60, 7, "nearest that fit are base=58, base=65, way=5, way=8"),
        (10, 8, 15, "nearest that fit are way=2"),
        (23, 11, 5, "nearest that fit are base=8, base=13, way=4, way=6"),
        (10, 10, 2, "base=10 leaves no new class of 10"),
    ],
)
def test_classes_that_do_not_fit_are_refused_with_what_does(classes, base, way, said):
    with pytest.raises(DataError, match=said):
        made(fake(classes), name="fscil", base=base, way=way)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (
            {},
            {"shots": 16},
            r"'class 2' \(and 1 more of its session\) has 15 training pictures, 16 needed.*lower task.protocol.shots",
        ),
        ({}, {"base_shots": 13, "val_shots": 5}, "has 4 validation pictures, 5 needed.*val_shots"),
        ({"val": 0}, {"base_shots": 13, "val_shots": 5}, "has 15 training pictures, 18 needed.*base_shots"),
        ({}, {"test": "tset"}, "unknown test set 'tset'. Did you mean 'test'?"),
    ],
)
def test_data_that_falls_short_is_refused(change, options, said):
    with pytest.raises(DataError, match=said):
        made(fake(6, **change), name="fscil", base=2, way=2, **options)


def test_a_data_set_of_another_size_than_its_setting_is_refused():
    with pytest.raises(DataError, match="'eurosat' has 10 classes, the data set has 9"):
        made(fake(9), name="fscit", dataset="eurosat")


def test_test_pictures_in_training_are_refused():
    splits = fake(6)
    leaked = replace(splits.tests["test"], keys=(splits.train.keys[0], *splits.tests["test"].keys[1:]))
    with pytest.raises(DataError, match=r"picture 'r/0' is in the .* pictures of session . and in the"):
        made(replace(splits, tests={"test": leaked}), name="cil", base=2, way=2)
    with pytest.raises(DataError, match="other classes than"):
        made(replace(splits, tests={"test": fake(5).tests["test"]}), name="cil", base=2, way=2)


def test_sessions_made_by_hand_are_checked():
    def session(number, labels, train=None, test=None):
        own = [images(f"{name}{number}", given or labels, 4) for name, given in (("train", train), ("test", test))]
        return Session(number, tuple(labels), *own)

    def sessions(*each):
        return Sessions(tuple(f"class {label}" for label in range(4)), (0, 1, 2, 3), each)

    assert sessions(session(0, [0, 1]), session(1, [2, 3])).sizes == (2, 2)
    with pytest.raises(DataError, match="class 'class 1' is in two"):
        sessions(session(0, [0, 1]), session(1, [1, 2, 3]))
    with pytest.raises(DataError, match=r"they hold \[0, 1, 3\] of 4"):
        sessions(session(0, [0, 1]), session(1, [3]))
    with pytest.raises(DataError, match="session 1 has training pictures that are not its own of class 'class 0'"):
        sessions(session(0, [0, 1]), session(1, [2, 3], train=[0, 2, 3]))
    with pytest.raises(DataError, match="session 1 has no test pictures of class 'class 3'"):
        sessions(session(0, [0, 1]), session(1, [2, 3], test=[2]))
