"""The ONNX graph, run by onnxruntime."""

import json
import sys

import onnx
import onnxruntime
import pytest
import torch
from fixtures.models import moved
from torch import nn

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.peft_method import peft_method
from vision_lowrank.attachment.attach import attach
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError
from vision_lowrank.export import onnx as own
from vision_lowrank.export.onnx import export_onnx
from vision_lowrank.tasks.classification.classifier import ImageClassifier

CLASSES = ["cat", "dog", "tea pot"]


def classifier(name="timm:test_vit", head="linear", config=None):
    torch.manual_seed(0)
    backbone = load_backbone(name, "random")
    model = attach(backbone, config) if config is not None else backbone.requires_grad_(False)
    return moved(ImageClassifier(model, head, CLASSES, ["a {}.", "the {}."]), amount=0.05)


def run(path, pixels):
    return torch.from_numpy(onnxruntime.InferenceSession(path).run(["logits"], {"pixels": pixels.numpy()})[0])


def pixels(model, count):
    return torch.randn(count, 3, model.backbone.preprocess.size, model.backbone.preprocess.size)


@pytest.fixture(scope="module")
def text_export(tmp_path_factory):
    """A CLIP with an adapter on both towers and a text head, and its file."""
    model = classifier("tiny-clip", "text", BlockLoraConfig(r=4, blocks=2))
    return model, export_onnx(model, tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_onnxruntime_gives_the_logits_of_the_adapted_classifier_for_any_batch(text_export, count):
    model, report = text_export
    x = pixels(model, count)
    with torch.no_grad():
        expected = model(x)
        with model.backbone.disable_adapter():
            assert not torch.allclose(model(x), expected, atol=1e-1)
    torch.testing.assert_close(run(report.path, x), expected, rtol=1e-4, atol=1e-3)


def test_the_report_states_opset_and_difference(text_export):
    _, report = text_export
    assert report.path.name == "classifier.onnx"
    assert 0 <= report.difference < 1e-3
    assert "opset 18" in str(report)
    assert onnx.load(report.path).opset_import[0].version == 18


def test_the_file_is_whole_has_no_text_tower_and_says_how_to_use_it(text_export):
    model, report = text_export
    graph = onnx.load(report.path)
    onnx.checker.check_model(graph)
    assert [path.name for path in report.path.parent.iterdir()] == ["classifier.onnx"]
    assert not any("token_embedding" in tensor.name for tensor in graph.graph.initializer)
    about = {prop.key: json.loads(prop.value) for prop in graph.metadata_props}
    preprocess = model.backbone.preprocess
    assert (about["classes"], about["size"], about["mean"]) == (CLASSES, preprocess.size, list(preprocess.mean))


def test_exporting_leaves_the_classifier_as_it_was(text_export):
    model, _ = text_export
    assert model.backbone.active_adapters == ["default"]
    assert model.head.features is None
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_trained_head_without_adapter_is_exported_too(head, tmp_path):
    model = classifier(head=head)
    report = export_onnx(model, tmp_path / "mine.onnx")
    assert report.path == tmp_path / "mine.onnx"
    x = pixels(model, 2)
    with torch.no_grad():
        torch.testing.assert_close(run(report.path, x), model(x), rtol=1e-4, atol=1e-4)


def test_a_graph_that_computes_something_else_is_refused_and_not_left_behind(tmp_path, monkeypatch):
    """The weights change after the graph is traced, as if the exporter had got them wrong."""

    def trace_and_change(plain, *where):
        trace(plain, *where)
        plain.head.linear.weight.data.mul_(1.5)

    trace = own._trace
    monkeypatch.setattr(own, "_trace", trace_and_change)
    with pytest.raises(UserError, match="onnxruntime's logits differ"):
        export_onnx(classifier(), tmp_path / "mine.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_merged_cannot_be_exported(tmp_path):
    torch.manual_seed(0)
    model = attach(load_backbone("timm:test_vit", "random"), peft_method("LILY", r=2), check=False)
    with pytest.raises(UserError, match="LILY cannot be merged"):
        export_onnx(ImageClassifier(model, "linear", CLASSES, []), tmp_path / "x.onnx")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'vision-lowrank\[onnx\]'"):
        export_onnx(nn.Linear(2, 2), tmp_path)
