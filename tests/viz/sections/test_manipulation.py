"""The section "Manipulation" of the report, its plots, and what it computes from rows of pictures."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from vision_lowrank.errors import ArtefactError
from vision_lowrank.metrics import image_level
from vision_lowrank.tasks.manipulation.layer_discrimination import choose_layer
from vision_lowrank.viz.report import write_report
from vision_lowrank.viz.sections import manipulation as manipulation_report
from vision_lowrank.viz.sections import manipulation_plots
from vision_lowrank.viz.sections.manipulation_reading import Layers
from vision_lowrank.viz.sections.manipulation_reliability import (
    calibration_error,
    read_pictures,
    reliability,
    uncalibrated,
)

EVIL = '<script>alert("x")</script>'
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
TERMS = {"kl": 0.004, "ldr": 0.1, "entropy": 2.0, "score": 0.5, "probe": 0.7}


def scores(auc: float) -> dict[str, float]:
    """Metrics of a seed with one test set."""
    clean = {
        "accuracy": 0.9, "auc": auc, "balanced_accuracy": auc - 0.1, "false_alarm_rate": 1 - auc, "ece": 0.2,
        "pixel_f1": auc / 2, "pixel_f1_reverse": 0.111, "box_union_iou": 0.25, "constant_box/box_union_iou": 0.125,
        "full_box/box_union_iou": 0.0625, "cue_micro_f1": 0.5, "most_frequent/cue_micro_f1": 0.375,
        "equal_mix/accuracy": 0.123, "editor/blur/recall": 0.9, "editor/blur/auc": 0.8, "editor/splice/recall": 0.3,
        "editor/splice/auc": 0.6, "jpeg-90/auc": auc - 0.1, "jpeg-50/auc": auc - 0.2, "jpeg-50/pixel_f1": 0.1,
        "jpeg-50/editor/blur/recall": 0.77, "gaussian_blur-3/auc": 0.6, "gaussian_blur-11/auc": 0.5,
    }  # fmt: skip
    return {f"test/seen/{name}": value for name, value in clean.items()} | {"val/auc": 0.7}


def facts() -> dict:
    table = [{"layer": layer, **TERMS} for layer in (1, 2, 3)]
    return {
        "tests": {"seen": {"pictures": 1234, "hash": "abcd"}},
        "manipulation": {
            "layers": {"chosen": 2, "of": 3, "criterion": "discrimination", "table": table},
            "contrast": {"before": {"twin_cosine": 0.9, "probe_auc": float("nan")}, "after": {"twin_cosine": 0.5}},
            "calibration": {
                "temperature": 2.0, "threshold": 0.625, "origin": "fpr=0.05 on 312 real validation pictures",
                "uncertain": [0.625, 0.875], "interval": [0.03, 0.08], "reals": 312, "edits": 500,
            },
        },
    }  # fmt: skip


def make_run(run: Path, before=(0.5, 0.6), after=(0.8, 0.9)) -> Path:
    """A run folder of a manipulation task with a seed per AUC."""
    seeds = {
        str(seed): {"seed": seed, "baseline": scores(old), "metrics": scores(new), "facts": facts()}
        for seed, (old, new) in enumerate(zip(before, after, strict=True), start=1)
    }
    result: dict = {"name": "demo", "task": "manipulation", "seeds": seeds}
    for part in ("baseline", "metrics"):
        columns = {name: [seed[part][name] for seed in seeds.values()] for name in scores(0.5)}
        result[part] = {k: {"mean": fmean(v), "std": pstdev(v), "n": len(v)} for k, v in columns.items()}
    run.mkdir()
    (run / "result.json").write_text(json.dumps(result))
    for number, seed in enumerate(seeds):
        folder = run / f"seed-{seed}"
        folder.mkdir()
        slices = {"editor": {"blur": {"count": 40.0}, "splice": {"count": 7.0, "reason": "no real pictures"}}}
        interval = {"auc": {"value": 0.8, "low": 0.7 + number / 10, "high": 0.85 + number / 10, "resamples": 9}}
        details = {"sets": {"test/seen": {"intervals": interval, "slices": slices}}}
        (folder / "details.json").write_text(json.dumps(details))
        (folder / "pictures.csv").write_text("set,id,label,probability\ntest/seen,a,0,0.2\ntest/seen,b,1,0.9\n")
    return run


def group(count: int, **changes) -> dict:
    picture = {"set": "seen", "id": "p", "editor": "blur", "verdict": "edited", "probability": 0.5, "image": PIXEL}
    return {"title": "Hits", "rule": "by chance", "count": 999, "pictures": [picture | changes] * count}


def section(page: str) -> str:
    start = page.index('<section id="manipulation"')
    return page[start : page.index("</section>", start)]


def rows(page: str) -> list[str]:
    found = re.findall(r"<tr\b.*?</tr>", section(page), re.DOTALL)
    return [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in found]


def page_of(run: Path) -> str:
    return write_report(run).read_text()


def test_a_row_has_untrained_trained_spread_and_the_widest_interval_of_the_seeds(tmp_path):
    shown = rows(page_of(make_run(tmp_path / "demo")))
    assert "AUC chance 50.0 55.0 ± 5.0 85.0 ± 5.0 70.0 – 95.0" in shown
    assert "IoU of all boxes together mean training box 12.5, whole picture 6.2 25.0 25.0" in shown
    assert "signs, micro F1 most frequent sign 37.5 50.0 50.0" in shown


def test_fewer_false_alarms_are_better_and_one_seed_has_no_spread(tmp_path):
    text = section(page_of(make_run(tmp_path / "demo", (0.5,), (0.8,))))
    row = re.search(r"real pictures called edited.*?</tr>", text, re.DOTALL)
    assert row
    assert 'class="number strong better"' in row[0]
    assert "±" not in row[0]
    worse = section(page_of(make_run(tmp_path / "worse", (0.8,), (0.5,))))
    assert re.search(r"<tr><th scope=\"row\">AUC.*?strong worse", worse, re.DOTALL)


def test_headline_is_short_and_everything_else_is_folded(tmp_path):
    page = page_of(make_run(tmp_path / "demo"))
    assert 'id="results"' not in page
    text = section(page)
    head, folded = text.split("<summary>All metrics <small>24</small></summary>")
    for value in ("11.1", "12.3", "77.0"):  # reverse, equal mix, a slice of degraded pictures
        assert value not in re.sub(r"<svg.*?</svg>", "", head, flags=re.DOTALL)
    assert "seen/jpeg-50/editor/blur" in folded
    assert "77.0" in folded
    assert "0.111" in folded
    assert "Balanced accuracy on seen rose from 45.0% to <strong>75.0%</strong>" in " ".join(page.split())
    assert "1,234 pictures" in text


def test_slices_are_sorted_hardest_first_with_counts(tmp_path):
    shown = rows(page_of(make_run(tmp_path / "demo")))
    assert shown.index("splice no real pictures 30.0 60.0 7") < shown.index("blur 90.0 80.0 40")


def test_the_chosen_layer_is_marked_and_what_is_unknown_is_a_dash(tmp_path):
    shown = rows(page_of(make_run(tmp_path / "demo")))
    assert "▸ 2 0.004 0.1 2.000 +0.500 70.0" in shown
    assert "3 0.004 0.1 2.000 +0.500 70.0" in shown
    assert "cosine of a picture and its edit 0.900 0.500" in shown
    assert "AUC of a linear probe – –" in shown


def test_calibration_of_every_seed_and_ece_before_and_after(tmp_path):
    shown = rows(page_of(make_run(tmp_path / "demo")))
    line = "2.000 0.625 0.625 – 0.875 3.0 – 8.0 fpr=0.05 on 312 real validation pictures"
    assert [f"1 {line}", f"2 {line}"] == [row for row in shown if row.endswith(line)]
    # p = 0.2 and 0.9 at T = 2 were 1/17 and 81/82 before; the error after is the metric's
    assert f"seen {50 * (1 / 17 + 1 / 82):.1f} 20.0" in shown


@pytest.mark.parametrize("seed", range(3))
def test_reliability_is_that_of_the_metrics(seed):
    rng = np.random.default_rng(seed)
    p = np.append(rng.beta(0.4, 0.4, 200), [0.0, 1.0, 7 / 15])
    edited = rng.random(len(p)) < p**2
    mean, share, mass = image_level.reliability(p, edited)
    np.testing.assert_allclose(reliability(p, edited), np.stack([mean, share, mass], axis=1)[mass > 0], atol=1e-12)
    assert calibration_error(p, edited) == pytest.approx(image_level.expected_calibration_error(p, edited), abs=1e-12)


def test_uncalibrated_undoes_the_temperature():
    p = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(uncalibrated(p, 3.0), expit(3.0 * logit(p)), atol=1e-12)
    assert 0 < uncalibrated(np.array([0.0]), 0.1)[0] < 0.25  # rounded to 0: what it was is not known exactly


def test_pictures_are_read_by_set(tmp_path):
    path = tmp_path / "pictures.csv"
    path.write_text('set,id,label,probability,boxes\ntest/a,x,0,0.25,"[[1, 2]]"\ntest/a,y,2,0.5,[]\ntest/b,z,1,1,[]\n')
    found = read_pictures(path)
    assert {name: (p.tolist(), y.tolist()) for name, (p, y) in found.items()} == {
        "test/a": ([0.25, 0.5], [False, True]),
        "test/b": ([1.0], [True]),
    }


def test_drawn_terms_add_up_to_the_score_that_chose(monkeypatch):
    states = torch.randn(40, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2
    states[:, 3] += 2.0 * labels[:, None]
    choice = choose_layer(states, labels)
    drawn = []
    monkeypatch.setattr(
        manipulation_plots, "layer_terms", lambda lines, chosen, *_, **__: drawn.append((lines, chosen)) or ""
    )
    table = [vars(row) for row in choice.table]
    manipulation_report._layer_plots(Layers(chosen=choice.layer, of=5, criterion="kl", table=table))
    lines, chosen = drawn[0]
    *terms, score = ([value for _, value in line] for line in lines.values())
    np.testing.assert_allclose(np.sum(terms, axis=0), score, atol=1e-12)
    assert chosen == 4 == 1 + int(np.argmax(score))


def test_robustness_goes_from_clean_to_strong(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        manipulation_plots,
        "robustness",
        lambda lines, levels, title: drawn.update({title: (lines, levels)}) or "<svg></svg>",
    )
    page_of(make_run(tmp_path / "demo", (0.5,), (0.8,)))
    lines, levels = drawn["jpeg"]
    assert levels == ["clean", "90", "50"]
    np.testing.assert_allclose(lines["AUC", "seen"], [(0.8, 0), (0.7, 0), (0.6, 0)])
    assert lines["pixel F1", "seen"] == [(0.4, 0), None, (0.1, 0)]
    assert drawn["gaussian blur"][1] == ["clean", "3", "11"]


def test_plots_are_svg_with_escaped_names():
    several = {("AUC", EVIL): [(0.9, 0.01), None, (0.5, 0.0)], ("AUC", "b"): [(0.8, 0.0)] * 3}
    plots = [
        manipulation_plots.robustness(several, ["clean", "90", "50"], EVIL),
        manipulation_plots.layer_terms({"KL": [(1, 0.0), (2, 1.0)], "sum": [(1, 1.0), (2, 2.0)]}, 2, "terms"),
        manipulation_plots.layer_terms({"probe": [(1, 0.5)]}, 1, "probe", percent=True),
        manipulation_plots.reliability([(0.1, 0.0, 0.5), (0.9, 1.0, 0.5)], EVIL),
    ]
    for plot in plots:
        ET.fromstring(plot)
        assert "<script" not in plot


def test_gallery_holds_at_most_24_pictures_and_states_its_rule(tmp_path):
    run = make_run(tmp_path / "demo")
    groups = [group(20), group(20, image="https://example.org/x.png") | {"title": "Misses"}, group(1)]
    (run / "seed-2" / "gallery.json").write_text(json.dumps(groups))
    text = section(page_of(run))
    assert text.count("<img") == 20
    assert text.count('class="blank"') == 4
    assert "example.org" not in text
    assert "<b>Hits</b>: by chance; 20 of 999." in text
    assert "<b>Misses</b>: by chance; 4 of 999." in text
    assert "seed 2" in text


def test_a_page_full_of_hostile_names_is_escaped_and_asks_for_nothing(tmp_path):
    run = make_run(tmp_path / "demo")
    hostile = [group(1, id=EVIL, set=EVIL, editor=EVIL, verdict=EVIL) | {"title": EVIL, "rule": EVIL}]
    (run / "seed-1" / "gallery.json").write_text(json.dumps(hostile))
    text = (run / "result.json").read_text()
    text = text.replace("editor/blur/", f"editor/{EVIL[:-9]}/".replace('"', '\\"'))
    (run / "result.json").write_text(text.replace("fpr=0.05 on", EVIL.replace('"', '\\"')))
    page = page_of(run)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 6
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


def test_missing_files_leave_their_part_out(tmp_path):
    run = make_run(tmp_path / "demo")
    for file in run.glob("seed-*/*"):
        file.unlink()
    text = section(page_of(run))
    assert "AUC" in text
    assert "Examples" not in text
    assert "temperature 1" not in text
    assert "AUC chance 50.0 55.0 ± 5.0 85.0 ± 5.0" in rows((run / "report.html").read_text())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("details.json", '{"sets": []}'),
        ("gallery.json", '[{"title": "Hits"}]'),
        ("pictures.csv", "set,id,label,probability\ntest/seen,a,0,high\n"),
        ("pictures.csv", "id,label\na,0\n"),
    ],
)
def test_damage_is_named(tmp_path, file, content):
    run = make_run(tmp_path / "demo")
    (run / "seed-1" / file).write_text(content)
    with pytest.raises(ArtefactError, match=f"{file}: damaged"):
        write_report(run)
