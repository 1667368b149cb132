import csv
import io
import json
from dataclasses import replace

import pytest

from vision_lowrank.scanning import Row, write_csv, write_json
from vision_lowrank.scanning.rows import Journal, as_json

ROW = Row(
    path="a/b.png",
    sha256="ab",
    width=4,
    height=3,
    format="PNG",
    verdict="edited",
    probability=0.75,
    boxes=({"xyxy": [1.0, 0.0, 2.5, 3.0], "score": 0.5}, {"xyxy": [0.0, 0.0, 1.0, 1.0], "score": 0.25}),
    cues=({"name": "noise", "prob": 0.625},),
    explanation="line one\nline two \u2028 end",
    explained_by="template",
    heatmap="heatmaps/a/b.png.png",
    seconds=0.5,
    warnings=("one", "two"),
)
HEADER = {"settings": {"model": "m", "band": (0.1, 0.2)}}


def journal(path, rows=(), header=HEADER, resume=True):
    with Journal(path, header, resume) as opened:
        opened.append(rows)
    return opened


def test_a_resumed_journal_has_its_rows_again(tmp_path):
    path = tmp_path / "out" / "results.jsonl"
    other = replace(ROW, path="c.png", sha256="cd", heatmap="heatmaps/c", thumbnails=("x", "y"))
    journal(path, [ROW, other])
    assert journal(path).finished == {ROW.heatmap: ROW, "heatmaps/c": other}
    assert journal(path, header={"settings": {"model": "n", "band": (0.1, 0.2)}}).finished == {}


def test_without_resume_it_starts_anew(tmp_path):
    journal(tmp_path / "x", [ROW])
    journal(tmp_path / "x", resume=False)
    assert len((tmp_path / "x").read_text().splitlines()) == 1


def test_errors_are_tried_again_and_half_lines_left_out(tmp_path):
    path = tmp_path / "x"
    journal(path, [Row("broken", "ab", error="broken"), replace(ROW, heatmap="h/1")])
    with open(path, "a") as file:
        file.write(as_json(replace(ROW, heatmap="h/2").to_dict())[:-9])
    assert list(journal(path, [replace(ROW, heatmap="h/3")]).finished) == ["h/1"]
    assert list(journal(path).finished) == ["h/1", "h/3"]


def test_a_row_that_is_there_is_not_written_twice(tmp_path):
    path = tmp_path / "x"
    journal(path, [ROW])
    assert journal(path, [ROW, replace(ROW, overlay="o")]).finished == {ROW.heatmap: ROW}
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert [line.get("overlay") for line in lines[1:]] == [None, "o"]
    assert journal(path).finished == {ROW.heatmap: replace(ROW, overlay="o")}


def test_rows_are_reusable_while_their_files_are_there_and_theirs(tmp_path):
    path = tmp_path / "x"
    journal(path, [ROW])
    opened = journal(path)
    assert opened.reusable(ROW.heatmap, "ab", ["heatmap"], tmp_path) is None
    (tmp_path / "heatmaps" / "a").mkdir(parents=True)
    (tmp_path / "heatmaps" / "a" / "b.png.png").write_bytes(b"")
    assert opened.reusable(ROW.heatmap, "ab", ["heatmap"], tmp_path) == ROW
    for wanted in ("overlay", "npy", "thumbnails"):
        assert opened.reusable(ROW.heatmap, "ab", ["heatmap", wanted], tmp_path) is None
    for digest in ("zz", None):
        assert opened.reusable(ROW.heatmap, digest, ["heatmap"], tmp_path) is None
    assert opened.reusable("heatmaps/other", "ab", ["heatmap"], tmp_path) is None
    journal(path, [replace(ROW, sha256="cd")])  # another picture of this name wrote its map over the first one's
    assert journal(path).reusable(ROW.heatmap, "ab", ["heatmap"], tmp_path) is None


def test_json_holds_any_file_name_and_no_nan(tmp_path):
    row = replace(ROW, path="caf\u00e9 \udcff.png")
    write_json(tmp_path / "x.json", {"a": 1}, [row])
    read = json.loads((tmp_path / "x.json").read_bytes().decode("utf-8"))
    assert read["header"] == {"a": 1}
    assert read["rows"][0]["path"] == row.path
    assert read["rows"][0]["boxes"][0] == {"xyxy": [1.0, 0.0, 2.5, 3.0], "score": 0.5}
    with pytest.raises(ValueError, match="JSON"):
        as_json({"a": float("nan")})


def test_csv_has_one_record_per_row_and_no_formulas(tmp_path):
    rows = [ROW, Row("=HYPERLINK(1).png", error="broken"), replace(ROW, explanation="@SUM(1)", path="\udcff")]
    write_csv(tmp_path / "x.csv", rows)
    read = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_bytes().decode("utf-8"))))
    assert len(read) == 3
    assert read[0]["boxes"] == "1 0 2.5 3 (0.500); 0 0 1 1 (0.250)"
    assert read[0]["regions"] == "2"
    assert read[0]["cues"] == "noise (0.625)"
    assert read[0]["warnings"] == "one; two"
    assert read[0]["explanation"] == ROW.explanation
    assert read[1]["path"] == "'=HYPERLINK(1).png"
    assert (read[1]["verdict"], read[1]["regions"], read[1]["error"]) == ("", "", "broken")
    assert read[2]["explanation"] == "'@SUM(1)"
