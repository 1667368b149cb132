from __future__ import annotations

import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from vision_lowrank.errors import ArtefactError
from vision_lowrank.viz import plots
from vision_lowrank.viz.report import write_report

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
EVIL = '<script>alert("x")</script>'
VOID = {"meta", "img", "br", "path", "circle", "use", "rect", "image", "link", "input"}


class Page(HTMLParser):
    """Tags with attributes, visible text, the text of every section, and whether the tags nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str | None, str] = {}
        self.text = ""
        self.open: list[str] = []
        self.section: str | None = None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag == "section":
            self.section = None

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
            self.sections[self.section] = self.sections.get(self.section, "") + data

    def words(self, section: str | None = "all") -> str:
        return " ".join((self.text if section == "all" else self.sections[section]).split())

    def rows(self, section: str) -> list[str]:
        start = self.source.index(f'<section id="{section}"')
        body = self.source[start : self.source.index("</section>", start)]
        return [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)]


def aggregate(values: list[float]) -> dict[str, float]:
    mean = sum(values) / len(values)
    return {"mean": mean, "std": math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)), "n": len(values)}


def make_run(run: Path, before=(0.25, 0.25), after=(0.5, 0.6), classes=("cat", "dog", "owl"), **changes) -> Path:
    """A run folder as the engine leaves it; `changes` replace keys of result.json."""
    count = len(classes)
    config = {
        "name": "demo",
        "backbone": {"name": "tiny-clip"},
        "seeds": list(range(1, len(after) + 1)),
        "task": {"type": "fewshot", "shots": 4, "head": "text"},
        "data": {"type": "emoji"},
        "adapter": {"type": "block_lora", "r": 8},
    }
    seeds = {}
    for seed, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        folder = run / f"seed-{seed}"
        (folder / "artefact").mkdir(parents=True)
        lines = [{"stage": "train", "step": step, "loss": 2.0 / step, "lr": 1e-4 / step} for step in (1, 2, 4)]
        lines.append({"stage": "train", "step": 4, "val/accuracy": new, "val/loss": 1.0})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        mistake = {"set": "test/fluent", "key": "fluent/1", "true": classes[0], "predicted": classes[1]}
        (folder / "mistakes.json").write_text(json.dumps([mistake | {"probability": 0.875, "image": PIXEL}]))
        confusion = [[3 if i == j else 0 for j in range(count)] for i in range(count)]
        confusion[0][1] = seed
        details = {"classes": list(classes), "confusion": {"test/fluent": confusion}}
        (folder / "details.json").write_text(json.dumps(details))
        seeds[str(seed)] = {
            "seed": seed,
            "baseline": {"test/fluent/accuracy": old, "retention/noto/accuracy": 0.5, "test/fluent/loss": 2.0},
            "metrics": {"test/fluent/accuracy": new, "retention/noto/accuracy": 0.4, "test/fluent/loss": 1.25},
            "facts": {
                "backbone": {"name": "tiny-clip", "weights": None, "fingerprint": "f00d"},
                "classes": count,
                "templates": ["a {}."],
                "train_images": 12,
                "train_hash": f"hash{seed}",
                "test_hashes": {"test/fluent": "cafe"},
                "trainable_parameters": 2048,
                "adapter_parameters": 2048,
            },
            "cost": {
                "step_seconds": 0.1 * seed, "peak_memory": 3 * 2**20, "train_seconds": 30.0, "total_parameters": 102400
            },
            "coverage": {
                "rows": [
                    {"module": "q_proj", "adapter": "block_lora", "parameters": 1024, "called": True,
                     "gradient_reached": seed == 1},
                ]
            },
        }  # fmt: skip
    result = {
        "name": "demo",
        "task": "fewshot",
        "command": "python tools/train.py demo.yaml",
        "config": config,
        "environment": {"vision_lowrank": "0.1", "packages": {"torch": "2.15"}, "python": "3.11", "git": None},
        "baseline": {k: aggregate([s["baseline"][k] for s in seeds.values()]) for k in seeds["1"]["baseline"]},
        "metrics": {k: aggregate([s["metrics"][k] for s in seeds.values()]) for k in seeds["1"]["metrics"]},
        "seeds": seeds,
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "result.json").write_text(json.dumps(result | changes))
    return run


def edit(run: Path, change) -> None:
    path = run / "result.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))


def test_sections_are_all_there_in_order(tmp_path):
    path = write_report(make_run(tmp_path / "demo"))
    assert path == tmp_path / "demo" / "report.html"
    ids = [attributes["id"] for tag, attributes in Page(path).tags if tag == "section"]
    assert ids == ["results", "learning", "confusion", "mistakes", "cost", "use", "provenance"]
    assert [left.name for left in path.parent.iterdir() if "report" in left.name] == ["report.html"]


def test_tags_nest(tmp_path):
    assert Page(write_report(make_run(tmp_path / "demo"))).open == []


def test_scores_are_means_with_population_std_and_paired_changes(tmp_path):
    page = Page(write_report(make_run(tmp_path / "demo", before=(0.2, 0.3), after=(0.5, 0.7))))
    rows = page.rows("results")
    # fluent: before 25 ± 5, after 60 ± 10, changes 30 and 40, so 35 ± 5
    assert "fluent 25.0 ± 5.0 60.0 ± 10.0 +35.0 ± 5.0" in rows
    assert "noto 50.0 40.0 −10.0" in rows
    assert "fluent loss 2.000 1.250 −0.750" in rows
    assert "1 20.0 50.0 hash1" in rows
    assert "2 30.0 70.0 hash2" in rows


def test_one_seed_shows_no_spread(tmp_path):
    page = Page(write_report(make_run(tmp_path / "demo", before=(0.25,), after=(0.5,))))
    assert "fluent 25.0 50.0 +25.0" in page.rows("results")
    assert "±" not in page.words("results")


def test_better_and_worse_follow_the_metric_not_the_sign(tmp_path):
    source = Page(write_report(make_run(tmp_path / "demo"))).source
    toned = re.findall(r'<td class="number (better|worse)">\s*([−+\d.]+)<', source)
    assert toned == [("better", "+30.0"), ("worse", "−10.0"), ("better", "−0.750")]


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        ((0.5, 0.6), "Accuracy on fluent rose from 25.0% to 55.0% (mean of 2 seeds)."),
        ((0.1, 0.1), "Accuracy on fluent fell from 25.0% to 10.0% (mean of 2 seeds)."),
        ((0.25, 0.25), "Accuracy on fluent stayed at 25.0% (mean of 2 seeds)."),
    ],
)
def test_summary_says_what_happened(tmp_path, after, sentence):
    words = Page(write_report(make_run(tmp_path / "demo", after=after))).words(None)
    assert "tiny-clip was adapted with block_lora (rank 8) on emoji, using 12 pictures of 3 classes." in words
    assert sentence in words
    assert "On noto, which it was not trained on here, it fell from 50.0% to 40.0%." in words


def test_cost_and_dead_modules_are_named(tmp_path):
    run = make_run(tmp_path / "demo")
    words = Page(write_report(run)).words("cost")
    assert "trainable parameters2,048 2% of 102,400" in words
    assert "150 ms" in words  # mean of 0.1 and 0.2 s
    assert "3 MiB" in words
    assert "all were called and the gradient reached all" in words
    edit(run, lambda result: result["seeds"]["1"]["coverage"]["rows"][0].update(gradient_reached=False))
    assert "0 were never called, 1 got no gradient" in Page(write_report(run)).words("cost")


def test_confusion_is_summed_over_seeds(tmp_path):
    page = Page(write_report(make_run(tmp_path / "demo")))
    # seeds 1 and 2 gave 1 and 2 cats taken for dogs beside 2 × 3 right ones: 3 of 9
    assert page.rows("confusion")[-1] == "cat dog 3 33.3%"
    assert len(page.rows("confusion")) == 2


@pytest.mark.parametrize(("count", "drawn"), [(60, True), (61, False)])
def test_large_confusion_matrices_become_a_list(tmp_path, count, drawn):
    names = tuple(f"class {i}" for i in range(count))
    page = Page(write_report(make_run(tmp_path / "demo", classes=names)))
    assert ("confusion matrix" in [attributes.get("aria-label") for _, attributes in page.tags]) == drawn
    assert "class 0 class 1 3 33.3%" in page.rows("confusion")


def test_user_text_is_escaped_everywhere(tmp_path):
    run = make_run(tmp_path / "demo", classes=(EVIL, f"b{EVIL}", "$x$ \ud800 <!--"), name=EVIL, command=EVIL)
    (run / "config.yaml").write_text(f"name: '{EVIL}'\n")
    (run / "seed-1" / "mistakes.json").write_text(
        json.dumps([{"key": EVIL, "true": EVIL, "predicted": EVIL, "probability": 0.5, "image": f'"{EVIL}'}])
    )

    def poison(result):
        result["config"]["backbone"]["name"] = EVIL
        result["config"]["adapter"] = {"type": EVIL, "r": EVIL}
        result["environment"] = {EVIL: EVIL, "packages": {EVIL: EVIL}}
        result["seeds"]["1"]["facts"].update(templates=[EVIL], test_hashes={EVIL: EVIL}, train_hash=EVIL)
        result["seeds"]["1"]["coverage"]["rows"][0].update(module=EVIL, adapter=EVIL)
        for name in ("metrics", "baseline"):
            for scores in (result[name], result["seeds"]["1"][name], result["seeds"]["2"][name]):
                scores[f"test/{EVIL}/accuracy"] = scores["test/fluent/accuracy"]

    edit(run, poison)
    page = Page(write_report(run))
    assert page.text.count(EVIL) >= 12
    assert "script" not in [tag for tag, _ in page.tags]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.open == []


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    run = make_run(tmp_path / "demo")
    images = ("https://elsewhere/a.png", "javascript:1", "data:text/html;base64,AA==", PIXEL)
    mistake = {"key": "k", "true": "cat", "predicted": "dog", "probability": 0.5}
    mistakes = [mistake | {"image": image} for image in images]
    (run / "seed-1" / "mistakes.json").write_text(json.dumps(mistakes))
    page = Page(write_report(run))
    sources = [attributes[name] for _, attributes in page.tags
               for name in ("src", "href", "xlink:href", "srcset", "action", "data") if name in attributes]  # fmt: skip
    assert [source for source in sources if source == PIXEL] == [PIXEL]
    assert all(source.startswith(("#", "data:image/")) for source in sources)
    assert re.findall(r"url\((?!#)|@import", page.source) == []
    assert "link" not in [tag for tag, _ in page.tags]
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_report_is_deterministic(tmp_path):
    run = make_run(tmp_path / "demo")
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_missing_parts_are_left_out(tmp_path):
    run = make_run(tmp_path / "demo", baseline={}, before=(0.25,), after=(0.25,))

    def zero_shot(result):
        result["config"].update(adapter=None, task={"type": "zeroshot"})
        result["seeds"]["1"].update(baseline={}, coverage=None, cost={})
        result["seeds"]["1"]["facts"] = {"trainable_parameters": 0, "classes": 3}

    edit(run, zero_shot)
    for name in ("details.json", "mistakes.json", "metrics.jsonl"):
        (run / "seed-1" / name).unlink()
    (run / "seed-1" / "artefact").rmdir()
    page = Page(write_report(run))
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert ids == ["results", "cost", "provenance"]
    assert "was evaluated as it is, without training, on emoji with 3 classes." in page.words(None)
    assert "fluent 25.0" in page.rows("results")


def test_unfinished_run_shows_what_was_logged(tmp_path):
    run = make_run(tmp_path / "demo")
    (run / "result.json").unlink()
    with (run / "seed-1" / "metrics.jsonl").open("a") as log:
        log.write('{"stage": "train", "step": 5, "lo')
    page = Page(write_report(run))
    assert "Not finished" in page.words(None)
    assert "learning" in page.sections
    assert "cat taken for dog, 87.5%" in page.words("mistakes")  # of a seed that is finished


def test_missing_seeds_are_counted(tmp_path):
    run = make_run(tmp_path / "demo")
    edit(run, lambda result: result["config"].update(seeds=[1, 2, 3]))
    assert "Not finished: 2 of 3 seeds so far." in Page(write_report(run)).words(None)


def test_how_to_load_starts_where_the_user_trained(tmp_path):
    run = make_run(tmp_path / "mine")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"config": {"out": "runs/later", "name": "mine"}}))
    assert "vision-lowrank predict runs/later/mine/seed-1/artefact picture.png" in Page(write_report(run)).words("use")


def test_how_to_load_names_the_artefact(tmp_path):
    words = Page(write_report(make_run(tmp_path / "my run"))).words("use")
    assert "vision-lowrank predict 'my run/seed-1/artefact' picture.png" in words
    assert 'vl.load_model("my run/seed-1/artefact")' in words
    assert str(tmp_path) not in words


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "\x00",
        '{"name": "x"}',
        '{"name": "x", "task": "t", "metrics": {"a": 3}, "seeds": {}}',
        "[" * 9999,
    ],
)
def test_damaged_result_is_one_line(tmp_path, content):
    run = make_run(tmp_path / "demo")
    (run / "result.json").write_text(content)
    with pytest.raises(ArtefactError, match="damaged") as error:
        write_report(run)
    assert "result.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("classes", "many"), ("classes", 0), ("backbone", "x"), ("templates", 3)])
def test_damaged_facts_are_named(tmp_path, key, value):
    run = make_run(tmp_path / "demo")
    edit(run, lambda result: result["seeds"]["2"]["facts"].update({key: value}))
    with pytest.raises(ArtefactError, match=rf"damaged at seeds\.2\.facts\.{key} \("):
        write_report(run)


def test_damaged_confusion_is_named(tmp_path):
    run = make_run(tmp_path / "demo")
    path = run / "seed-2" / "details.json"
    details = json.loads(path.read_text())
    details["confusion"]["test/fluent"].pop()
    path.write_text(json.dumps(details))
    with pytest.raises(ArtefactError, match=r"seed-2/details\.json: damaged at confusion\.test/fluent \(not 3 rows"):
        write_report(run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match="no run here"):
        write_report(tmp_path)


def test_nan_scores_are_dashes(tmp_path):
    run = make_run(tmp_path / "demo", before=(0.25,), after=(math.nan,))
    assert "fluent 25.0 – –" in Page(write_report(run)).rows("results")


def svg_path(svg: str, style: str) -> list[tuple[float, float]]:
    """Corner points of the only path whose style contains `style`."""
    (path,) = (p for p in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}path") if style in p.get("style", ""))
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d") or "")]


def test_mean_curve_lies_halfway_between_two_runs():
    def thick(*runs):
        svg = plots.learning_curves({str(i): run for i, run in enumerate(runs)}, "loss")
        return svg_path(svg, "stroke-width: 2;")

    low, high = [(1, 0.0), (3, 0.0), (5, 4.0)], [(1, 4.0), (3, 2.0), (9, 0.0)]
    (x1, y1), (x3, y3) = thick(low, high)  # steps that both have: 1 and 3, with means 2 and 1
    # the axes show 0..4 with matplotlib's 5 % margins inside 30..176 and steps 1..9 inside 44..302
    height, width = (176 - 30) / 1.1, (302 - 44) / 1.1
    assert (y1, y3) == pytest.approx((103, 103 + height / 4), abs=1e-4)
    assert x3 - x1 == pytest.approx(width * 2 / 8, abs=1e-4)


def test_accuracy_by_shots_labels_every_method_without_overlap():
    rows = [
        {"method": f"m{i}", "shots": shots, "mean": 0.5 + 0.001 * i, "std": 0.01} for i in range(4) for shots in (1, 4)
    ]
    svg = plots.accuracy_by_shots(rows)
    labels = re.findall(r'y="([\d.]+)"[^>]*>m(\d)</text>', svg)
    heights = [float(y) for y, _ in sorted(labels, key=lambda label: label[1])]
    assert len(heights) == 4
    assert all(below - above >= 12.99 for below, above in itertools.pairwise(heights))


def test_spectrum_marks_the_intruders_at_their_values():
    svg = plots.spectrum([100.0, 10.0, 1.0], [100.0, 10.0, 1.0], [1], "values")
    (mark,) = re.findall(r'<use[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*fill: #d55e00', svg)
    line = svg_path(svg, f"stroke: var(--plot-accent, {plots.ACCENT})")
    assert (float(mark[0]), float(mark[1])) == pytest.approx(line[1], abs=1e-3)
    heights = [y for _, y in line]
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0], abs=1e-3)  # logarithmic


def test_intruder_counts_draw_a_line_and_a_legend_entry_per_kind():
    svg = plots.intruder_counts({"vision q": [(0.0, 0), (0.5, 5), (1.0, 10)], "text q": [(0.0, 0), (1.0, 4)]})
    assert [svg.count(f">{name}</text>") for name in ("vision q", "text q")] == [1, 1]
    line = max(re.findall(r'd="M ([^"]*)"[^>]*stroke: var\(--plot-accent', svg), key=lambda d: d.count("L"))
    heights = [float(point.split()[1]) for point in line.split("L")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])  # SVG counts downwards
    assert heights[0] > heights[2]


@pytest.mark.parametrize(
    "svg",
    [
        plots.learning_curves({"1": [(1, 1.0)]}, EVIL),
        plots.confusion([[1, 2], [0, 0]], ["$a$", f"{EVIL}\ud800\n\x00"]),
        plots.accuracy_by_shots([{"method": EVIL, "shots": 1, "mean": 0.5, "std": 0.0}]),
        plots.accuracy_by_shots([]),
        plots.intruder_counts({EVIL: [(0.1, 0), (0.5, 3)]}, EVIL),
        plots.intruder_counts({}),
        plots.spectrum([2.0, 1.0, 0.0], [3.0, 1.5, 0.0], [0], EVIL),
        plots.spectrum([0.0], [0.0], [], "nothing"),
        plots.similarity([[1.0, 0.2], [0.0, 0.9]], EVIL),
    ],
)
def test_plots_stand_alone_as_valid_svg(svg):
    root = ET.fromstring(svg.encode("utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "script" not in [element.tag.rpartition("}")[2] for element in root.iter()]
    assert re.search(r"#24292f(?!\))", svg) is None
