import csv
import io
import json
from dataclasses import replace

import pytest

from vision_lowrank.errors import UserError
from vision_lowrank.inference.journal import Journal, ScanRow, as_json
from vision_lowrank.inference.sources import output_names
from vision_lowrank.inference.tables import write_csv, write_json

ROW = ScanRow(
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


def test_a_journal_with_other_settings_is_left_as_it_is_and_what_differs_is_said(tmp_path):
    path = tmp_path / "x"
    journal(path, [ROW])
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        journal(path, header={"settings": {"model": "m", "band": (0.1, 0.3), "explain": True}})
    assert "(band [0.1, 0.2], now [0.1, 0.3]; explain null, now true)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_rows_of_unknown_settings_do_not_count(tmp_path):
    journal(tmp_path / "x", [ROW])
    header, row = (tmp_path / "x").read_text().splitlines()[:2]
    (tmp_path / "x").write_text(f"{header[:-9]}\n{row}\n")
    assert journal(tmp_path / "x").finished == {}


def test_without_resume_it_starts_anew(tmp_path):
    journal(tmp_path / "x", [ROW])
    journal(tmp_path / "x", resume=False)
    assert len((tmp_path / "x").read_text().splitlines()) == 1


def test_errors_are_tried_again_and_half_lines_left_out(tmp_path):
    path = tmp_path / "x"
    journal(path, [ScanRow("broken", "ab", error="broken"), replace(ROW, heatmap="h/1")])
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
    opened, names = journal(path), output_names("a/b.png")
    assert opened.reusable(names, "ab", ["heatmap"], tmp_path) is None
    (tmp_path / "heatmaps" / "a").mkdir(parents=True)
    (tmp_path / "heatmaps" / "a" / "b.png.png").write_bytes(b"")
    assert opened.reusable(names, "ab", ["heatmap"], tmp_path) == ROW
    for wanted in ("overlay", "npy", "thumbnails"):
        assert opened.reusable(names, "ab", ["heatmap", wanted], tmp_path) is None
    for digest in ("zz", None):
        assert opened.reusable(names, digest, ["heatmap"], tmp_path) is None
    journal(path, [replace(ROW, sha256="cd")])  # another picture of this name wrote its map over the first one's
    assert journal(path).reusable(names, "ab", ["heatmap"], tmp_path) is None


def test_a_row_names_no_files_that_were_not_asked_for_and_the_journal_keeps_them(tmp_path):
    path = tmp_path / "x"
    full = replace(ROW, overlay="overlays/a/b.png.png", thumbnails=("lost", "lost"))
    for name in (full.heatmap, full.overlay):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    journal(path, [full])
    with Journal(path, HEADER, True) as opened:
        taken = opened.reusable(output_names("a/b.png"), "ab", ["heatmap"], tmp_path)
        assert taken == ROW
        opened.append([replace(taken, path="elsewhere/b.png")])
    assert journal(path).finished == {ROW.heatmap: full}


def test_a_row_goes_with_its_bytes_to_another_name_and_its_files_are_copied(tmp_path):
    full = replace(ROW, thumbnails=("thumbnails/picture/a/b.png.jpg", "thumbnails/overlay/a/b.png.jpg"))
    for name in (full.heatmap, *full.thumbnails):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    journal(tmp_path / "x", [full])
    names = output_names("new/a/b.png")
    moved = journal(tmp_path / "x").reusable(names, "ab", ["heatmap", "thumbnails"], tmp_path)
    assert moved == replace(full, heatmap=names["heatmap"][0], thumbnails=names["thumbnails"])
    assert (tmp_path / moved.heatmap).read_text() == full.heatmap
    assert [(tmp_path / name).read_text() for name in moved.thumbnails] == list(full.thumbnails)
    for digest in ("zz", None):
        assert journal(tmp_path / "x").reusable(names, digest, ["heatmap"], tmp_path) is None
    with Journal(tmp_path / "x", HEADER, True, [ROW.heatmap]) as opened:  # which another input may write over
        assert opened.reusable(names, "ab", ["heatmap"], tmp_path) is None


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
    rows = [ROW, ScanRow("=HYPERLINK(1).png", error="broken"), replace(ROW, explanation="@SUM(1)", path="\udcff")]
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
