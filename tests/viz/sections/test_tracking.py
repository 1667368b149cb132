"""The section of trackers in the report: plots, attributes, strips of clips; whole, in parts, and damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vision_lowrank.errors import ArtefactError
from vision_lowrank.viz.report import write_report

EVIL = '<script>alert("x")</script>'
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
THRESHOLDS = {"success": [0.0, 0.5, 1.0], "precision": [0.0, 20.0, 50.0], "normalized_precision": [0.0, 0.2, 0.5]}
CURVES = {"success": [1.0, 0.5, 0.0], "precision": [0.0, 0.5, None], "normalized_precision": [0.0, 0.25, 0.75]}


def details() -> dict:
    sequences = {f"clip-{n}": {"metrics": {"success_auc": n / 10}, "curves": {}} for n in range(11)}
    attributes = {"occlusion": {"success_auc": 0.3125, "normalized_precision": 0.4375}, "turns": {"success_auc": None}}
    return {
        "convention": "pytracking-all", "thresholds": THRESHOLDS, "curves": CURVES,
        "sequences": sequences, "attributes": attributes,
    }  # fmt: skip


def make_run(run: Path, **sets: dict) -> Path:
    """A run folder of a tracker with one seed."""
    metrics = {"test/scenes/success_auc": 0.5, "test/scenes/normalized_precision": 0.625, "test/scenes/op50": 0.75}
    before = {name: value / 2 for name, value in metrics.items()}
    seed = {"seed": 1, "baseline": before, "metrics": metrics, "facts": {"test_hashes": {"scenes": "abcd"}}}
    folder = run / "seed-1"
    (folder / "artefact").mkdir(parents=True)
    (folder / "details.json").write_text(json.dumps({"sets": sets or {"scenes": details()}}))
    clip = {"name": "clip-3", "success": 0.3, "image": PIXEL}
    (folder / "gallery.json").write_text(json.dumps([{"title": "worst", "set": "scenes", "clips": [clip]}]))
    result: dict = {"name": "demo", "task": "tracking", "headline": "success_auc", "seeds": {"1": seed}}
    for part, values in (("baseline", before), ("metrics", metrics)):
        result[part] = {name: {"mean": value, "std": 0.0, "n": 1} for name, value in values.items()}
    (run / "result.json").write_text(json.dumps(result))
    return run


def shown(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_plots_attributes_and_strips(tmp_path):
    page = write_report(make_run(tmp_path / "demo")).read_text()
    curves = page[page.index('<section id="curves"') : page.index('<section id="attributes"')]
    assert curves.count("<svg") == 3
    for title in ("success", "precision", "normalised precision"):
        assert title in curves
    words = shown(page)
    assert "success runs from 10.0% (the worst tenth) over 50.0% (the middle) to 90.0% (the best tenth)" in words
    assert "convention pytracking-all" in words
    assert "occlusion 31.2% 43.8% turns – –" in words
    assert "worst of scenes clip-3, success 30.0%" in words
    assert f'src="{PIXEL}"' in page
    assert "vision-lowrank track video.mp4" in words


def test_a_set_more_is_a_line_more(tmp_path):
    page = write_report(make_run(tmp_path / "demo", scenes=details(), lasot=details())).read_text()
    assert page.count("<svg") >= 3
    assert page.count("lasot") >= 3  # the legend of every plot


def test_the_page_loads_nothing(tmp_path):
    page = write_report(make_run(tmp_path / "demo")).read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page)
    assert not re.findall(r"url\((?!#|data:)", page)
    assert "@import" not in page


def test_what_is_missing_leaves_its_part_out(tmp_path):
    run = make_run(tmp_path / "demo")
    for name in ("details.json", "gallery.json"):
        (run / "seed-1" / name).unlink()
    page = write_report(run).read_text()
    assert not [name for name in ("curves", "attributes", "clips") if f'<section id="{name}"' in page]
    assert "No motion" in page


def test_a_curve_that_lacks_points_is_left_out(tmp_path):
    half = details() | {"thresholds": {"success": [0.0], "precision": THRESHOLDS["precision"]}}
    page = write_report(make_run(tmp_path / "demo", scenes=half)).read_text()
    curves = page[page.index('<section id="curves"') : page.index('<section id="attributes"')]
    assert curves.count("<svg") == 1


def test_names_are_text(tmp_path):
    run = make_run(tmp_path / "demo", **{EVIL: details() | {"convention": EVIL, "attributes": {EVIL: {}}}})
    clip = {"name": EVIL, "success": None, "image": "javascript:alert(1)"}
    (run / "seed-1" / "gallery.json").write_text(json.dumps([{"title": EVIL, "set": EVIL, "clips": [clip]}]))
    page = write_report(run).read_text()
    assert EVIL not in page
    assert "javascript:" not in page


def test_damage_is_one_line(tmp_path):
    run = make_run(tmp_path / "demo", scenes=details() | {"curves": "none"})
    with pytest.raises(ArtefactError, match=r"details.json: damaged at sets.scenes.curves") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
