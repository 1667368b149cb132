import json

import pytest
import torch

from vision_lowrank.config import load_config
from vision_lowrank.engine import Hook
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.studies import run as experiment
from vision_lowrank.tasks.classification.classifier import ImageClassifier


@pytest.fixture
def finished(recipe):
    config = load_config(recipe)
    return config, experiment.run(config)


def test_run_leaves_everything_that_it_promises(finished):
    config, result = finished
    folder = experiment.run_folder(config)
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    for seed in (1, 2):
        for name in ("metrics.jsonl", "result.json", "artefact/artefact.json", "artefact/adapter/adapter_config.json"):
            assert (folder / f"seed-{seed}" / name).is_file()
    assert "<html" in (folder / "report.html").read_text()
    assert load_config(folder / "config.yaml") == config


def test_mean_and_spread_are_over_seeds(finished):
    _, result = finished
    values = [result["seeds"][seed]["metrics"]["test/test/loss"] for seed in ("1", "2")]
    summary = result["metrics"]["test/test/loss"]
    assert summary["mean"] == pytest.approx(sum(values) / 2)
    assert summary["std"] == pytest.approx(abs(values[0] - values[1]) / 2)  # population convention
    assert summary["n"] == 2


def test_baseline_is_the_untrained_model(finished, recipe):
    _, result = finished
    zeroshot = load_config(recipe, ["task={type: zeroshot}", "adapter=null", "name=zero"])
    expected = experiment.run(zeroshot)["metrics"]
    assert result["baseline"]["test/test/loss"]["mean"] == pytest.approx(expected["test/test/loss"]["mean"], abs=1e-6)


def test_record_tells_pictures_cost_and_versions(finished):
    _, result = finished
    facts, cost = result["seeds"]["1"]["facts"], result["seeds"]["1"]["cost"]
    # block_lora r=2 in 2 blocks on q, k, v of 2 layers: 192-wide vision, 128-wide text, (r/n)·in + r·out each
    assert facts["trainable_parameters"] == 2 * 3 * ((192 + 2 * 192) + (128 + 2 * 128))
    assert facts["train_images"] == 6
    assert len(facts["train_hash"]) == 16
    assert facts["train_hash"] != result["seeds"]["2"]["facts"]["train_hash"]
    assert cost["step_seconds"] > 0
    assert cost["peak_memory"] > 1e5
    assert result["environment"]["packages"]["torch"] in torch.__version__
    assert all(row["gradient_reached"] for row in result["seeds"]["1"]["coverage"]["rows"])


def test_run_again_reads_finished_seeds_and_refuses_another_config(finished, recipe):
    config, result = finished
    before = (experiment.run_folder(config) / "seed-1" / "result.json").stat().st_mtime_ns
    assert experiment.run(config)["metrics"] == result["metrics"]
    assert (experiment.run_folder(config) / "seed-1" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"another config.*differs in 'steps: 4' there, 'steps: 5' here"):
        experiment.run(load_config(recipe, ["engine.steps=5"]))


def test_killed_run_resumes_to_the_same_numbers(finished, recipe, monkeypatch):
    class Killed(Exception):
        pass

    class Kill(Hook):
        armed = True

        def after_step(self, engine):
            if self.armed and engine.step == 3:
                Kill.armed = False
                raise Killed

    _, result = finished
    config = load_config(recipe, ["name=again"])
    engine = experiment.Engine

    def with_kill(*args, hooks, **others):
        return engine(*args, hooks=[Kill(), *hooks], **others)

    monkeypatch.setattr(experiment, "Engine", with_kill)
    with pytest.raises(Killed):
        experiment.run(config)
    assert (experiment.run_folder(config) / "seed-1" / "checkpoints").is_dir()
    assert experiment.run(config)["metrics"] == result["metrics"]


def test_damaged_seed_result_is_named(finished):
    config, _ = finished
    path = experiment.run_folder(config) / "seed-1" / "result.json"
    path.write_text("{")
    with pytest.raises(ArtefactError, match=r"seed-1/result\.json: not valid JSON"):
        experiment.run(config)


def test_folder_that_cannot_be_written_is_named(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        experiment.run(load_config(recipe, [f"out={tmp_path / 'file'}"]))


def test_artefact_predicts_what_training_evaluated(finished):
    config, result = finished
    task = experiment.build_task(config, 1)
    classifier = ImageClassifier.load(experiment.run_folder(config) / "seed-1" / "artefact")
    images = task.splits.tests["test"]
    pixels = torch.stack([classifier.backbone.transform(images.image(i)) for i in range(len(images))])
    logits = classifier(pixels)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(images.labels)).item()
    assert loss == pytest.approx(result["seeds"]["1"]["metrics"]["test/test/loss"], abs=1e-5)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_plain_vit_trains_with_a_head_and_reloads(recipe, head):
    vit = "backbone={name: 'timm:test_vit', weights: random}"
    config = load_config(recipe, [vit, f"task.head={head}", "adapter=null", "seeds=[1]", f"name={head}"])
    result = experiment.run(config)
    assert result["metrics"]["test/test/loss"]["mean"] != result["baseline"]["test/test/loss"]["mean"]
    folder = experiment.run_folder(config) / "seed-1" / "artefact"
    assert (folder / "head.safetensors").is_file()


def test_text_head_needs_a_text_tower(recipe):
    with pytest.raises(UserError, match=r"no text tower: set task.head=linear"):
        experiment.run(load_config(recipe, ["backbone={name: 'timm:test_vit', weights: random}", "adapter=null"]))


def test_nothing_to_train_is_said(recipe):
    with pytest.raises(UserError, match="nothing trains"):
        experiment.run(load_config(recipe, ["adapter=null"]))


def test_recomputed_dropout_reaches_the_kernel_and_changes_no_number(recipe):
    results = []
    for recompute in ("true", "false"):
        overrides = ["adapter.dropout=0.3", "seeds=[1]", f"engine.recompute_dropout={recompute}"]
        config = load_config(recipe, [*overrides, f"name=recompute-{recompute}"])
        results.append(experiment.run(config)["seeds"]["1"])
    recomputed, kept = results
    assert recomputed["metrics"] == kept["metrics"]
    assert recomputed["cost"]["peak_memory"] < kept["cost"]["peak_memory"]
