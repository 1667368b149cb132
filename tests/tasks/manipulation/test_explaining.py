"""Stage D on a tiny multimodal LLM: a second adapter that changes what is said, and nothing of what is found."""

import json

import pytest
import torch
from tasks.manipulation.test_task import lines_of, same, started, trained

from vision_lowrank.config import load_config
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.modes import preserved
from vision_lowrank.studies.run import build_task, run
from vision_lowrank.tasks.manipulation.answers import stated_verdict
from vision_lowrank.tasks.manipulation.explainer import EXPLAIN, deactivate_explainer, explained, explainer_active
from vision_lowrank.tasks.manipulation.frames import stacked
from vision_lowrank.tasks.manipulation.model import ManipulationModel

LORA = ["adapter={type: lora, r: 2, towers: [vision], modules: [q, v]}"]


@torch.no_grad()
def outputs(detector, pictures):
    """The states that the heads read of four pictures, and what they give, by name."""
    batch = stacked([detector.frames.sample(pictures.image(index)) for index in range(4)])
    with preserved(detector):
        detector.requires_grad_(False)  # torch takes other kernels for weights that train
        (states,), _ = detector.backbone.image_states(batch["tiles"][:, 0], [1] * 4, [detector.layer])
        return {"states": states} | detector(batch)._asdict()


def of_heads(metrics):
    """The metrics that no text enters."""
    return {name: value for name, value in metrics.items() if "/explanation/" not in name}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory, edited, mllm_weights, tiny_weights):
    """A run of all four stages: (config, its last task, result, folder of its seed)."""
    from tasks.manipulation.conftest import write_recipe

    path = write_recipe(tmp_path_factory.mktemp("spoken"), edited, tiny_weights)
    overrides = [
        f"backbone={{name: 'hf:tiny-internvl3_5', weights: {mllm_weights}}}",
        "task.explanation={steps: 3, lr: 0.05, adapter: {type: lora, r: 2, modules: [q, v]}}",
        *("task.contrast.steps=2", "engine.steps=3", "name=spoken", *LORA),
    ]
    config = load_config(path, overrides)
    return config, run(config), path.parent / "runs" / "spoken" / "seed-1"


def test_all_four_stages_run(spoken):
    _, result, folder = spoken
    stages = list(dict.fromkeys(line["stage"] for line in lines_of(folder) if "loss" in line))
    assert stages == ["contrast", "decoders", "explanation"]
    facts = result["seeds"]["1"]["facts"]["manipulation"]
    assert facts["layers"]["of"] == len(facts["layers"]["table"]) == 4
    loss = [line["loss"] for line in lines_of(folder) if line["stage"] == "explanation" and "loss" in line]
    assert loss[-1] < loss[0]
    assert {path.name for path in (folder / "artefact").iterdir()} >= {"adapter", "explanation", "decoder.safetensors"}


def test_what_is_found_does_not_change_while_the_explanation_is_learnt(detection, explaining):
    seen, moved = {}, {}

    class Watch(Hook):
        def on_stage_end(self, engine):
            task, stage = engine.task, engine.stage.name
            deactivate_explainer(task.model.backbone)
            task.model.eval()
            if stage in ("decoders", "explanation"):
                seen[stage] = outputs(task.model, task.splits.val)
            state = {name: p.detach().clone() for name, p in task.model.named_parameters()}
            moved[stage] = (
                {n for n, p in state.items() if not torch.equal(p, seen["state"][n])} if "state" in seen else None
            )
            seen["state"] = state

    config = load_config(detection, [*explaining, *LORA])
    task = build_task(config, 1)
    engine = Engine(config.engine, task, detection.parent / "run", seed=1, hooks=[Watch()])
    engine.fit()
    same(seen["explanation"], seen["decoders"])
    assert moved["explanation"]
    assert all(f".{EXPLAIN}." in name and "language_model" in name for name in moved["explanation"])
    assert not any(f".{EXPLAIN}." in name for name in moved["decoders"])
    assert task.model.explains
    before = engine.evaluate("test")  # after stage D, which leaves the model speaking
    plain, plain_engine = trained(detection, *explaining, *LORA, "task.explanation=null", folder="plain")
    assert of_heads(plain_engine.evaluate("test")) == of_heads(before)
    assert not plain.model.explains


