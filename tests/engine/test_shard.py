"""Divided blocks: two processes give the one-process result, with whole checkpoints and artefacts."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.processes import run_in_two
from safetensors.torch import load_file

from vision_lowrank import LamdaConfig, attach, load_backbone
from vision_lowrank.backbones.adapted import backbone_of
from vision_lowrank.config import load_config
from vision_lowrank.engine.settings import check_sharding
from vision_lowrank.engine.shard import shard_blocks
from vision_lowrank.engine.task import Stage
from vision_lowrank.errors import UserError
from vision_lowrank.studies.run import run

SCRIPT = Path(__file__).parent.parent / "fixtures" / "run_and_resume.py"
# SGD: AdamW would blow up rounding to whole steps where a gradient is near zero.
STEPS = ["engine.optimizer=sgd", "engine.momentum=0.9", "engine.lr=1", "engine.clip_norm=0.05"]
OPTIONS = ["seeds=[1]", *STEPS, "engine.eval_every=2", "task.select=true"]


def losses(folder):
    lines = map(json.loads, (folder / "seed-1" / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line and "split" not in line]


def test_two_processes_with_divided_blocks_give_the_result_of_one_also_when_resumed(recipe, tmp_path, capsys):
    run(load_config(recipe, ["name=one", "engine.sharding=fsdp2", *OPTIONS]))
    assert "divides nothing in a single process" in " ".join(capsys.readouterr().err.split())
    run_in_two(SCRIPT, recipe, "name=two", "engine.sharding=fsdp2", *OPTIONS)
    runs = tmp_path / "runs"
    for other in ("two", "two-resumed"):
        torch.testing.assert_close(losses(runs / other), losses(runs / "one"), rtol=1e-5, atol=1e-6)
        for file in ("artefact/adapter/adapter_model.safetensors", "checkpoints/stage-000/trained.safetensors"):
            one, two = (load_file(runs / name / "seed-1" / file) for name in ("one", other))
            assert one.keys() == two.keys()
            for name, tensor in one.items():
                torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    state = torch.load(runs / "two/seed-1/checkpoints/step-000002/loop.pt", weights_only=True)
    moments = [entry["momentum_buffer"] for entry in state["steps"]["optimizer"]["state"].values()]
    assert moments
    assert all(type(moment) is torch.Tensor for moment in moments)


def test_what_cannot_be_divided_is_refused(recipe):
    config = load_config(recipe, ["engine.sharding=fsdp2", "engine.compile=true"]).engine
    with pytest.raises(UserError, match=r"engine\.compile=false"):
        check_sharding(Stage("fit", None), config, None)
    shared = load_backbone("tiny-clip")
    first, second = (shared.get_submodule(path) for path in shared.towers["vision"].blocks[:2])
    second.mlp.c_fc.weight = first.mlp.c_fc.weight
    with pytest.raises(UserError, match="share a weight"):
        shard_blocks(shared, torch.device("cpu"), 2)
    freezing = attach(load_backbone("tiny-clip"), LamdaConfig(r=2))
    with pytest.raises(UserError, match="Lamda freezes parameters"):
        shard_blocks(backbone_of(freezing), torch.device("cpu"), 2)
    with pytest.raises(UserError, match=r"hook keep_adapters: engine\.sharding"):
        load_config(recipe, ["engine.sharding=fsdp2", "hooks=[{type: keep_adapters}]"])
