"""What the stages are for, on planted edits: the invariants of the manipshield card that need a model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures.multimodal import fresh
from PIL import Image
from sklearn.metrics import roc_auc_score
from tasks.manipulation.conftest import write_pair
from tasks.manipulation.test_task import QUICK, lines_of, rates, same, started, trained

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.merge import merge
from vision_lowrank.config import load_config
from vision_lowrank.data.manipulation.base import Vocabulary
from vision_lowrank.data.manipulation.framing import Framing
from vision_lowrank.data.manipulation.schema import write_schema
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.metrics.calibration import Calibration
from vision_lowrank.studies.run import build_task, run
from vision_lowrank.tasks.manipulation.contrast import contrast_diagnostics, contrastive_loss, projector
from vision_lowrank.tasks.manipulation.frames import stacked
from vision_lowrank.tasks.manipulation.model import ManipulationModel

SIX = ["q", "k", "v", "o", "fc1", "fc2"]


def adapted():
    """A tiny InternVL with LoRA on the six linears of its vision tower."""
    backbone = fresh("tiny-internvl3_5")
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if "position" in name:
                parameter.normal_(std=0.02)
    backbone.take_identity()
    return attach(backbone, LoraConfig(r=4, alpha=8), towers=["vision"], modules=SIX)


def detector_on(model, layer=2):
    return ManipulationModel(model, {"kind": "query", "boxes": 3, "width": 32}, Framing("resize", 56), layer, ("blur",))


def photos(count):
    """Noise, as pictures of 56 pixels."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)) for _ in range(count)]


# 1, 2, 6, 10: adapter and states ----------------------------------------------------------------------------------


def test_the_adapter_of_the_tiny_tower_has_3584_parameters_none_of_them_in_the_llm():
    model = adapted()
    trains = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(trains.values()) == 3584
    assert not any("language_model" in name for name in trains)


@torch.no_grad()
def test_at_its_start_the_adapter_changes_nothing_and_merged_it_is_the_same():
    torch.manual_seed(1)
    model = adapted()
    detector = detector_on(model).eval()
    batch = stacked([detector.frames.sample(photo) for photo in photos(2)])
    start = detector(batch)
    with model.disable_adapter():
        bare = detector(batch)
    torch.testing.assert_close(start._asdict(), bare._asdict(), rtol=1e-6, atol=1e-6)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.05)
    moved = detector(batch)
    assert (moved.logit - start.logit).abs().max() > 1e-3
    detector.backbone = merge(model)
    torch.testing.assert_close(detector(batch)._asdict(), moved._asdict(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["logit", "cues", "boxes", "objectness", "tokens"])
def test_the_gradient_of_any_head_reaches_the_whole_adapter_and_nothing_of_the_llm(head):
    model = adapted()
    model.requires_grad_(True)  # whatever a loss could reach
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    detector = detector_on(model)
    batch = stacked([detector.frames.sample(photo) for photo in photos(2)])
    getattr(detector(batch), head).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in model.named_parameters() if "lora_B" in name}


@torch.no_grad()
def test_the_detector_reads_the_hidden_states_of_the_full_model():
    model = adapted().eval()
    backbone, photo = model.get_base_model(), photos(1)[0]
    seen = []
    for layer in (0, 1, 3):
        detector = detector_on(model, layer).eval()
        detector.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        sample = stacked([detector.frames.sample(photo)])
        detector(sample)
    inputs = backbone.inputs(sample["tiles"][0], [1], backbone.prompts([1], ["is it edited?"]))
    full = backbone.model(**inputs, output_hidden_states=True).hidden_states
    places = inputs["input_ids"][0] == backbone.model.config.image_token_id
    for layer, states in zip((0, 1, 3), seen, strict=True):
        torch.testing.assert_close(states[0], full[layer][0, places], rtol=1e-4, atol=1e-5)


# 4: what the contrast does ----------------------------------------------------------------------------------------


def planted(count, generator, amount=0.2):
    """Smooth pictures and their edits, a checkerboard in a random rectangle: (count, 2, 3, 56, 56)."""
    low = torch.rand(count, 3, 5, 5, generator=generator) * 4 - 2
    real = F.interpolate(low, size=(56, 56), mode="bicubic", align_corners=True)
    edited, board = real.clone(), amount * (torch.tensor(np.indices((56, 56)).sum(axis=0) % 2) * 2 - 1)
    for picture in edited:
        width, height = torch.randint(16, 41, (2,), generator=generator).tolist()
        x, y = (int(torch.randint(57 - side, (1,), generator=generator)) for side in (width, height))
        picture[:, y : y + height, x : x + width] += board[y : y + height, x : x + width]
    return torch.stack([real, edited], dim=1)


def pairs(count):
    """Labels and twins of `count` pairs one after another."""
    return torch.tensor([0, 1] * count), torch.arange(2 * count).view(-1, 2).flip(1).flatten()


