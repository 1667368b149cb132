import pytest

import vision_lowrank as vl
from vision_lowrank.config.schema import Section
from vision_lowrank.data.digits import DigitsConfig
from vision_lowrank.data.gives import read_data
from vision_lowrank.errors import UserError
from vision_lowrank.registry import Registry

WORDS = {"classes", "captions", "edits", "clips", "boxes", "masks", "regions"}


@pytest.mark.parametrize("part", vl.methods("data"), ids=lambda part: part.name)
def test_every_data_set_says_what_it_gives(part):
    assert part.gives
    assert set(part.gives.split()) <= WORDS


def test_data_that_give_what_is_needed_are_read():
    splits = read_data(DigitsConfig(), "classes")
    assert (splits.train.name, len(splits.train.classes)) == ("digits", 10)


def test_other_data_are_refused_before_they_are_read_with_those_that_fit(monkeypatch):
    monkeypatch.setattr("vision_lowrank.data.digits._arrays", lambda: 1 / 0)
    with pytest.raises(UserError) as refused:
        read_data(DigitsConfig(), "edits")
    edits = sorted(part.name for part in vl.methods("data") if part.gives == "edits")
    expected = f"data 'digits' gives classes, but edits are needed here: take one of {', '.join(edits)}."
    assert str(refused.value) == expected
    with pytest.raises(UserError, match=r"gives classes, but tracks are needed here: take one of none known\.$"):
        read_data(DigitsConfig(), "tracks")


@pytest.mark.parametrize("gives", ["boxes tracks", ""])
def test_one_set_may_give_several_things_and_one_that_says_nothing_gives_nothing(monkeypatch, gives):
    class Scenes(Section):
        type: str = "scenes"

    own = Registry()
    own.register("data", "scenes", summary="moving things", gives=gives)(lambda config: "read")
    monkeypatch.setattr("vision_lowrank.data.gives.registry", own)
    said = "boxes and tracks" if gives else "nothing that it was registered with"
    with pytest.raises(UserError, match=f"'scenes' gives {said}, but classes are needed here: take one of none known"):
        read_data(Scenes(), "classes")
    for word in gives.split():
        assert read_data(Scenes(), word) == "read"
