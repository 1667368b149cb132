import os
import pickle
import sys
import types

import pytest
from fixtures.coop_trees import plant

from vision_lowrank.data.coop import CoopConfig, coop
from vision_lowrank.data.samplers import draw_shots
from vision_lowrank.errors import DataError


def read(root, name, shots_cache=True):
    return coop(CoopConfig(root=str(root), name=name, shots_cache=shots_cache))


@pytest.fixture
def datum(monkeypatch):
    """Dassl's ``Datum`` under Dassl's name, as the original code would pickle it."""

    class Datum:
        def __init__(self, impath, label, classname):
            self._impath, self._label, self._domain, self._classname = impath, label, 0, classname

    Datum.__module__, Datum.__qualname__ = "dassl.data.datasets.base_dataset", "Datum"
    names = Datum.__module__.split(".")
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[Datum.__module__].Datum = Datum
    return Datum


def store(root, folder, tree, name="shot_2-seed_1.pkl", protocol=pickle.HIGHEST_PROTOCOL):
    path = root / folder / "split_fewshot" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tree if isinstance(tree, bytes) else pickle.dumps(tree, protocol))
    return path


def selection(datum, rows, prefix, counts=(2, 2)):
    """The last `counts` pictures of each class, as one train and one val list."""
    tree = {}
    for split, count in zip(("train", "val"), counts, strict=True):
        chosen = [row for label in range(4) for row in [r for r in rows[split] if r[1] == label][-count:]]
        tree[split] = [datum(prefix + path, label, name) for path, label, name in chosen]
    return tree


def ends(items, prefix):
    return tuple(item._impath.removeprefix(prefix) for item in items)


PREFIXES = [
    ("dtd", "dtd", "/home/kz/data/dtd/images/"),
    ("dtd", "DTD", "C:\\data\\dtd\\images\\"),
    ("stanford_cars", "stanford_cars", "/mnt/images/stanford_cars/"),
    ("fgvc_aircraft", "fgvc_aircraft", "/data/fgvc_aircraft/images/"),
]


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize(("key", "folder", "prefix"), PREFIXES)
def test_selections_of_other_machines_are_found_again(tmp_path, monkeypatch, datum, key, folder, prefix, protocol):
    tree = selection(datum, plant(tmp_path, key, folder), prefix)
    store(tmp_path, folder, tree, protocol=protocol)
    for name in [name for name in sys.modules if name.partition(".")[0] == "dassl"]:
        monkeypatch.delitem(sys.modules, name)  # readers have no Dassl
    train, val = draw_shots(read(tmp_path, key), 2, 1)
    assert (train.keys, val.keys) == (ends(tree["train"], prefix), ends(tree["val"], prefix))
    assert list(train.labels) == [item._label for item in tree["train"]]
    assert train.image(0).size == (4, 3)


def test_selections_of_imagenet_have_no_validation_pictures(tmp_path, datum):
    tree = selection(datum, plant(tmp_path, "imagenet"), "/x/imagenet/images/")
    store(tmp_path, "imagenet", {"train": tree["train"]})
    train, val = draw_shots(read(tmp_path, "imagenet"), 2, 1)
    assert train.keys == ends(tree["train"], "/x/imagenet/images/")
    assert val is None


def test_selections_are_used_only_when_asked_for(tmp_path, datum):
    tree = selection(datum, plant(tmp_path, "dtd"), "/x/")
    store(tmp_path, "dtd", tree)
    drawn, _ = draw_shots(read(tmp_path, "dtd", shots_cache=False), 2, 1)
    assert drawn.keys != ends(tree["train"], "/x/")


def test_without_a_selection_for_a_seed_pictures_are_drawn_and_a_warning_says_so(tmp_path, datum):
    store(tmp_path, "dtd", selection(datum, plant(tmp_path, "dtd"), "/x/"))
    with pytest.warns(UserWarning, match="no few-shot selection for 2 shots and seed 3: pictures are drawn anew"):
        train, _ = draw_shots(read(tmp_path, "dtd"), 2, 3)
    assert train.keys == draw_shots(read(tmp_path, "dtd", shots_cache=False), 2, 3)[0].keys