def test_at_rest_states_are_those_without_the_adapter_and_flags_stay(detection, explaining):
    task, _ = started(detection, *explaining, *LORA)
    model = task.model.backbone
    task.begin_stage(task.stages()[2])
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    tiles = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        resting = model.image_states(tiles, [1, 1], [4])[0][0]
        with explainer_active(model):
            speaks = model.image_states(tiles, [1, 1], [4])[0][0]
        assert torch.equal(model.image_states(tiles, [1, 1], [4])[0][0], resting)
        assert not torch.equal(speaks, resting)
        for name, parameter in model.named_parameters():
            if f".{EXPLAIN}." in name:
                parameter.zero_()
        with explainer_active(model):
            torch.testing.assert_close(model.image_states(tiles, [1, 1], [4])[0][0], resting)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_recomputed_layers_learn_the_same(detection, explaining):
    plain, _ = trained(detection, *explaining, *LORA, folder="plain")
    sparing, _ = trained(
        detection, *explaining, *LORA, "backbone.options.gradient_checkpointing=true", folder="sparing"
    )
    for name, parameter in plain.parts.language.items():
        torch.testing.assert_close(sparing.parts.language[name], parameter, rtol=1e-3, atol=1e-4)


def test_a_saved_detector_finds_and_says_the_same(spoken):
    config, _result, folder = spoken
    detector = ManipulationModel.load(folder / "artefact")
    assert detector.explains
    assert set(detector.backbone.peft_config) == {"default", EXPLAIN}
    task = build_task(config, 1)
    Engine(config.engine, task, folder, seed=1).fit()  # replayed
    task.model.eval()
    deactivate_explainer(task.model.backbone)
    torch.testing.assert_close(outputs(detector, task.splits.val), outputs(task.model, task.splits.val))
    images = [task.splits.tests["test"].image(index) for index in range(2)]
    findings, silent = detector.predict(images, explain=True), detector.predict(images)
    for finding, plain in zip(findings, silent, strict=True):
        assert (finding.probability, finding.boxes) == (plain.probability, plain.boxes)
        assert finding.explained_by in ("model", "template")
        assert finding.explanation
        assert stated_verdict(finding.explanation) in (None, finding.verdict)
        assert plain.explained_by == "template"
    assert detector.identity == task.model.identity


@pytest.mark.parametrize(("text", "by"), [("honest", "model"), ("contrary", "template")])
def test_a_text_that_contradicts_the_heads_is_left_out(spoken, edited, monkeypatch, text, by):
    detector = ManipulationModel.load(spoken[2] / "artefact")
    detector.calibration = detector.calibration.fixed(1.0)  # all are called real
    said = {"honest": "No manipulation was found in this image.", "contrary": "This image was manipulated."}[text]
    asked = []

    def generate(tiles, counts, prompts):
        asked.extend(prompts)
        assert set(detector.backbone.active_adapters) == {"default", EXPLAIN}
        return [said] * len(prompts)

    monkeypatch.setattr(detector.backbone.get_base_model(), "generate", generate)
    from vision_lowrank.data.manipulation.schema import read_schema

    (finding,) = detector.predict([read_schema(edited / "test.jsonl").image(1)], explain=True)
    assert finding.explained_by == by
    assert stated_verdict(finding.explanation) == "real"
    assert "Verdict: real" in asked[0]
    assert detector.backbone.active_adapters == ["default"]


@pytest.mark.parametrize(
    "overrides", [["adapter=null", "task.contrast=null"], ["adapter=null", "task.trains_base=true"]]
)
def test_the_language_model_may_be_all_that_has_an_adapter(detection, explaining, overrides):
    task, engine = trained(detection, *explaining, *overrides)
    metrics = engine.evaluate("test")
    plain, plain_engine = trained(detection, *explaining, *overrides, "task.explanation=null", folder="plain")
    assert of_heads(plain_engine.evaluate("test")) == of_heads(metrics)
    task.save_artefact(detection.parent / "artefact", {})
    detector = ManipulationModel.load(detection.parent / "artefact")
    assert set(detector.backbone.peft_config) == {EXPLAIN}
    assert detector.explains
    torch.testing.assert_close(outputs(detector, task.splits.val), outputs(plain.model.eval(), task.splits.val))
    detector.predict([task.splits.val.image(0)], explain=True)


