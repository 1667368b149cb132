from collections import Counter
from pathlib import Path

import pytest

from vision_lowrank.data.manipulation.base import EDITED, REAL, SYNTHETIC, ManipulationSet, PictureRecord
from vision_lowrank.data.manipulation.joined import join
from vision_lowrank.data.manipulation.sampling import Balanced, EqualDraws, Single, Twins, draws_of
from vision_lowrank.errors import DataError


def made(records, name="made"):
    return ManipulationSet.of(name, records, Path("."))


def edit(source, editor, category, number=0):
    return PictureRecord(
        f"{source}-{editor}-{category}-{number}", "x", EDITED, source, editor=editor, category=category
    )


def real(source):
    return PictureRecord(source, "x", REAL, source)


def world():
    """3 sources with both, one of them without annotations; a real and an edit without twins, and a synthetic one."""
    return made(
        [
            edit("lonely", "e", "color"),
            real("a"),
            *(edit("a", "busy", "removal", i) for i in range(8)),
            edit("a", "busy", "color"),
            edit("a", "rare", "color"),
            edit("b", "e", "color"),
            real("b"),
            real("alone"),
            PictureRecord("syn", "x", SYNTHETIC, "b"),
            PictureRecord("c", "x", REAL, "c"),
            PictureRecord("c1", "x", EDITED, "c"),
        ]
    )


def test_twins_give_a_real_picture_and_one_of_its_edits():
    images = world()
    twins = Twins(images, seed=3)
    assert len(twins) == 3
    assert twins.edits == 12
    for position in range(60):
        first, second = twins.draw(position % 3, position)
        assert images.labels[first] == REAL
        assert images.labels[second] == EDITED
        assert images.sources[first] == images.sources[second]
    assert {images.sources[twins.draw(i, 0)[0]] for i in range(3)} == {"a", "b", "c"}


def test_edits_are_drawn_evenly_by_editor_then_category():
    images = world()
    twins = Twins(images, seed=0)
    index = next(i for i in range(3) if images.sources[twins.draw(i, 0)[0]] == "a")
    counts = Counter(images.records[twins.draw(index, position)[1]].id for position in range(4000))
    assert len(counts) == 10
    assert abs(counts["a-rare-color-0"] / 4000 - 1 / 2) < 0.03
    assert abs(counts["a-busy-color-0"] / 4000 - 1 / 4) < 0.03
    assert abs(counts["a-busy-removal-0"] / 4000 - 1 / 32) < 0.012


def test_draws_depend_on_seed_and_position_alone():
    images = world()
    drawn = [Twins(images, 5).draw(i % 3, i) for i in range(40)]
    twins = Twins(images, 5)
    assert [twins.draw(i % 3, i) for i in reversed(range(40))] == drawn[::-1]
    assert [Twins(images, 6).draw(i % 3, i) for i in range(40)] != drawn


def test_balanced_draws_give_every_label_once():
    images = made([real(f"r{i}") for i in range(7)] + [edit(f"x{i}", "ab"[i > 0], "color") for i in range(3)])
    draws = Balanced(images, 0)
    assert len(draws) == 7
    drawn = [draws.draw(i, i) for i in range(7)]
    assert [d[0] for d in drawn] == list(range(7))  # the frequent label in full
    assert {images.labels[d[1]] for d in drawn} == {EDITED}
    counts = Counter(images.editors[draws.draw(0, p)[1]] for p in range(2000))
    assert abs(counts["a"] / 2000 - 0.5) < 0.04
    three = Balanced(world(), 0).draw(0, 0)
    assert [world().labels[i] for i in three] == [REAL, EDITED, SYNTHETIC]


def test_equal_draws_are_1840_per_set_and_deterministic():
    sets = [made([real(f"{n}{i}") for i in range(size)], name=f"set{n}") for n, size in enumerate((3, 500, 1))]
    joined = join("cat", sets, draws=1840)
    draws = EqualDraws(joined, 1840, seed=1)
    assert len(draws) == 3 * 1840
    drawn = [draws.draw(i, i)[0] for i in range(len(draws))]
    assert Counter(int(joined.parts[i]) for i in drawn) == {0: 1840, 1: 1840, 2: 1840}
    assert [int(joined.parts[drawn[i]]) for i in (0, 1839, 1840, 3679, 3680)] == [0, 0, 1, 1, 2]
    assert len(set(drawn[1840:3680])) > 450  # at random, nearly all of 500
    assert [EqualDraws(joined, 1840, 1).draw(i, i)[0] for i in (9, 2000, 17)] == [drawn[i] for i in (9, 2000, 17)]
    part = joined.subset([0, 1, 10, 11, 12])
    assert len(draws_of(part, 0)) == 2 * 1840  # a set without pictures is no set


def test_the_rule_that_fits():
    assert isinstance(draws_of(world(), 0), Twins)
    assert isinstance(draws_of(made([real("a"), edit("b", "e", "color")]), 0), Balanced)
    assert isinstance(draws_of(made([edit("b", "e", "color")]), 0), Single)
    assert isinstance(draws_of(join("j", [world()], draws=9), 0), EqualDraws)
    assert isinstance(draws_of(join("j", [world()]), 0), Twins)
    assert draws_of(world(), 0, "single").draw(4, 0) == (4,)
    with pytest.raises(DataError, match="no source with a real and an edited picture"):
        draws_of(made([real("a")]), 0, "twins")
    with pytest.raises(DataError, match="pictures of one label only"):
        draws_of(made([real("a")]), 0, "balanced")
    with pytest.raises(DataError, match="'made' is one set"):
        draws_of(world(), 0, "equal")


def test_joined_sets_keep_names_paths_and_twins_apart(tmp_path):
    one = ManipulationSet.of("one", [PictureRecord("a", "x/a.png", REAL, "a", group="g")], tmp_path / "p")
    two = ManipulationSet.of(
        "two",
        [PictureRecord("a", "a.png", REAL, "a"), PictureRecord("b", "b.png", 1, "a", mask="m.png")],
        tmp_path / "q" / "r",
    )
    joined = join("both", [one, two])
    assert [r.id for r in joined.records] == ["one/a", "two/a", "two/b"]
    assert [joined.sources[i] for i in range(3)] == ["one/a", "two/a", "two/a"]
    assert joined.records[0].group == "one/g"
    assert joined.root / joined.records[2].mask == tmp_path / "q" / "r" / "m.png"
    assert joined.root / joined.records[-3].image == tmp_path / "p" / "x" / "a.png"
    assert joined.subset([2, 0]).parts.tolist() == [1, 0]
    with pytest.raises(DataError, match="two of the sets to join are called 'one'"):
        join("both", [one, one])