def test_selections_do_not_go_with_the_other_sampler(tmp_path):
    plant(tmp_path, "dtd")
    with pytest.raises(DataError, match=r"are CoOp's, not 'clip_lora': set data\.shots_cache=false"):
        draw_shots(read(tmp_path, "dtd"), 2, 1, "clip_lora")


def test_short_selections_need_allow_fewer(tmp_path, datum):
    store(tmp_path, "dtd", selection(datum, plant(tmp_path, "dtd"), "/x/", counts=(1, 1)))
    with pytest.raises(DataError, match="1 training pictures, 2 needed"):
        draw_shots(read(tmp_path, "dtd"), 2, 1)
    assert len(draw_shots(read(tmp_path, "dtd"), 2, 1, allow_fewer=True)[0]) == 3


# --- what is refused ----------------------------------------------------------------------------------------------


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["alone", "list", "attribute"])
def test_code_in_a_selection_is_refused_and_not_run(tmp_path, datum, protocol, place):
    rows, trace = plant(tmp_path, "dtd"), tmp_path / "trace"
    evil = Calls(os.system, f"touch {trace}")
    tree = selection(datum, rows, "/x/")
    if place == "list":
        tree["train"].append(evil)
    elif place == "attribute":
        tree["train"][0]._domain = evil
    path = store(tmp_path, "dtd", evil if place == "alone" else tree, protocol=protocol)
    with pytest.raises(DataError, match=f"was refused: it refers to '{os.name}.system'") as caught:
        draw_shots(read(tmp_path, "dtd"), 2, 1)
    assert str(path) in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"ccopyreg\n_reconstructor\n.", r"copyreg\._reconstructor"),
        (b"cos\nDatum.__init__\n.", r"os.Datum.__init__"),
        (b"cdassl.data.datasets.base_dataset\nDatumX\n.", "dassl.data.datasets.base_dataset.DatumX"),
    ],
)
def test_other_names_are_refused(tmp_path, data, name):
    plant(tmp_path, "dtd")
    store(tmp_path, "dtd", data)
    with pytest.raises(DataError, match=f"it refers to '{name}'"):
        draw_shots(read(tmp_path, "dtd"), 2, 1)


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps({"train": [1, 2]})[:-4], b"cx\nDatum\n(I1\ntR."])
def test_damaged_files_are_named(tmp_path, data):
    plant(tmp_path, "dtd")
    path = store(tmp_path, "dtd", data)
    with pytest.raises(DataError, match=f"'{path}' is damaged"):
        draw_shots(read(tmp_path, "dtd"), 2, 1)


@pytest.mark.parametrize("tree", [[], 3, {"val": []}, {"train": ["a.jpg"]}, {"train": {}}, {"train": [], "val": [1]}])
def test_other_contents_are_named(tmp_path, tree):
    plant(tmp_path, "dtd")
    store(tmp_path, "dtd", tree)
    with pytest.raises(DataError, match="is not a dictionary of lists of pictures"):
        draw_shots(read(tmp_path, "dtd"), 2, 1)


def test_pictures_of_another_split_or_label_are_named(tmp_path, datum):
    rows = plant(tmp_path, "dtd")
    tree = selection(datum, rows, "/x/")
    path, label, name = rows["test"][0]
    store(tmp_path, "dtd", tree | {"train": [*tree["train"], datum("/x/" + path, label, name)]})
    with pytest.raises(DataError, match=f"picture '/x/{path}' is not in the split file"):
        draw_shots(read(tmp_path, "dtd"), 2, 1)
    tree["train"][0]._label += 1
    store(tmp_path, "dtd", tree)
    with pytest.raises(DataError, match="has another label there than"):
        draw_shots(read(tmp_path, "dtd"), 2, 1)
