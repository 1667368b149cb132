"""Predicting and scanning import no library of training: PEFT and what it brings, scikit-learn, matplotlib, …"""

import json
import os
import subprocess
import sys

import pytest
import torch
from fixtures.models import moved
from PIL import Image

import vision_lowrank as vl
from vision_lowrank.paths import shipped
from vision_lowrank.tasks.classification.classifier import ImageClassifier

UNWANTED = ("peft", "sklearn", "matplotlib", "accelerate", "torchmetrics", "pandas", "scipy")
RUNNER = """
import contextlib, io, json, sys
import torch, open_clip
before = set(sys.modules)
from vision_lowrank.cli.main import main

results = []
for arguments in json.load(sys.stdin):
    out, code = io.StringIO(), None
    with contextlib.redirect_stdout(out):
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code
    results.append([code, out.getvalue(), sorted(set(sys.modules) - before)])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_weights):
    """Name -> exit code, output and the modules imported so far, beside those of torch and open_clip."""
    here = tmp_path_factory.mktemp("light")
    Image.new("RGB", (120, 90), "teal").save(here / "picture.png")
    torch.manual_seed(0)
    model = moved(vl.attach(vl.load_backbone("tiny-clip", str(tiny_weights)), vl.BlockLoraConfig(r=4, blocks=2)))
    ImageClassifier(model, "text", ["cat", "dog"], ["a {}."]).save(here / "classifier", {})
    picture, detector = str(here / "picture.png"), str(shipped("data") / "manipulation_detector")
    commands = {
        "predict classes": ["predict", str(here / "classifier"), picture, "--trust"],
        "predict edits": ["predict", detector, picture],
        "scan": ["scan", picture, "--out", str(here / "out"), "--overlay"],
    }
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(list(commands.values())), capture_output=True, text=True,
        env=os.environ | {"COLUMNS": "400"},  # no path is cut in two
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(
    ("command", "word"), [("predict classes", "probability"), ("predict edits", "likelihood"), ("scan", "1 pictures")]
)
def test_only_what_prediction_needs_is_imported(results, command, word):
    code, out, modules = results[command]
    assert code == 0
    assert word in out
    assert not [name for name in modules if name.split(".")[0] in (*UNWANTED, "transformers")]
    assert not [name for name in modules if name.startswith(("vision_lowrank.engine.loop", "vision_lowrank.adapters"))]
