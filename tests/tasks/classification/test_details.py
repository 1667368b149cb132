"""What a classifier's run leaves beside its metrics, and that the report's lines in Python do what they say."""

import ast
import html
import json
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from vision_lowrank.config import load_config
from vision_lowrank.engine import Engine
from vision_lowrank.studies.run import build_task, run


def test_confusion_and_mistakes_are_those_of_the_outputs(recipe, tmp_path):
    config = load_config(recipe)
    task = build_task(config, 1)
    engine = Engine(config.engine, task, tmp_path / "seed", seed=1)
    engine.evaluate("test")
    task.write_details(tmp_path, engine.outputs)
    details = json.loads((tmp_path / "details.json").read_text())
    found = engine.outputs["test/test"]
    predicted, labels = found["logits"].argmax(1), found["label"]
    assert details["classes"] == ["disc", "square", "stripes"]
    expected = confusion_matrix(labels.numpy(), predicted.numpy(), labels=range(3))
    assert np.array_equal(details["confusion"]["test/test"], expected)
    mistakes = json.loads((tmp_path / "mistakes.json").read_text())
    wrong = (predicted != labels).nonzero().flatten()
    assert len(mistakes) == len(wrong) > 0
    images = task.image_sets("test")["test/test"]
    keys = {images.keys[int(found["index"][row])]: row for row in wrong}
    assert {each["key"] for each in mistakes} == set(keys)
    confidences = [each["probability"] for each in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    for each in mistakes:
        row = keys[each["key"]]
        assert each["true"] == details["classes"][labels[row]]
        assert each["predicted"] == details["classes"][predicted[row]]
        assert each["probability"] == pytest.approx(found["logits"][row].softmax(0).max().item(), abs=1e-4)
        assert each["image"].startswith("data:image/png;base64,")


def test_the_lines_of_the_report_classify_a_picture(recipe, tmp_path, pictures, monkeypatch, capsys):
    run(load_config(recipe, ["seeds=[1]", "engine.steps=1"]))
    monkeypatch.chdir(tmp_path / "runs")
    (tmp_path / "runs" / "picture.png").symlink_to(pictures / "disc" / "0.png")
    page = (tmp_path / "runs" / "shapes" / "report.html").read_text()
    lines = re.search(r"In Python:</p>\s*<pre><code>(.*?)</code>", page, re.DOTALL)
    exec(compile(html.unescape(lines[1]), "report", "exec"), {})
    row = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    assert {name for name, _ in row["top"]} == {"disc", "square", "stripes"}
    assert 1 / 3 < row["probability"] <= 1
    assert [row["class"], row["probability"]] == row["top"][0]
    assert torch.is_grad_enabled()
