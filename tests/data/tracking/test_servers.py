"""Archives for the servers of GOT-10k and TrackingNet, and every mistake in them."""

import zipfile

import numpy as np
import pytest

from vision_lowrank.data.tracking.results import ResultFolder, form_of
from vision_lowrank.data.tracking.servers import check_got10k, check_trackingnet, pack_got10k, pack_trackingnet
from vision_lowrank.errors import DataError

LENGTHS = {"seq_1": 4, "seq_2": 2}
CHECKS = {"got10k": check_got10k, "trackingnet": check_trackingnet}


def written(root, name, runs=(None,)):
    results = ResultFolder(root, form_of(name))
    for sequence, frames in LENGTHS.items():
        for run in runs:
            results.write(sequence, np.ones((frames, 4)), np.ones(frames), run)
    return root


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_packed_is_complete_and_equal_each_time(tmp_path, name):
    pack = {"got10k": pack_got10k, "trackingnet": pack_trackingnet}[name]
    folder = written(tmp_path / "mine", name)
    assert CHECKS[name](folder, LENGTHS) == []
    archive = pack(folder, tmp_path / "mine.zip", LENGTHS)
    assert CHECKS[name](archive, LENGTHS) == []
    assert pack(folder, tmp_path / "again.zip", LENGTHS).read_bytes() == archive.read_bytes()
    names = zipfile.ZipFile(archive).namelist()
    if name == "got10k":
        assert sorted(names) == [
            "seq_1/seq_1_001.txt", "seq_1/seq_1_time.txt", "seq_2/seq_2_001.txt", "seq_2/seq_2_time.txt"
        ]  # fmt: skip
    else:
        assert names == ["seq_1.txt", "seq_2.txt"]  # times stay at home


def test_three_runs_have_three_files_and_three_columns_of_times(tmp_path):
    folder = written(tmp_path / "mine", "got10k", (1, 2, 3))
    assert check_got10k(folder, LENGTHS) == []
    (folder / "seq_2" / "seq_2_003.txt").unlink()
    assert check_got10k(folder, LENGTHS) == ["'seq_2' has no 'seq_2_003.txt': run the tracker on it."]
    (folder / "seq_1" / "seq_1_time.txt").write_text("1.0\n" * 4)
    assert "'seq_1/seq_1_time.txt', row 1: 1 numbers, not 3: " in check_got10k(folder, LENGTHS)[0]


def test_results_below_the_trackers_own_folder_are_taken_too(tmp_path):
    """LoRAT's archives keep that folder; TrackingNet's may be anywhere."""
    written(tmp_path / "up" / "mine", "got10k")
    assert check_got10k(tmp_path / "up", LENGTHS) == []
    written(tmp_path / "net" / "deep" / "mine", "trackingnet")
    assert check_trackingnet(tmp_path / "net", LENGTHS) == []


@pytest.mark.parametrize("name", CHECKS)
def test_every_mistake_has_its_line(tmp_path, name):
    folder = written(tmp_path / "mine", name)
    one, two = (folder / (f"{s}/{s}_001.txt" if name == "got10k" else f"{s}.txt") for s in LENGTHS)
    one.write_text("1,1,1,1\n" * 3)
    two.write_text("1,1,1,1\nnan,1,1,1\n")
    (folder / "notes.txt").write_text("hello")
    lines = CHECKS[name](folder, LENGTHS)
    assert sorted(lines) == sorted([
        "'notes.txt' is no result of a sequence: take it out.",
        f"'{one.relative_to(folder).as_posix()}' has 3 rows for 4 frames: run the tracker on this sequence again.",
        f"'{two.relative_to(folder).as_posix()}', row 2: not finite, or a negative side: run the tracker on this "
        "sequence again.",
    ])  # fmt: skip
    two.write_text("1,1,1,1\n1,1,x,1\n")
    assert any("row 2: 'x' is no number" in line for line in CHECKS[name](folder, LENGTHS))
    two.unlink()
    assert any(line.startswith("'seq_2' has no 'seq_2") for line in CHECKS[name](folder, LENGTHS))


def test_a_sequence_that_is_there_twice_or_without_times_is_a_mistake(tmp_path):
    folder = written(tmp_path / "net", "trackingnet")
    written(folder / "again", "trackingnet")
    assert "'seq_1' is there twice, 'again/seq_1.txt' and 'seq_1.txt': keep one." in check_trackingnet(folder, LENGTHS)
    folder = written(tmp_path / "mine", "got10k")
    (folder / "seq_1" / "seq_1_time.txt").unlink()
    assert check_got10k(folder, LENGTHS) == ["'seq_1/seq_1_time.txt' is missing: run the tracker on this sequence."]


def test_nothing_is_packed_of_what_cannot_be_sent(tmp_path):
    folder = written(tmp_path / "mine", "got10k")
    for sequence in LENGTHS:
        (folder / sequence / f"{sequence}_001.txt").unlink()
    with pytest.raises(DataError, match=r"mine' cannot be sent: 'seq_1' has no 'seq_1_001\.txt'.*\(1 more mistakes\)"):
        pack_got10k(folder, tmp_path / "mine.zip", LENGTHS)
    assert not (tmp_path / "mine.zip").exists()
    with pytest.raises(DataError, match="nowhere' is neither a folder nor a ZIP file"):
        check_got10k(tmp_path / "nowhere", LENGTHS)
