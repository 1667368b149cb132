import csv
import io

from vision_lowrank.viz.text import csv_text, markdown

HEADER, LINES = ["method", "note"], [["lora", 'a, "b"'], ["x|y", ""]]


def test_csv_is_read_back_as_it_was():
    text = csv_text([HEADER, *LINES])
    assert text.startswith("method,note\n")
    assert list(csv.reader(io.StringIO(text))) == [HEADER, *LINES]


def test_markdown_keeps_its_columns():
    rule, *rows = markdown(HEADER, LINES).splitlines()[1:]
    assert rule == "| --- | --- |"
    assert rows == ['| lora | a, "b" |', "| x/y |  |"]