def test_a_tower_trained_whole_is_refused_where_explaining_divides_its_attention(detection, explaining):
    overrides = [*explaining, "adapter=null", "task.contrast=null", "task.trains_base=true"]
    backbone = "backbone={name: hf:tiny-qwen2.5-vl, weights: random}"
    with pytest.raises(UserError, match=r"divides the attention of 'hf:tiny-qwen2\.5-vl'"):
        build_task(load_config(detection, [*overrides, backbone]), 1)


def test_a_killed_explanation_goes_on_bit_for_bit(spoken, detection, explaining):
    class Kill(Hook):
        def after_step(self, engine):
            if (engine.stage.name, engine.step) == ("explanation", 2):
                raise KeyboardInterrupt

    config = load_config(detection, [*explaining, *LORA])
    with pytest.raises(KeyboardInterrupt):
        Engine(config.engine, build_task(config, 1), detection.parent / "cut", seed=1, hooks=[Kill()]).fit()
    task = build_task(config, 1)
    Engine(config.engine, task, detection.parent / "cut", seed=1, hooks=[Hook()]).fit()
    whole = build_task(spoken[0], 1)
    Engine(spoken[0].engine, whole, spoken[2], seed=1).fit()  # replayed
    same(task.trained_state(), whole.trained_state())


def test_explained_pictures_and_as_many_real_ones_are_learnt_from(detection, explaining):
    task, _ = started(detection, *explaining, *LORA)
    pictures = explained(task.splits.train)
    assert (pictures.labels == 0).sum() == 6
    assert (pictures.labels == 1).sum() == 12
    few = explained(task.splits.train.subset([0, 1, 3, 6]))
    assert [record.label for record in few.records] == [0, 1]
    with pytest.raises(UserError, match="none of the 2 training pictures has an explanation"):
        explained(task.splits.train.subset([0, 3]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.explanation.adapter={type: lofit, head_dim: 16, modules: [o]}", "trains in several phases"),
        ("task.explanation.adapter={modules: 3}", r"explanation.adapter.modules: .*tuple"),
        ("task.explanation.adapter={type: lora, rank: 3}", "rank"),
        ("task.explanation.adapter={type: lora, modules: [nothing]}", "nothing"),
    ],
)
def test_bad_explanations_are_one_line(detection, explaining, override, message):
    with pytest.raises((UserError, ConfigError), match=message) as caught:
        build_task(load_config(detection, [*explaining, "adapter=null", "task.contrast=null", override]), 1)
    assert "\n" not in str(caught.value)


def test_the_record_of_a_run_names_the_second_adapter(spoken):
    about = json.loads((spoken[2] / "artefact" / "artefact.json").read_text())
    assert about["record"]["config"]["task"]["explanation"]["adapter"]["type"] == "lora"


def test_explanations_are_scored_against_the_annotators(spoken):
    config, result, _ = spoken
    metrics = {
        name.rpartition("/")[2]: value["mean"] for name, value in result["metrics"].items() if "explanation/" in name
    }
    test = build_task(config, 1).splits.tests["test"]
    written = [record for record in test.records if record.label and record.explanation]
    assert metrics["text_pictures"] == len(written)
    assert metrics["verdict_agreement"] == 1  # a text of another verdict gives way to the template
    assert 0 <= metrics["rouge_l"] <= 1
    assert not any("explanation/" in name for name in result["baseline"])


def test_templates_are_scored_where_nothing_explains_and_none_on_demand(detection):
    task, engine = trained(detection, "task.contrast=null", "task.layer=last", "engine.steps=2")
    found = engine.evaluate("test")
    assert found["test/test/explanation/verdict_agreement"] == 1
    task.options = task.options.model_copy(update={"explained_pictures": 0})
    assert not any("explanation/" in name for name in engine.evaluate("test"))
