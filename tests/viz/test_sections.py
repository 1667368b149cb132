"""The contract between the report and a task's section of it: what a section changes, and that no task is named."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from vision_lowrank.errors import ArtefactError
from vision_lowrank.registry import Registry, registry
from vision_lowrank.viz import report
from vision_lowrank.viz.report import write_report
from vision_lowrank.viz.sections.base import ReportSection

VIZ = Path(sys.modules["vision_lowrank.viz"].__file__).parent
METRICS = {"test/a/count_rate": 0.25, "test/a/hota": 0.5, "retention/b/hota": 0.75, "val/hota": 0.625, "val/cost": 2.0}

SECTION = """
from vision_lowrank import register
from vision_lowrank.viz.reading import Checked, Facts, read_checked
from vision_lowrank.viz.sections.base import ReportSection


class CountingFacts(Facts):
    counted: int


class Counts(Checked):
    kinds: list[str]


class CountingSection(ReportSection[CountingFacts]):
    template = "counting.html.jinja"
    facts_model = CountingFacts
    labels = {"hota": "higher-order accuracy of tracks"}

    @property
    def rows(self):
        return [row for row in self.run.rows if row.metric != "count_rate"]

    def context(self):
        own = {seed: read_checked(folder / "counts.json", Counts) for seed, folder in self.run.seeds.items()}
        rate = next(row for row in self.run.rows if row.metric == "count_rate")
        return {"kinds": {seed: found.kinds for seed, found in own.items() if found}, "rate": rate}
"""
PAGE = """{% extends "report.html.jinja" %}
{% from "macros.html.jinja" import percent with context %}
{% block amount %} with {{ facts.counted }} counted{% endblock %}
{% block answers %}
{% for seed, names in kinds.items() %}
<section id="kinds">{{ seed }}: {{ names | join(", ") }}, {{ percent(rate.after.mean) }}</section>
{% endfor %}
{% endblock %}
{% block command %}count {{ artefact | shell }}{% endblock %}
"""


def make_run(run: Path, task: str, facts: dict | None = None, **more) -> Path:
    """A finished run of one seed; `more` are keys of result.json."""
    folder = run / "seed-1"
    (folder / "artefact").mkdir(parents=True)
    entry = {"stage": "train", "step": 1, "loss": 1.0, **{k: v for k, v in METRICS.items() if k.startswith("val/")}}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry | {"step": step}) + "\n" for step in (1, 2)))
    seed = {"seed": 1, "baseline": {"test/a/hota": 0.25}, "metrics": METRICS, "facts": facts or {}}
    result = {
        "name": "demo", "task": task, "config": {"data": {"type": "film"}}, "seeds": {"1": seed},
        "baseline": {"test/a/hota": {"mean": 0.25, "std": 0.0, "n": 1}},
        "metrics": {name: {"mean": value, "std": 0.0, "n": 1} for name, value in METRICS.items()},
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(result | more))
    return run


def words(text: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"<(style|svg).*?</\1>", "", text, flags=re.DOTALL)).split())


def part(page: str, section: str) -> str:
    start = page.index(f'<section id="{section}"')
    return words(page[start : page.index("</section>", start)])


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """A section of another package, registered: a module with its template beside it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "counting_report.py").write_text(SECTION)
    (folder / "counting.html.jinja").write_text(PAGE)
    spec = importlib.util.spec_from_file_location("counting_report", folder / "counting_report.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "counting_report", module)
    spec.loader.exec_module(module)
    own = Registry()
    own.register("report", "counting", summary="what was counted")(module.CountingSection)
    monkeypatch.setattr(report, "registry", own)


def test_a_task_without_a_section_leads_with_its_headline_and_folds_the_rest(tmp_path):
    run = make_run(tmp_path / "demo", "unheard_of", headline="hota", columns=["hota"], selects_by="val/hota")
    page = write_report(run).read_text()
    assert "Hota on a is 0.500 (0.250 before; one seed, so chance is not ruled out)." in words(page)
    shown, folded = part(page, "results").split("All other metrics 2")
    assert shown.startswith("Results Hota. “Before” is the same model untrained.")
    assert "Test sets a 0.250 0.500 +0.250 What the model could do before b – 0.750 – Validation val" in shown
    assert "a count rate – 25.0 –" in folded
    assert "validation hota" in page
    assert "vision-lowrank predict demo/seed-1/artefact picture.png" in part(page, "use")


@pytest.mark.parametrize("keys", [{}, {"headline": "unknown", "selects_by": "val/unknown"}])
def test_without_a_headline_the_first_metric_leads(tmp_path, keys):
    page = write_report(make_run(tmp_path / "demo", "unheard_of", **keys)).read_text()
    assert "Count rate on a is 25.0% ." in words(page)
    assert part(page, "results").startswith("Results Count rate in percent. “Before”")
    assert "validation cost" in page


@pytest.mark.usefixtures("counting")
def test_a_section_of_another_package_shows_its_own(tmp_path):
    run = make_run(tmp_path / "demo", "counting", {"counted": 7}, headline="hota", selects_by="val/hota")
    (run / "seed-1" / "counts.json").write_text(json.dumps({"kinds": ["cars", "<b>"]}))
    page = write_report(run).read_text()
    assert "on film with 7 counted. Higher-order accuracy of tracks on a is 0.500 (0.250 before;" in words(page)
    assert part(page, "kinds") == "1: cars, &lt;b&gt;, 25.0%"
    assert "count rate" not in page
    assert "validation higher-order accuracy of tracks" in page
    assert "On the command line: count demo/seed-1/artefact In Python: import vision_lowrank as vl" in part(page, "use")


@pytest.mark.usefixtures("counting")
def test_a_section_names_the_place_of_damage(tmp_path):
    run = make_run(tmp_path / "demo", "counting", {"counted": "many"})
    with pytest.raises(ArtefactError, match=r"result\.json: damaged at seeds\.1\.facts\.counted \("):
        write_report(run)
    run = make_run(tmp_path / "other", "counting", {"counted": 1})
    (run / "seed-1" / "counts.json").write_text('{"kinds": 3}')
    with pytest.raises(ArtefactError, match=r"seed-1/counts\.json: damaged at kinds \("):
        write_report(run)


@pytest.mark.parametrize("config", ["", "task: 3", "task: [", "- a", "task: {type: [1]}", "\x00"])
def test_an_unfinished_run_of_any_config_has_a_report(tmp_path, config):
    (tmp_path / "config.yaml").write_text(config)
    assert "Not finished" in words(write_report(tmp_path).read_text())


def test_every_section_belongs_to_a_task_and_has_a_template():
    sections = registry.list("report")
    assert {part.name for part in sections} <= {part.name for part in registry.list("task")}
    for part in sections:
        assert issubclass(part.target, ReportSection)
        assert (VIZ / "sections" / part.target.template).is_file()


@pytest.mark.parametrize("file", ["report.py", "reading.py", "report.html.jinja", "macros.html.jinja", "pages.py"])
def test_the_general_report_names_no_task(file):
    """Neither a task nor what only one job has."""
    names = {part.name for part in registry.list("task")}
    names |= {"accuracy", "few-?shot", "zero-?shot", "manipulat", "incremental", "classif", "confusion", "detector"}
    text = (VIZ / file).read_text()
    assert not re.findall("|".join(sorted(names)), text, flags=re.IGNORECASE)
