"""Every recipe runs two steps on the CPU, its backbone replaced by the tiny one and its pictures by a few."""

import json
import shutil

import pytest
import timm
from PIL import Image
from timm.layers import DropPath

from vision_lowrank.config import load_config
from vision_lowrank.data.edits.reader import EditsConfig
from vision_lowrank.paths import shipped
from vision_lowrank.registry import registry
from vision_lowrank.studies.run import run
from vision_lowrank.tasks.saved import load_model

# CoACT's recipes differ in their numbers only, which tests/config/test_incremental_configs.py checks: two are enough.
ALIKE, TRIED = "coact_fsci", ("coact_fscit_sun397", "coact_fscil_cub200")
RECIPES = sorted(p for p in shipped("configs").rglob("*.yaml") if "_base_" not in p.parts)
RECIPES = [path for path in RECIPES if not path.stem.startswith(ALIKE) or path.stem in TRIED]
TRACKERS = [path for path in RECIPES if path.parent.name == "tracking" or path.stem.endswith("_tracking")]
RECIPES = [path for path in RECIPES if path not in TRACKERS]


@pytest.fixture(scope="session")
def edited(tmp_path_factory):
    """A small data set of edits of the built-in photographs."""
    folder = tmp_path_factory.mktemp("edited") / "edits"
    data = {"type": "edits", "per_photo": 1, "crops": 4, "kinds": ["blur", "splice-hard"], "folder": str(folder)}
    registry.get("data", "edits").target(EditsConfig(**data))
    return json.dumps(data)


@pytest.fixture(scope="session")
def four_classes(pictures, tmp_path_factory):
    """`pictures` with one class more, so that they have two halves."""
    folder = tmp_path_factory.mktemp("four") / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "half").mkdir()
    for path in (folder / "disc").iterdir():
        picture = Image.open(path)
        picture.paste("white", (0, 0, 20, 40))
        picture.save(folder / "half" / path.name)
    return json.dumps({"type": "folder", "root": str(folder), "fractions": [0.5, 0.1, 0.4]})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_two_steps(path, pictures, four_classes, edited, tiny_weights, tmp_path):
    config = load_config(path)
    overrides = [
        f"backbone={{name: tiny-clip, weights: {tiny_weights}}}",
        f"out={tmp_path}",
        "engine.tensorboard=false",
    ]
    overrides += ["engine.steps=2", "engine.batch_size=8"]
    if config.task.type == "fewshot":
        overrides += ["seeds=[1]", "task.shots=2", "task.steps_per_shot=null"]
        if config.task.transfer:
            overrides.append(f"task.transfer=[{four_classes}]")
    if config.task.type == "incremental":
        protocol = "{name: fscit, base: 2, way: 1, shots: 2, base_shots: 2}"
        overrides += ["seeds=[1]", f"task.protocol={protocol}", "task.epochs=null", "task.select=last"]
    if config.selection is not None:
        overrides.append("selection.steps=3")
        if hasattr(config.selection, "warmup"):
            overrides.append("selection.warmup=1")
    if config.task.type == "pretrain_regions":
        overrides += ["backbone={name: tiny-vit, weights: random}", "data={type: regions, test_pairs: 4}"]
        overrides += ["task.teacher=timm:test_efficientnet", "task.teacher_weights=random", "task.teacher_maps=[1, 2]"]
    elif config.task.type == "manipulation":
        overrides += ["seeds=[1]", f"data={edited}", "engine.precision=fp32"]
        overrides += ["task.contrast.steps=2"] if config.task.contrast else []
        if config.task.explanation:
            overrides += ["backbone={name: hf:tiny-internvl3_5, weights: random}", "task.explanation.steps=2"]
    elif getattr(config.task, "protocol", "all") == "base_to_novel":
        overrides.append(f"data={four_classes}")  # the pictures have too few classes for two halves
    elif config.data.type != "emoji_captions":
        overrides.append(f"data={{type: folder, root: {pictures}, fractions: [0.5, 0.1, 0.4]}}")
    else:
        overrides += ["data={type: emoji_captions, styles: [noto], test_styles: [fluent]}", "engine.precision=fp32"]
    result = run(load_config(path, overrides))
    assert any(name.startswith("test/") for name in result["metrics"])
    assert result["seeds"]["1"]["cost"].get("peak_memory", 1) > 0


@pytest.mark.parametrize("path", TRACKERS, ids=lambda path: path.stem)
def test_recipe_of_a_tracker_runs_two_steps(path, tmp_path, monkeypatch):
    """Its own trunk with a few channels, built where timm's are, over drawn clips; its other settings as they are."""
    config, create = load_config(path), timm.create_model
    small = {"embed_dim": 96, "depth": 1, "num_heads": 3, "img_size": 28}
    if config.backbone.name.startswith("timm:"):
        monkeypatch.setattr(timm, "create_model", lambda *given, **options: create(*given, **options | small))
    scenes = {"type": "emoji_scenes", "frames": 3, "size": [96, 72], "train_clips": 4, "test_clips": 1}
    mixture = {"type": "clip_mixture", "train": [scenes], "tests": [scenes]}
    data = mixture if config.data.type == "clip_mixture" else scenes
    overrides = ["backbone.weights=random", f"data={json.dumps(data)}", f"out={tmp_path}", "engine.tensorboard=false"]
    overrides += ["engine.steps=2", "engine.batch_size=4", "engine.precision=fp32", "engine.workers=0"]
    result = run(load_config(path, overrides))
    assert result["metrics"].keys() >= {"test/emoji_scenes/success_auc", "test/emoji_scenes/normalized_precision"}
    tracker = load_model(tmp_path / path.stem / "seed-1" / "artefact")
    assert tracker.cropping == config.task.cropping
    share = getattr(config.backbone.options, "drop_path", 0)
    assert [m.drop_prob for m in tracker.modules() if isinstance(m, DropPath)] == [share] * (2 * (share > 0))