@torch.no_grad()
def held_out(model, pictures):
    features = model.image_tokens(pictures.flatten(0, 1)).mean(dim=1)
    return contrast_diagnostics(features, *pairs(len(pictures)))


@pytest.mark.parametrize("reading", ["label", "pair"])
def test_label_tells_edits_apart_and_pair_draws_them_together(reading):
    generator = torch.Generator().manual_seed(0)
    pictures = planted(256, generator)
    train, test = pictures[:128], pictures[128:]
    model, head = adapted(), projector(32)
    trains = [*(p for p in model.parameters() if p.requires_grad), *head.parameters()]
    optimizer, start = torch.optim.AdamW(trains, lr=2e-3), held_out(model, test)
    assert start["probe_auc"] < 0.93
    for _ in range(160):
        chosen = train[torch.randperm(128, generator=generator)[:32]]
        z = head(model.image_tokens(chosen.flatten(0, 1)).mean(dim=1))
        optimizer.zero_grad()
        contrastive_loss(z, *pairs(32), reading, tau=0.2).backward()
        optimizer.step()
    end = held_out(model, test)
    if reading == "label":
        assert end["probe_auc"] > 0.95
        assert end["twin_cosine"] < start["twin_cosine"] - 0.2
    else:
        assert end["twin_cosine"] > start["twin_cosine"]
        assert end["probe_auc"] < start["probe_auc"]


# 10: localisation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A data set of smooth pictures with checkerboards, with many of them."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for split, count in (("train", 80), ("val", 6), ("test", 30)):
        records = []
        for number in range(count):
            low = Image.fromarray(rng.integers(60, 190, (4, 4, 3), dtype=np.uint8))
            records += write_pair(folder, split, f"{split}-{number}", low.resize((48, 48)), rng, ["speckle"], (14, 26))
        write_schema(folder / f"{split}.jsonl", records, Vocabulary())
    return folder


def test_boxes_and_maps_of_pictures_never_seen_beat_constant_ones(detection, many):
    overrides = [
        *(f"data.path={many}", "backbone.weights=null", "adapter.r=8", "adapter.modules=[q,k,v,o,fc1,fc2]"),
        *("task.contrast=null", "task.layer=2", "task.augmentation=none", "task.dropout=0", "task.boxes=1"),
        *("task.adapter_lr_factor=0.5", "engine.steps=160", "engine.batch_size=8", "engine.checkpoint_every=0"),
    ]
    _, engine = trained(detection, *overrides)
    found = engine.evaluate("test")
    assert found["test/test/box_union_iou"] > found["test/test/constant_box/box_union_iou"] + 0.05
    assert found["test/test/box_union_iou"] > found["test/test/full_box/box_union_iou"] + 0.05
    assert found["test/test/pixel_auc"] > 0.9
    assert found["test/test/auc"] > 0.95


# Framing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["pad", "tile"])
def test_every_framing_goes_through_all_stages(detection, framing):
    overrides = [f"task.framing={framing}", "task.max_tiles=2", "engine.steps=2", "task.contrast.steps=2"]
    task, engine = trained(detection, *overrides)
    assert 0 <= engine.evaluate("test")["test/test/pixel_f1"] <= 1
    assert sum("loss" in line for line in lines_of(detection.parent / "run")) == 4
    assert task.model.framing.mode == framing


def test_states_are_looked_at_inside_the_picture_alone(detection):
    task, _ = started(detection, "task.framing=pad")
    task.eval()
    sample = task._pictures(task.splits.val)[0]
    assert not sample["inside"].all() or sample["size"][0] == sample["size"][1]
    batch = stacked([sample])
    with torch.no_grad():
        states, _ = task.model.backbone.image_states(batch["tiles"][0], [1], [1, 6])
        found = task._layer_means(batch)
    assert found.shape == (1, 6, 192)
    for layer, each in ((0, states[0]), (5, states[1])):
        torch.testing.assert_close(found[0, layer], each[0, sample["inside"]].mean(dim=0), rtol=1e-4, atol=1e-5)


# Other methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "adapter",
    [
        "{type: block_lora, r: 2, blocks: 2, towers: [vision]}",
        "{type: sora, r: 2, lambdas: [0.1, 0.2], towers: [vision]}",
        "{type: lofit, heads: 2, towers: [vision]}",
        "{type: lamda, r: 2, towers: [vision]}",
        "{type: visual_prompt, towers: [vision]}",
    ],
)
def test_any_adapter_takes_the_place_of_lora(detection, adapter):
    task, engine = trained(detection, f"adapter={adapter}", "engine.steps=4", "task.contrast.steps=2")
    engine.evaluate("test")
    task.save_artefact(detection.parent / "artefact", {})
    again = ManipulationModel.load(detection.parent / "artefact")
    test = task.splits.tests["test"]
    logits = [
        float(Calibration(again.calibration.temperature).probability(engine.outputs["test/test"]["logit"])[i])
        for i in range(len(test))
    ]
    found = [finding.probability for finding in again.predict([test.image(i) for i in range(len(test))])]
    assert found == pytest.approx(logits, abs=1e-4)


