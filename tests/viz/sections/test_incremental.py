"""The section "Session after session" of the report, its plot, and the table on the terminal."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from vision_lowrank.cli.tables import metrics_table
from vision_lowrank.errors import ArtefactError
from vision_lowrank.viz import plots
from vision_lowrank.viz.report import write_report

EVIL = '<script>alert("x")</script>'
NAMES = ["cat", "dog", "owl", "bee"]
MATRIX = {"classes": [2, 1, 1], "accuracies": [[0.9], [0.8, 0.6], [0.7, 0.5, 0.4]]}


def scores(last: float, **more: float) -> dict[str, float]:
    """Metrics of a seed that ends at accuracy `last`."""
    sessions = {f"session/{t}/accuracy": last + drop for t, drop in enumerate((0.3, 0.1, 0.0))}
    whole = {"incremental/last_accuracy": last, "incremental/forgetting": 0.5 - last / 2}
    return {"test/emoji/accuracy": last, "test/emoji/loss": 1.0, **sessions, **whole, **more}


def make_run(run: Path, before=(0.2, 0.4), after=(0.5, 0.6), **more: float) -> Path:
    """A run folder of a class-incremental task with a seed per pair of last accuracies."""
    run.mkdir()
    seeds = {
        str(seed): {
            "seed": seed,
            "baseline": scores(old),
            "metrics": scores(new, **more),
            "facts": {"classes": 4, "incremental": {"matrix": copy.deepcopy(MATRIX), "classes": NAMES}},
        }
        for seed, (old, new) in enumerate(zip(before, after, strict=True), start=7)
    }
    result: dict = {"name": "demo", "task": "incremental", "seeds": seeds}
    for part in ("baseline", "metrics"):
        columns = {name: [seed[part][name] for seed in seeds.values()] for name in seeds["7"][part]}
        result[part] = {k: {"mean": fmean(v), "std": pstdev(v), "n": len(v)} for k, v in columns.items()}
    (run / "result.json").write_text(json.dumps(result))
    return run


def edited(run: Path, change) -> str:
    """The page after `change` of result.json."""
    result = json.loads((run / "result.json").read_text())
    change(result)
    (run / "result.json").write_text(json.dumps(result))
    return write_report(run).read_text()


def rows(page: str, section: str) -> list[str]:
    start = page.index(f'<section id="{section}"')
    body = page[start : page.index("</section>", start)]
    return [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)]


def test_before_after_and_change_are_percent_with_readable_labels(tmp_path):
    shown = rows(write_report(make_run(tmp_path / "demo")).read_text(), "sessions")
    # last accuracy: before 30 ± 10, after 55 ± 5, changes 30 and 20
    assert "accuracy after the last session 30.0 ± 10.0 55.0 ± 5.0 +25.0 ± 5.0" in shown
    assert "forgetting, mean over sessions 35.0 ± 5.0 22.5 ± 2.5 −12.5 ± 2.5" in shown
    assert "1 accuracy 40.0 ± 10.0 65.0 ± 5.0 +25.0 ± 5.0" in shown


def test_less_forgetting_is_better(tmp_path):
    page = write_report(make_run(tmp_path / "demo")).read_text()
    section = page[page.index('id="sessions"') :]
    assert re.findall(r'<td class="number (better|worse)">\s*([−+\d.]+)<', section)[:2] == [
        ("better", "+25.0"),
        ("better", "−12.5"),
    ]


def test_groups_of_classes_after_every_session_are_the_first_seeds(tmp_path):
    def other(result):
        result["seeds"]["8"]["facts"]["incremental"]["matrix"]["accuracies"] = [[0.1], [0.1, 0.1], [0.1, 0.1, 0.1]]

    shown = rows(edited(make_run(tmp_path / "demo"), other), "sessions")
    assert "classes of session 0 (2) 1 (1) 2 (1)" in shown
    assert [row for row in shown if row.startswith("after session")] == [
        "after session 0 90.0",
        "after session 1 80.0 60.0",
        "after session 2 70.0 50.0 40.0",
    ]
    assert shown[-4:] == ["session classes", "0 cat, dog", "1 owl", "2 bee"]


def test_session_metrics_are_in_their_section_only(tmp_path):
    page = write_report(make_run(tmp_path / "demo")).read_text()
    text = " ".join(rows(page, "results"))
    assert "emoji" in text
    assert not re.search(r"forgetting|session|incremental", text)


def test_a_metric_without_a_label_or_a_baseline_is_shown_last(tmp_path):
    run = make_run(tmp_path / "demo", **{"incremental/new_thing": 0.25})
    shown = rows(write_report(run).read_text(), "sessions")
    place = shown.index("new thing – 25.0 –")
    assert shown[place - 1].startswith("forgetting")


def test_without_a_baseline_there_is_one_column_and_one_line(tmp_path):
    page = edited(make_run(tmp_path / "demo", before=(0.2,), after=(0.5,)), lambda result: result.update(baseline={}))
    assert "accuracy after the last session 50.0" in rows(page, "sessions")
    assert "prototype only" not in page


def test_the_section_is_absent_without_sessions(tmp_path):
    def only_tests(result):
        for scored in (result, result["seeds"]["7"], result["seeds"]["8"]):
            for part in ("baseline", "metrics"):
                kept = scored[part].items()
                scored[part] = {name: value for name, value in kept if not name.startswith("session/")}

    page = edited(make_run(tmp_path / "demo"), only_tests)
    assert "Session after session" not in page
    assert "last accuracy 30.0 ± 10.0 55.0 ± 5.0 +25.0 ± 5.0" in " ".join(rows(page, "results"))


def test_a_run_without_the_matrix_or_a_mean_keeps_the_rest(tmp_path):
    def reduce(result):
        result["seeds"]["7"]["facts"] = {}
        result["metrics"]["session/1/accuracy"]["mean"] = math.nan

    page = edited(make_run(tmp_path / "demo"), reduce)
    shown = rows(page, "sessions")
    assert "1 accuracy 40.0 ± 10.0 – ± 5.0 +25.0 ± 5.0" in shown
    assert not any(row.startswith("after session") for row in shown)
    assert "accuracy after every session" not in page


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("matrix", lambda facts: facts["matrix"]["accuracies"].pop()),
        ("matrix", lambda facts: facts["matrix"]["accuracies"][1].append(0.5)),
        ("matrix.accuracies.1.0", lambda facts: facts["matrix"]["accuracies"][1].__setitem__(0, 1.5)),
        ("matrix.accuracies.1.0", lambda facts: facts["matrix"]["accuracies"][1].__setitem__(0, math.nan)),
        ("matrix.classes.0", lambda facts: facts["matrix"]["classes"].__setitem__(0, 0)),
        ("matrix.classes", lambda facts: facts["matrix"].update(classes=[], accuracies=[])),
        ("matrix", lambda facts: facts.update(matrix=[1])),
        ("matrix", lambda facts: facts.pop("matrix")),
        ("", lambda facts: facts.update(classes=["cat"])),
    ],
)
def test_a_damaged_matrix_is_one_line(tmp_path, place, change):
    run = make_run(tmp_path / "demo")
    where = re.escape(".".join(filter(None, ("seeds.8.facts.incremental", place))))
    with pytest.raises(ArtefactError, match=rf"result\.json: damaged at {where} \(") as error:
        edited(run, lambda result: change(result["seeds"]["8"]["facts"]["incremental"]))
    assert "\n" not in str(error.value)


def test_user_text_is_escaped(tmp_path):
    def poison(result):
        result["seeds"]["7"]["facts"]["incremental"]["classes"] = [EVIL, *NAMES[1:]]
        for name in (f"incremental/{EVIL}", f"session/{EVIL}/{EVIL}"):
            result["metrics"][name] = result["metrics"]["session/0/accuracy"]

    page = edited(make_run(tmp_path / "demo"), poison)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4


def test_session_curves_draw_sessions_at_equal_steps_and_the_baseline_dashed():
    svg = plots.session_curves({"CoACT": [(0.9, 0.0), (0.7, 0.1), (0.5, 0.0)]}, [(0.8, 0.3), (0.6, 0.3), (0.4, 0.3)])
    strokes = [path for path in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}path") if path.get("style")]

    def corners(*styles: str) -> list[tuple[float, float]]:
        (path,) = (p for p in strokes if all(style in p.get("style", "") for style in styles))
        return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d") or "")]

    line, dashed = corners("stroke-width: 2;"), corners("stroke-width: 1.5", "stroke-dasharray")
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y1 - y0 == pytest.approx(y2 - y1)  # 20 points each
    assert [x for x, _ in dashed] == pytest.approx([x0, x1, x2])
    below = [lower - upper for (_, upper), (_, lower) in zip(line, dashed, strict=True)]
    assert below == pytest.approx([(y1 - y0) / 2] * 3, abs=1e-3)  # 10 points everywhere
    assert [svg.count(f">{name}</text>") for name in ("CoACT", "prototype only")] == [1, 1]


def test_lines_that_end_together_keep_their_labels_apart():
    svg = plots.session_curves({f"m{i}": [(0.9, 0.01), (0.5, 0.01)] for i in range(4)}, [(0.9, 0.0), (0.5, 0.0)])
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>(?:m\d|prototype only)</text>', svg))
    assert len(heights) == 5
    assert all(below - above >= 12.99 for above, below in itertools.pairwise(heights))


@pytest.mark.parametrize(
    "svg",
    [
        plots.session_curves({EVIL: [(0.5, 0.0), (0.25, 0.1)]}, title=EVIL),
        plots.session_curves({"one session": [(0.5, 0.1)]}, [(0.4, 0.0)]),
        plots.session_curves({"none": []}, []),
    ],
)
def test_session_curves_stand_alone_as_valid_svg(svg):
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(svg).iter()}
    assert "svg" in tags
    assert "script" not in tags


def test_the_terminal_shows_session_metrics_as_percent():
    value = {
        "session/0/accuracy": 0.75,
        "incremental/forgetting": 0.125,
        "incremental/gacc/0.5": 0.5,
        "test/a/loss": 0.5,
    }
    part = {name: {"mean": mean, "std": 0.0, "n": 1} for name, mean in value.items()}
    table = metrics_table({"name": "demo", "seeds": {"1": {}}, "metrics": part, "baseline": part})
    assert list(table.columns[2].cells) == ["75.0", "12.5", "50.0", "0.500"]
