"""The tracking study without its trainings: what it compares, how files are scored, what its tables say."""

import argparse
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

import vision_lowrank as vl
from vision_lowrank.adapters.tuner import layer_factors, tuner_layers
from vision_lowrank.attachment.section import attach_section
from vision_lowrank.config.adapter import PLACES, AdapterSection
from vision_lowrank.data.emoji_scenes import EmojiScenesConfig, emoji_scenes
from vision_lowrank.tasks.tracking.follow import score_clips, still

STUDY = Path(__file__).parents[2] / "benchmarks" / "tracking"
SMALL = {"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 4, "img_size": 32}


def script(path):
    """A script of the study; their names are not unique."""
    spec = spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run():
    sys.path.insert(0, str(STUDY))
    yield script(STUDY / "run.py")
    sys.path.remove(str(STUDY))


@pytest.fixture(scope="module")
def clips():
    return emoji_scenes(EmojiScenesConfig(test_clips=2, frames=4, size=(96, 72))).tests["emoji_scenes"]


# --- what is compared ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(run):
    return run.arms_study(run.ARMS, run.Conditions(trial=True))


def test_the_arms_are_equal_but_for_what_they_compare(run, plan):
    configs = {variant.name: variant.config for variant in plan.variants}
    assert list(configs) == [*run.ARMS, *run.EXPERIMENTS]
    assert {name: (config.task.templates, config.task.update_after) for name, config in configs.items()} == {
        **dict.fromkeys(run.ARMS, (1, 0)), "lora, two templates": (2, 0), "lora, template update": (2, 10),
    }  # fmt: skip
    assert configs["lora+truncated_normal"].initializer.type == "truncated_normal"
    assert all(config.initializer is None for name, config in configs.items() if "+" not in name)
    assert configs["none"].adapter is configs["full"].adapter is None
    assert [name for name, config in configs.items() if config.task.trains_base] == ["full"]
    first = configs["lora"]
    for config in configs.values():
        assert (config.data, config.backbone, config.engine, config.seeds) == (
            first.data, first.backbone, first.engine, (1,),
        )  # fmt: skip
    assert {configs[name].adapter.options["r"] for name in run.FACTORS if name != "loldu"} == {64}


def test_every_adapter_whose_updates_have_factors_is_an_arm(run):
    """MixLoRA has some in its attention alone, RandLoRA none; LoFiT, prompts and prefixes change no weight."""
    found = []
    for part in vl.methods("adapter"):
        if part.name == "peft":
            continue
        places = getattr(part.target, "places", PLACES)
        modules = ("q", "k", "v", "o", "fc1", "fc2") if places == PLACES else places
        section = AdapterSection.model_validate({"type": part.name, "towers": ["vision"], "modules": list(modules)})
        backbone = vl.load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL).requires_grad_(False)
        model = attach_section(backbone, section)
        if all(layer_factors(layer) is not None for _, layer in tuner_layers(model)):
            found.append(part.name)
    assert sorted(found) == sorted([*run.FACTORS, "lora"])


def test_learning_rates_are_chosen_from_a_short_list(run):
    study = run.arms_study(["lora", "none", "loldu"], run.Conditions(photographs=()))
    assert [each.rates for each in study.variants] == [run.OTHER_RATES, run.OTHER_RATES, run.RATES["loldu"], (), ()]
    assert [variant.config.seeds for variant in study.variants] == [(1, 2, 3), (1, 2, 3), (1,), (1,), (1,)]
    assert [variant.follows for variant in study.variants] == [None] * 3 + [study.variants[0]] * 2


def test_no_folder_of_the_machine_is_written(run, tmp_path):
    given = argparse.Namespace(photographs=[str(tmp_path), "b"], steps=300, trial=False)
    said = run.command("run.py", given)
    assert said == "python run.py --photographs FOLDER FOLDER --steps 300"
    about = run.Conditions(trial=True).about()
    assert (about["pairs"], about["clips"], about["frames"]) == (4, 2, 4)
    assert min(about["photographs"].values()) > 0


# --- result files --------------------------------------------------------------------------------------------------


def test_a_baseline_is_followed_once_and_scored_from_its_files(run, clips, tmp_path):
    import clip_scores

    results = clip_scores.baseline_results("no motion", clips, tmp_path)
    found = clip_scores.scores_of(results, clips)
    expected = score_clips(clips, [still(clip) for clip in clips.clips]).overall.values
    for name, value in found["metrics"].items():
        assert value["mean"] == pytest.approx(expected[name], abs=1e-3)
        assert value["n"] == 2
    assert found["metrics"]["success_auc"]["std"] == pytest.approx(np.std(list(found["clips"].values())))
    path = results.path(clips[0].name)
    np.savetxt(path, clips[0].boxes, delimiter="\t")  # somebody knows the truth
    again = clip_scores.scores_of(clip_scores.baseline_results("no motion", clips, tmp_path), clips)
    assert again["clips"][clips[0].name] == pytest.approx(20 / 21)
    assert again["clips"][clips[1].name] == found["clips"][clips[1].name]


