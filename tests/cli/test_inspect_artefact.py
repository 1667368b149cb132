import json
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from fixtures.models import moved

import vision_lowrank as vl
from vision_lowrank.analysis.intruders import intruders
from vision_lowrank.analysis.layers import layer_pairs
from vision_lowrank.cli.main import main
from vision_lowrank.tasks.classification.classifier import ImageClassifier


def run(*arguments):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def save(folder, weights, adapter):
    torch.manual_seed(0)
    model = vl.load_backbone("tiny-clip", str(weights))
    if adapter:
        where = {"towers": ["vision"], "layers": [0], "modules": ["q", "fc1"]}
        model = moved(vl.attach(model, vl.LoraConfig(r=2), **where))
    ImageClassifier(model, "linear", ["<b>cat</b>", "dog"], ["a {}."]).save(folder, {})
    return folder


@pytest.fixture(scope="module")
def artefact(tmp_path_factory, tiny_weights):
    return save(tmp_path_factory.mktemp("saved") / "<i>artefact", tiny_weights, adapter=True)


def test_table_page_and_numbers(artefact, tmp_path, capsys):
    assert run("inspect", artefact, "--json", tmp_path / "numbers.json") == 0
    out = capsys.readouterr().out
    page = (artefact / "inspect.html").read_text()
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    expected = {
        pair.name: intruders(pair.weight, pair.delta)
        for pair in layer_pairs(ImageClassifier.load(artefact, attach=True).backbone)
    }
    assert [row["name"] for row in numbers["layers"]] == list(expected)
    assert len(expected) == 2
    assert sorted({row["kind"] for row in numbers["layers"]}) == ["vision fc1", "vision q"]
    for row in numbers["layers"]:
        found = expected[row["name"]]
        assert row["intruders"] == found.count
        assert row["indices"] == found.indices.tolist()
        assert row["energy_share"] == pytest.approx(found.energy_share)
        assert 0 < row["effective_rank"] <= 2 + 1e-6
        assert f"{row['relative_norm']:.3g}" in out
        assert f"<code>{row['name']}</code>" in page
    assert numbers["total"] == sum(found.count for found in expected.values()) > 0
    assert numbers["slots"] == 20
    assert f"lora on tiny-clip: {numbers['total']} intruders of 20 vectors" in " ".join(out.split())
    assert "inspect.html" in "".join(out.split())


def test_the_page_is_whole_escaped_and_loads_nothing(artefact, tmp_path):
    assert run("inspect", artefact, "--out", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(figures) == 3
    for figure in figures:
        ET.fromstring(figure)
    assert "<i>artefact" not in page
    assert "&lt;i&gt;artefact" in page
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="http', page)
    assert "{{" not in page
    assert "{%" not in page


def test_k_and_epsilon_are_used(artefact, tmp_path):
    options = ("--top-k", 1, "--epsilon", 0.9, "--json", tmp_path / "n.json", "--out", tmp_path / "page.html")
    assert run("inspect", artefact, *options) == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    pairs = list(layer_pairs(ImageClassifier.load(artefact, attach=True).backbone))
    counts = [intruders(pair.weight, pair.delta, k=1, epsilon=0.9).count for pair in pairs]
    assert [row["intruders"] for row in numbers["layers"]] == counts
    assert counts != [intruders(pair.weight, pair.delta).count for pair in pairs]
    assert numbers["slots"] == 2
    assert "is below 0.9, among the 1 leading" in (tmp_path / "page.html").read_text()


def test_mistakes_are_one_line(artefact, recipe, tiny_weights, tmp_path, capsys):
    def message(*arguments):
        capsys.readouterr()
        assert run("inspect", *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        return lines[0] if len(lines) == 1 else lines

    (tmp_path / "empty").mkdir()
    assert "no artefact here" in message(tmp_path / "empty")
    assert "Did you mean" in message(artefact.parent)
    assert "takes no settings (adapter.r=3)" in message(artefact, "adapter.r=3")
    assert "are for artefact folders" in message(recipe, "--json", tmp_path / "n.json")
    plain = save(tmp_path / "plain", tiny_weights, adapter=False)
    assert "has no adapter to inspect" in message(plain)
    assert not (plain / "inspect.html").exists()
    assert run("inspect", artefact, "--epsilon", 2) == 2
