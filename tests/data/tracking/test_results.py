"""What is written can be read by those it is written for, and by us."""

import numpy as np
import pytest

from vision_lowrank.data.tracking.results import FORMS, ResultFolder, form_of, rasterize, read_result
from vision_lowrank.errors import DataError, UserError

BOXES = np.array([[10, 20, 30.5, 40.25], [11.12345, 20, 30.123456, 40], [0, 0, 1, 1]])
SECONDS = np.array([0.5, 0.25, 0.125])
PRECISION = {"got10k": 1e-4, "trackingnet": 1e-2, "pytracking": 1e-4, "lasot": 1e-4, "got10k-toolkit": 1e-3}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_read_back_is_what_was_written_within_the_forms_precision(tmp_path, name):
    results = ResultFolder(tmp_path / "mine", form_of(name))
    assert not results.is_complete("car-1", 3)
    path = results.write("car-1", BOXES, SECONDS)
    read, source = results.read("car-1", 3)
    assert np.abs(read - BOXES).max() <= PRECISION[name] / 2 + 1e-12
    assert source == f"'{path}'"
    assert len(path.read_text().splitlines()) == 3
    assert results.read_times("car-1").ravel() == pytest.approx(SECONDS)
    assert results.is_complete("car-1", 3)
    assert not results.is_complete("car-1", 4)


def text(tmp_path, name, **facts):
    return ResultFolder(tmp_path / "mine", form_of(name), **facts).write("a", BOXES[:1]).read_text()


def test_each_form_writes_the_text_of_its_readers(tmp_path):
    assert text(tmp_path, "got10k") == "10.0000,20.0000,30.5000,40.2500\n"
    assert text(tmp_path, "trackingnet") == "10.00,20.00,30.50,40.25\n"
    assert text(tmp_path, "pytracking") == "10.0000\t20.0000\t30.5000\t40.2500\n"
    assert text(tmp_path, "got10k-toolkit") == "10.000,20.000,30.500,40.250\n"
    assert text(tmp_path, "lasot") == "11.0000,21.0000,30.5000,40.2500\n"  # its first pixel is 1
    assert text(tmp_path, "lasot", origin=1) == "10.0000,20.0000,30.5000,40.2500\n"  # boxes of a set that counts so


def test_files_have_the_names_that_their_readers_look_for(tmp_path):
    def names(name, run=None):
        results = ResultFolder(tmp_path / name / "mine", form_of(name))
        results.write("a", BOXES, SECONDS, run)
        return sorted(p.relative_to(tmp_path / name).as_posix() for p in (tmp_path / name).rglob("*.txt"))

    assert names("got10k") == ["mine/a/a_001.txt", "mine/a/a_time.txt"]
    assert names("got10k", 3)[1] == "mine/a/a_003.txt"
    assert names("trackingnet") == names("lasot") == names("got10k-toolkit") == ["mine/a.txt", "mine/times/a_time.txt"]
    assert names("pytracking") == ["mine/a.txt", "mine/a_time.txt"]
    assert names("pytracking", 2)[2:] == ["mine_001/a.txt", "mine_001/a_time.txt"]


@pytest.mark.parametrize("name", ["got10k", "pytracking"])
def test_repetitions_are_read_together(tmp_path, name):
    results = ResultFolder(tmp_path / "mine", form_of(name))
    for run in (1, 2, 3):
        results.write("a", BOXES + run, SECONDS * run, run)
    assert results.runs("a") == [1, 2, 3]
    read = results.read_all("a", 3)
    assert [round(each.boxes[0, 0]) for each in read] == [11, 12, 13]
    if name == "got10k":  # one column per run
        assert results.read_times("a") == pytest.approx(SECONDS[:, None] * [1, 2, 3])
        results.write("a", BOXES, SECONDS * 9, 2)  # done again: what came after it is to be done again too
        assert results.read_times("a") == pytest.approx(SECONDS[:, None] * [1, 9])
    else:
        assert results.read_times("a", 3).ravel() == pytest.approx(SECONDS * 3)
    one = ResultFolder(tmp_path / "single", form_of(name))
    one.write("a", BOXES)
    assert [len(each.boxes) for each in one.read_all("a")] == [3]
    assert one.read_times("a") is None


def test_forms_of_one_run_refuse_repetitions(tmp_path):
    with pytest.raises(UserError, match="results in the form 'lasot' have one run: repeat in folders of their own"):
        ResultFolder(tmp_path, form_of("lasot")).write("a", BOXES, run=1)
    with pytest.raises(UserError, match=r"unknown form of results 'lasott'\. Did you mean 'lasot'"):
        form_of("lasott")


@pytest.mark.parametrize("line", ["1,2,3,4", "1\t2\t3\t4", "1 2   3 4", "1, 2, 3, 4", "1;2;3;4", "1,2,3,4,0.9"])
def test_every_usual_delimiter_is_read(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"{line}\r\n{line}\n\n\n")
    assert read_result(tmp_path / "a.txt").tolist() == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has 0 rows for 3 frames: run the tracker again"),
        ("1,2,3,4\n1,2,3,4\n", "has 2 rows for 3 frames: run the tracker again"),
        ("1,2,3,4\n1,2,3\n1,2,3,4\n", "row 2: 3 numbers, not 4: run the tracker again"),
        ("1,2,3,4\n\n1,2,3,4\n", "row 2: 0 numbers, not 4: run the tracker again"),
        ("1,2,3,4\n1,2,3,4\n1,2,x,4\n", "row 3: 'x' is no number: run the tracker again"),
        (b"\xff\xfe1\x00", "is no text: "),
    ],
)
def test_a_bad_file_is_one_line_with_file_row_and_remedy(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as refused:
        ResultFolder(tmp_path, form_of("lasot")).read("a", 3)
    assert str(refused.value).startswith(f"'{path}'")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "car-1.txt").write_text("1,2,3,4\n")
    with pytest.raises(DataError, match=r"car-11\.txt' does not exist\. Did you mean 'car-1\.txt'"):
        read_result(tmp_path / "car-11.txt")


def test_nothing_is_written_of_what_is_no_result(tmp_path):
    results = ResultFolder(tmp_path, form_of("got10k"))
    with pytest.raises(DataError, match=r"^result of 'a', row 2: nan.* has no finite number"):
        results.write("a", [[1, 2, 3, 4], [np.nan, 2, 3, 4]])
    with pytest.raises(DataError, match=r"^result of 'a', row 1: .*-3.* has a negative side"):
        results.write("a", [[1, 2, -3, 4]])
    with pytest.raises(DataError, match="2 times for 3 boxes"):
        results.write("a", BOXES, SECONDS[:2])
    assert list(tmp_path.iterdir()) == []


def test_boxes_grow_to_whole_pixels():
    assert rasterize([[3.2, 4.9, 3.8, 3.11], [1, 2, 3, 4]]).tolist() == [[3, 4, 4, 5], [1, 2, 3, 4]]
