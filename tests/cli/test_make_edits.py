"""``make-edits`` makes a data set, prints what is in it, and audits it."""

import numpy as np
import pytest
from PIL import Image

from vision_lowrank.cli.make_edits import make_edits_command
from vision_lowrank.data.edits.reader import read_edits
from vision_lowrank.errors import DataError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for number in range(9):
        coarse = np.random.default_rng(number).integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((90, 80), Image.Resampling.BICUBIC).save(root / f"{number}.png")
    return root


def command(photos, out, **changes):
    options = {
        "per_photo": 2, "kinds": None, "exclude": None, "unseen": None, "seed": 1, "size": None, "crops": None,
        "objects": None, "fractions": "0.6,0.2,0.2", "check": False,
    }  # fmt: skip
    make_edits_command(str(photos), out, **(options | changes))


def test_makes_and_audits(photos, tmp_path, capsys):
    out = tmp_path / "set"
    command(photos, out, exclude="blur,text-add", unseen="copy-move", check=True)
    printed = capsys.readouterr().out
    assert "(real)" in printed
    assert "copy-move" in printed
    assert "text-add" not in printed
    assert "real against edited by metadata alone, AUC" in printed
    splits = read_edits(out, ("copy-move",))
    assert {splits.tests["unseen"].editors[n] for n in range(len(splits.tests["unseen"]))} == {None, "copy-move"}
    everything = len(splits.train) + len(splits.val) + len(splits.tests["seen"])
    only_unseen = int((splits.tests["unseen"].labels == 1).sum())
    assert f"{everything + only_unseen} pictures, 9 groups" in " ".join(printed.split())
    command(photos, out, exclude="blur,text-add", unseen="copy-move")  # finished: again, at once
    assert "data set in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": "blurr"}, "unknown kind of edit 'blurr'"),
        ({"exclude": "blurr"}, "unknown kind of edit 'blurr'"),
        ({"fractions": "0.5,0.5"}, "must be three numbers"),
        ({"fractions": "0.5,0.2,0.2"}, "sum to 1"),
        ({"kinds": "blur", "unseen": "noise"}, "unseen kind 'noise' is not among"),
        ({"kinds": "blur", "exclude": "blur"}, "no kind of edit is left"),
        ({"crops": 4, "size": 500}, "no photograph in .* is 500 px large"),
    ],
)
def test_mistakes(photos, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        command(photos, tmp_path / "set", **changes)
