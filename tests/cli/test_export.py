"""``vision-lowrank export`` in every format, on a saved classifier."""

import json

import onnxruntime
import pytest
import torch
from fixtures.models import moved
from safetensors.torch import load_file

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.attachment.attach import attach
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.cli.main import main
from vision_lowrank.tasks.classification.classifier import ImageClassifier

CLASSES, TEMPLATES = ["a", "b"], ["a {}."]
CONFIGS = {"exact": BlockLoraConfig(r=4, blocks=2), "cut": peft_method("LOHA", r=4), "none": None}


TRAINED = ("model.visual.transformer.resblocks.0.attn.in_proj_weight", "model.visual.proj", "model.text_projection")


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory, tiny_weights):
    """Saved classifiers: with an exact adapter, with one that has no factors, and with none."""
    folder = tmp_path_factory.mktemp("artefacts")
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = load_backbone("tiny-clip", str(tiny_weights))
        model = attach(model, config, modules=("q", "v"), layers=[0, 1]) if config is not None else model
        moved(ImageClassifier(model, "text", CLASSES, TEMPLATES), amount=0.05).save(folder / name, {})
    save_with_trained_base(folder, str(tiny_weights))
    return folder


def save_with_trained_base(folder, weights):
    """Two more: some weights of the base were trained, and later an adapter was trained on top."""
    classifier = ImageClassifier(load_backbone("tiny-clip", weights).requires_grad_(False), "text", CLASSES, TEMPLATES)
    for name in TRAINED:
        classifier.backbone.get_parameter(name).requires_grad_(True)
    classifier.note_training()
    moved(classifier, amount=0.05).save(folder / "base", {})
    classifier = ImageClassifier.load(folder / "base")
    classifier.backbone = attach(classifier.backbone, BlockLoraConfig(r=4, blocks=2), modules=("q", "v"), layers=[0, 1])
    moved(classifier, seed=5, amount=0.05).save(folder / "both", {})


def export(capsys, *arguments):
    """Exit code, standard output and error lines of the command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["export", *map(str, arguments)])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, [line for line in captured.err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("format", ["lora", "diffusers", "kohya"])
def test_lora_files_are_written_with_a_table_of_the_layers(artefacts, tmp_path, capsys, format):
    code, out, _ = export(capsys, artefacts / "exact", tmp_path / "out", "--format", format)
    assert code == 0
    assert out.count(" exact ") == 8  # layers 0 and 1 of both towers, q and v
    assert "q_proj" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert ("adapter_config.json" if format == "lora" else "pytorch_lora_weights.safetensors") in names


def test_errors_are_shown_worst_first_and_refused_above_the_tolerance(artefacts, tmp_path, capsys):
    code, out, _ = export(capsys, artefacts / "cut", tmp_path / "out", "--rank", 3)
    assert code == 0
    errors = [float(line.split("│")[3]) for line in out.splitlines() if "_proj" in line]
    assert len(errors) == 8
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0.05
    code, _, lines = export(capsys, artefacts / "cut", tmp_path / "no", "--rank", 3, "--tolerance", 0.05)
    assert code == 2
    assert "rank 3 loses more than the tolerance 0.05 in 8 of 8 layers" in lines[0]
    assert not (tmp_path / "no").exists()


def test_onnx_is_written_and_runs(artefacts, tmp_path, capsys):
    code, out, _ = export(capsys, artefacts / "exact", tmp_path / "mine.onnx", "--format", "onnx")
    assert code == 0
    assert "onnxruntime" in out
    session = onnxruntime.InferenceSession(tmp_path / "mine.onnx")
    assert session.run(None, {"pixels": torch.zeros(5, 3, 48, 48).numpy()})[0].shape == (5, 2)


def test_merged_weights_are_a_plain_state_dict(artefacts, tmp_path, tiny_weights, capsys):
    code, _, _ = export(capsys, artefacts / "cut", tmp_path / "mine.safetensors", "--format", "merged")
    assert code == 0
    assert load_file(tmp_path / "mine.safetensors").keys() == load_file(tiny_weights).keys()


@torch.no_grad()
@pytest.mark.parametrize("artefact", ["base", "both"])
def test_merged_weights_hold_a_trained_base(artefacts, tmp_path, tiny_weights, capsys, artefact):
    classifier, x = ImageClassifier.load(artefacts / artefact), torch.randn(2, 3, 48, 48)
    expected = classifier(x)
    assert classifier.trained_base == set(TRAINED)
    code, out, _ = export(capsys, artefacts / artefact, tmp_path / "mine.safetensors", "--format", "merged")
    assert code == 0
    assert ("its own weights as trained" if artefact == "base" else "the adapter merged in") in " ".join(out.split())
    again = load_backbone("tiny-clip", str(tmp_path / "mine.safetensors")).eval()
    logits = ImageClassifier(again, "text", CLASSES, TEMPLATES)(x)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    plain = ImageClassifier(load_backbone("tiny-clip", str(tiny_weights)).eval(), "text", CLASSES, TEMPLATES)
    assert not torch.allclose(plain(x), expected, atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("artefact", ["base", "both"])
def test_onnx_computes_with_a_trained_base(artefacts, tmp_path, capsys, artefact):
    code, _, _ = export(capsys, artefacts / artefact, tmp_path / "mine.onnx", "--format", "onnx")
    assert code == 0
    x = torch.randn(2, 3, 48, 48)
    (logits,) = onnxruntime.InferenceSession(tmp_path / "mine.onnx").run(None, {"pixels": x.numpy()})
    expected = ImageClassifier.load(artefacts / artefact)(x)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("artefact", "options", "words"),
    [
        ("none", ["--format", "merged"], "has nothing to export but its head"),
        ("base", [], "which a LoRA file cannot hold: use --format merged"),
        ("both", ["--format", "diffusers"], "which a LoRA file cannot hold: use --format merged"),
        ("both", ["--format", "kohya"], "which a LoRA file cannot hold: use --format merged"),
        ("exact", ["--format", "onxx"], "Did you mean 'onnx'?"),
        ("exact", ["--format", "onnx", "--rank", "3"], "are for LoRA files"),
        ("exact", ["--fuse-qkv"], "leave fuse_qkv out"),
    ],
)
def test_mistakes_are_one_line(artefacts, tmp_path, capsys, artefact, options, words):
    code, _, lines = export(capsys, artefacts / artefact, tmp_path / "x", *options)
    assert code == 2
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "x").exists()


def test_the_plain_lora_says_that_attention_is_split(artefacts, tmp_path, capsys):
    export(capsys, artefacts / "exact", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert "split_attention" in (tmp_path / "out" / "README.md").read_text()
