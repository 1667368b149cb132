import json
import pickle

import pytest
import torchvision
from fixtures.coop_trees import plant

from vision_lowrank.cli.main import main
from vision_lowrank.data import coop_sets
from vision_lowrank.data.coop import CoopConfig, coop
from vision_lowrank.data.coop_sets import COOP_SETS


def run(*arguments):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", *map(str, arguments)])
    return stop.value.code


def found(root, *names):
    """What the command writes as JSON, by name, and its exit code."""
    code = run(root, *names, "--json", root / "found.json")
    return {row["name"]: row for row in json.loads((root / "found.json").read_text())}, code


@pytest.fixture
def small(monkeypatch):
    """The table with the sizes of the small trees, as if those were published."""
    for key, spec in COOP_SETS.items():
        sizes = {"imagenet": (32, 0, 8)}.get(key, (21, 15, 9) if spec.source in ("json", "variants") else (0, 0, 4))
        classes = 3 if spec.source in ("json", "variants") else 4
        monkeypatch.setitem(coop_sets.COOP_SETS, key, spec._replace(classes=classes, sizes=sizes))


def test_complete_sets_give_exit_code_0(tmp_path, small, capsys):
    for key in COOP_SETS:
        plant(tmp_path, key)
    rows, code = found(tmp_path)
    assert code == 0
    assert [key for key, row in rows.items() if row["complete"]] == list(COOP_SETS)
    assert rows["dtd"]["sizes"] == {"train": [21, 21], "val": [15, 15], "test": [9, 9]}
    out = capsys.readouterr().out
    assert out.count("yes") == 15
    assert "data set '" not in out


def test_hashes_are_those_that_runs_record(tmp_path):
    plant(tmp_path, "dtd", "DTD")
    rows, _ = found(tmp_path, "dtd")
    splits = coop(CoopConfig(root=str(tmp_path), name="dtd"))
    assert rows["dtd"]["hashes"] == {
        "train": splits.train.hash, "val": splits.val.hash, "test": splits.tests["test"].hash
    }  # fmt: skip
    assert rows["dtd"]["folder"] == str(tmp_path / "DTD")
    assert rows["dtd"]["split"].endswith("DTD/split_zhou_DescribableTextures.json")


def test_sizes_that_differ_name_both_numbers(tmp_path, capsys):
    plant(tmp_path, "dtd")
    rows, code = found(tmp_path, "dtd")
    assert code == 2
    assert "data set 'dtd': 3 classes, but 47 are published." in rows["dtd"]["problems"]
    assert "data set 'dtd': 21 train pictures, but 2,820 are published." in rows["dtd"]["problems"]
    assert "data set 'dtd': 9 test pictures, but 1,692 are published." in capsys.readouterr().out


def test_missing_pictures_are_counted_and_named(tmp_path, small):
    path = plant(tmp_path, "food101")["test"][0][0]
    (tmp_path / "food-101" / "images" / path).unlink()
    rows, code = found(tmp_path, "food101")
    assert code == 2
    assert rows["food101"]["missing_files"] == 1
    assert f"1 of 45 pictures are not in '{tmp_path / 'food-101' / 'images'}', such as '{path}'" in str(rows)


def test_missing_sets_say_where_to_get_them(tmp_path, small, capsys):
    plant(tmp_path, "dtd")
    rows, code = found(tmp_path, "dtd", "ucf101", "sun397")
    assert code == 2
    assert [rows[key]["complete"] for key in ("dtd", "ucf101", "sun397")] == [True, False, False]
    assert rows["ucf101"]["folder"] is None
    out = capsys.readouterr().out
    assert "neither folder 'ucf101' nor 'UCF101' exists: get the pictures from https://" in out
    assert "princeton.edu/projects/2010/SUN/ or let torchvision download them" in out


def test_a_missing_split_file_is_a_problem_not_an_error(tmp_path, small):
    plant(tmp_path, "eurosat")
    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").unlink()
    rows, code = found(tmp_path, "eurosat")
    assert code == 2
    assert "split_zhou_EuroSAT.json' is missing" in rows["eurosat"]["problems"][0]
    (tmp_path / "eurosat" / "split_zhou_EuroSAT.json").write_text("{}")
    assert "is not {'train'" in found(tmp_path, "eurosat")[0]["eurosat"]["problems"][0]


def test_selections_are_listed_and_checked(tmp_path, small):
    plant(tmp_path, "dtd")
    folder = tmp_path / "dtd" / "split_fewshot"
    folder.mkdir()
    (folder / "shot_1-seed_1.pkl").write_bytes(pickle.dumps({"train": []}))
    rows, code = found(tmp_path, "dtd")
    assert (rows["dtd"]["selections"], code) == (["shot_1-seed_1.pkl"], 0)
    (folder / "shot_2-seed_1.pkl").write_bytes(b"junk")
    rows, code = found(tmp_path, "dtd")
    assert (rows["dtd"]["selections"], code) == (["shot_1-seed_1.pkl"], 2)
    assert "shot_2-seed_1.pkl' is damaged" in rows["dtd"]["problems"][0]


def test_download_fetches_what_it_can_and_reports_what_fails(tmp_path, small, monkeypatch):
    plant(tmp_path / "server", "fgvc_aircraft")

    def aircraft(root, download):
        (tmp_path / "fgvc-aircraft-2013b").mkdir()
        (tmp_path / "server" / "fgvc_aircraft").rename(tmp_path / "fgvc-aircraft-2013b" / "data")

    def broken(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "FGVCAircraft", aircraft)
    monkeypatch.setattr(torchvision.datasets, "DTD", broken)
    code = run(tmp_path, "fgvc_aircraft", "dtd", "ucf101", "--download", "--json", tmp_path / "found.json")
    rows = json.loads((tmp_path / "found.json").read_text())
    assert code == 2
    assert [row["complete"] for row in rows] == [True, False, False]
    assert "the download failed: no route to host" in rows[1]["problems"][0]
    assert "neither folder 'dtd' nor 'DTD' exists" in rows[1]["problems"][1]


def test_mistakes_are_one_line(tmp_path, capsys):
    assert run(tmp_path, "dtdd") == 2
    assert "unknown data set 'dtdd'. Did you mean 'dtd'" in capsys.readouterr().err
    assert run(tmp_path / "nowhere") == 2
    assert "nowhere' does not exist" in capsys.readouterr().err