def test_phases_of_an_adapter_are_stages_and_what_the_contrast_trained_goes_on(detection):
    seen = {}

    class Watch(Hook):
        def on_stage_start(self, engine):
            seen[engine.stage.name] = {name: p.detach().clone() for name, p in engine.task.parts.tower.items()}

        def on_stage_end(self, engine):
            seen[f"{engine.stage.name}-end"] = {name: p.detach().clone() for name, p in engine.task.parts.tower.items()}

    config = load_config(detection, ["adapter={type: lofit, heads: 2, select_lr: 0.07, towers: [vision]}"])
    task = build_task(config, 1)
    engine = Engine(config.engine, task, detection.parent / "run", seed=1, hooks=[Watch()])
    engine.fit()
    assert [stage.name for stage in task.stages()] == ["contrast", "layers", "decoders-select", "decoders-offsets"]
    same(seen["decoders-select"], seen["contrast-end"])
    assert seen["decoders-offsets"].keys() != seen["decoders-select"].keys()
    assert sum(p.shape[0] for p in task.parts.tower.values()) == 2
    own = dict(task.model.backbone.get_base_model().named_parameters())
    assert all(own[name] is p for name, p in task.parts.tower.items())


def test_the_rate_of_a_phase_is_that_of_the_adapter(detection):
    task, _ = started(detection, "adapter={type: lofit, heads: 2, select_lr: 0.07, towers: [vision]}")
    _, _, select, _offsets = task.stages()
    assert "lr" not in select.engine
    task.begin_stage(select)
    assert rates(task) == {"adapter": 0.07, "decoder": None}


def test_a_killed_run_with_phases_goes_on_bit_for_bit(detection):
    class Kill(Hook):
        def after_step(self, engine):
            if (engine.stage.name, engine.step) == ("decoders-offsets", 1):
                raise KeyboardInterrupt

    overrides = ["adapter={type: lofit, heads: 2, towers: [vision]}", "engine.steps=3", "task.contrast.steps=2"]
    whole, _ = trained(detection, *overrides, folder="whole")
    config = load_config(detection, overrides)
    with pytest.raises(KeyboardInterrupt):
        Engine(config.engine, build_task(config, 1), detection.parent / "cut", seed=1, hooks=[Kill()]).fit()
    task = build_task(config, 1)
    Engine(config.engine, task, detection.parent / "cut", seed=1, hooks=[Hook()]).fit()
    same(task.trained_state(), whole.trained_state())


@pytest.mark.parametrize("initializer", ["{type: pissa}", "{type: lora_ga, samples: 4, batch_size: 2}"])
def test_initialisers_start_the_adapter(detection, initializer):
    task, engine = started(detection, f"initializer={initializer}", *QUICK)
    starts = [p.detach().clone() for name, p in task.parts.tower.items() if name.endswith(".B")]
    assert len(starts) == 18
    assert all(p.any() for p in starts)
    engine.fit()


def test_full_fine_tuning_moves_the_tower_and_is_loaded_back(detection):
    overrides = ["adapter=null", "task.trains_base=true", "engine.steps=3", "task.contrast.steps=2"]
    result = run(load_config(detection, [*overrides, "name=full"]))
    folder = detection.parent / "runs" / "full" / "seed-1" / "artefact"
    assert (folder / "base.safetensors").is_file()
    assert not (folder / "adapter").exists()
    detector = ManipulationModel.load(folder)
    task, _ = started(detection, *overrides)
    assert detector.trained_base == set(task.parts.tower)
    assert all("visual" in name for name in detector.trained_base)
    test = task.splits.tests["test"]
    scores = [each.probability for each in detector.predict([test.image(i) for i in range(len(test))])]
    assert roc_auc_score(test.labels, scores) == pytest.approx(result["metrics"]["test/test/auc"]["mean"])


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_smaller_decoders_go_through_all_stages(detection, decoder):
    task, engine = trained(detection, f"task.decoder={decoder}", "engine.steps=2", "task.contrast.steps=2")
    metrics = engine.evaluate("test")
    assert ("test/test/cue_map" in metrics) == (decoder == "mlp")
    assert 0 <= metrics["test/test/auc"] <= 1
    assert 0 <= engine.evaluate_untrained()["test/test/pixel_f1"] <= 1
    task.save_artefact(detection.parent / "artefact", {})
    detector = ManipulationModel.load(detection.parent / "artefact")
    assert len(detector.cues) == (12 if decoder == "mlp" else 0)
    image = task.splits.val.image(0)
    assert detector.predict([image])[0].heatmap.shape == image.size[::-1]


def test_a_frozen_tower_trains_the_decoders_alone(detection):
    task, _engine = trained(detection, *QUICK, "adapter=null")
    assert not task.parts.tower
    task.save_artefact(detection.parent / "artefact", {})
    assert not (detection.parent / "artefact" / "adapter").exists()
    assert ManipulationModel.load(detection.parent / "artefact").identity == task.model.identity