def test_template_matching_finds_a_patch_that_moved(run):
    pytest.importorskip("cv2")
    import plain_trackers

    frame = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    boxes = plain_trackers.follow_frames(
        plain_trackers.BASELINES["template matching"](),
        [frame, np.roll(frame, (3, -5), axis=(0, 1))],
        np.array([40.0, 30.0, 20.0, 16.0]),
    )
    assert boxes.tolist() == [[40, 30, 20, 16], [35, 33, 20, 16]]


# --- tables --------------------------------------------------------------------------------------------------------


def score(mean, std=0.0, n=3):
    return {"mean": mean, "std": std, "n": n}


def row(method, values, **more):
    metrics = {f"test/emoji_scenes/{name}": score(float(np.mean(values)), float(np.std(values)))
               for name in ("success_auc", "normalized_precision", "op50", "precision")}  # fmt: skip
    seeds = {str(seed): value for seed, value in enumerate(values, 1)}
    return {"method": method, "lr": 0.001, "trained_parameters": 1000, "metrics": metrics, "seeds": seeds, **more}


def result(run):
    still_scores = {name: score(0.2) for name in run.KEPT}
    tracker = {
        "metrics": {name: score(0.61234, 0.1, 40) for name in run.KEPT},
        "attributes": {"twin": 0.5},
        "clips": {},
    }
    rows = [row("lora", [0.5, 0.6, 0.7], step_ratio=1.0), row("full", [0.52, 0.6, 0.71], step_ratio=1.2345)]
    return {
        "conditions": {"clips": 40, "frames": 60, "pairs": 19_200},
        "attributes": {"twin": 12},
        "trackers": {"no motion": {**tracker, "metrics": still_scores}, "tiny-tracker": tracker},
        "arms": {
            "task": "tracking",
            "sizes": "every method at the recipe's rank 64",
            "seeds": [1, 2, 3],
            "baseline": {f"test/emoji_scenes/{name}": value for name, value in still_scores.items()},
            "rows": rows,
        },
    }


def test_tables_say_what_the_results_say(run):
    tables = script(STUDY / "tables.py")
    text = tables.render_tables(json.loads(json.dumps(result(run))))
    assert "| tiny-tracker | 61.2 ± 10.0 | 61.2 ± 10.0 | 61.2 ± 10.0 | 61.2 ± 10.0 |" in text
    lora = next(line for line in text.splitlines() if line.startswith("| LoRA, usual start"))
    assert lora.split(" | ")[2] == "60.0 ± 8.2"
    assert lora.split(" | ")[6] == "-1.0 ± 0.8"  # of -2, 0 and -1 points
    assert "| full fine-tuning | 0.001 |" in text
    assert " | 1,000 | 1.23 |" in text
    assert "| twin | 12 | 50.0 | 50.0 |" in text
    assert "<svg" in tables.draw_figure(result(run))


def test_speeds_are_ratios_of_the_same_round():
    speed = script(STUDY / "speed" / "run.py")
    times = {"a": [1.0, 4.0, 9.0], "b": [2.0, 2.0, 3.0]}
    assert speed.ratio(times, "a", "b") == {"median": 2.0, "low": 1.25, "high": 2.5}
    clock = {"track, all": [12.0, 22.0], "track, two": [2.0, 2.0]}
    assert speed.loop_rates(clock, "track", 102) == [10.0, 5.0]
    names = ("network / vit", "network / blocks", "head / vit", "factors / vit", "crop / network", "frame / network")
    entry = {
        "search": 224,
        "seconds": {"network": speed.spread([0.1])},
        "ratios": {name: speed.spread([1.0, 1.02, 1.04]) for name in names},
    }
    rates = {"track": speed.spread([20.0]), "CSRT": speed.spread([30.0])}
    measured = {"rounds": 3, "networks": {"vit": entry}, "track": {"frames": 102, "whole": rates, "loop": rates}}
    text = script(STUDY / "speed" / "tables.py").render_tables(measured)
    assert "| of the bare ViT | 1.020 (1.010 to 1.030) |" in text
    assert "| CSRT | 30.0 (30.0 to 30.0) | 30.0 (30.0 to 30.0) |" in text
