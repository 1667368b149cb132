import pytest
import torch
from fixtures.models import moved

import vision_lowrank as vl
from vision_lowrank.adapters.tuner import tuner_layers
from vision_lowrank.analysis.mitigation import reduce_intruders
from vision_lowrank.tasks.classification import heads
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.classification.heads import make_head

CLASSES = ("red_heart", "cat face", "sun")


@pytest.fixture(scope="module")
def backbone():
    return vl.load_backbone("tiny-clip", "random").eval()


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("templates", [("a photo of a {}.",), ("a {}.", "the {}", "{}")])
def test_text_head_is_scaled_cosine_to_the_mean_prompt(backbone, templates):
    head = make_head("text", backbone, CLASSES, templates)
    features = torch.randn(5, backbone.embed_dim)
    rows = []
    for name in ("red heart", "cat face", "sun"):
        prompts = [unit(backbone.encode_text(backbone.tokenizer([t.replace("{}", name)])))[0] for t in templates]
        rows.append(unit(torch.stack(prompts).mean(0)))
    expected = backbone.model.logit_scale.exp() * unit(features) @ torch.stack(rows).T
    assert torch.allclose(head(backbone, features), expected, atol=1e-4)


def test_text_head_kept_features_equal_fresh_ones_and_are_not_computed_again():
    model = vl.load_backbone("tiny-clip", "random").eval().requires_grad_(False)
    head = make_head("text", model, CLASSES, ("{}",))
    features = torch.randn(2, model.embed_dim)
    fresh = head(model, features)
    head.refresh(model)
    model.encode_text = None  # not called again
    assert torch.equal(head(model, features), fresh)
    with torch.no_grad():
        model.model.visual.proj.mul_(2)  # the other tower's
    assert torch.equal(head(model, features), fresh)


def adapted(towers=("vision", "text")):
    model = vl.attach(vl.load_backbone("tiny-clip", "random"), vl.BlockLoraConfig(r=2, blocks=2), towers=towers)
    return moved(model)


def write(model):
    projection = model.get_base_model().model.text_projection
    projection.mul_(torch.randn_like(projection))


def train_adapter(model):
    for name, parameter in model.named_parameters():
        if "weight_update" in name and "visual" not in name:
            parameter.add_(torch.randn_like(parameter))


def disable(model):
    model.base_model.disable_adapter_layers()


def merge(model):
    model.merge_adapter()
    for _, layer in tuner_layers(model):
        layer.base_layer.weight.data.mul_(1.5)  # torch does not count this


def reduce(model):
    reduce_intruders(model, keep=0.0)


@torch.no_grad()
@pytest.mark.parametrize("change", [write, train_adapter, disable, merge, reduce])
def test_kept_features_are_left_aside_once_the_text_tower_or_its_adapters_change(change):
    model = adapted()
    head = make_head("text", model, CLASSES, ("{}",))
    features = torch.randn(2, model.embed_dim)
    head.refresh(model)
    before = head(model, features)
    change(model)
    fresh = make_head("text", model, CLASSES, ("{}",))(model, features)
    assert not torch.allclose(before, fresh, atol=1e-3)
    assert torch.equal(head(model, features), fresh)


@torch.no_grad()
def test_kept_features_hold_again_when_the_adapter_is_back():
    model = adapted()
    head = make_head("text", model, CLASSES, ("{}",))
    head.refresh(model)
    with model.disable_adapter():
        assert head._kept() is None
    assert head._kept() is head.features


def test_text_tower_that_trains_gets_a_gradient_though_prompts_were_kept():
    model = adapted(("text",))
    head = make_head("text", model, CLASSES, ("{}",))
    head.refresh(model)
    head(model, torch.randn(2, model.embed_dim)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert head._kept() is head.features


@torch.no_grad()
def test_classifier_that_was_loaded_answers_for_the_adapter_at_hand(tiny_weights, tmp_path):
    pixels = torch.randn(2, 3, 48, 48)
    plain = vl.load_backbone("tiny-clip", str(tiny_weights))
    model = moved(vl.attach(plain, vl.BlockLoraConfig(r=2, blocks=2), towers=("text",)))
    ImageClassifier(model, "text", CLASSES, ("{}",)).save(tmp_path, {})
    classifier = ImageClassifier.load(tmp_path, attach=True)
    with classifier.backbone.disable_adapter():
        expected = ImageClassifier(vl.load_backbone("tiny-clip", str(tiny_weights)).eval(), "text", CLASSES, ("{}",))
        torch.testing.assert_close(classifier(pixels), expected(pixels), rtol=1e-4, atol=1e-4)


def test_gradient_reaches_the_text_tower_through_the_prompts(backbone):
    head = make_head("text", backbone, CLASSES, ("{}",))
    head(backbone, torch.randn(2, backbone.embed_dim)).sum().backward()
    assert backbone.model.text_projection.grad.abs().sum() > 0
    backbone.zero_grad()


def test_linear_head_starts_uniform_and_ignores_the_scale_of_features(backbone):
    head = make_head("linear", backbone, CLASSES, ())
    features = torch.randn(4, backbone.embed_dim)
    assert torch.equal(head(backbone, features), torch.zeros(4, 3))
    torch.nn.init.normal_(head.linear.weight)
    assert torch.allclose(head(backbone, features), head(backbone, 7 * features), atol=1e-4)
    expected = unit(features) * backbone.embed_dim**0.5 @ head.linear.weight.T + head.linear.bias
    assert torch.allclose(head(backbone, features), expected, atol=1e-5)


def test_cosine_head_is_cosine_to_prototypes(backbone):
    head = make_head("cosine", backbone, CLASSES, ())
    features = torch.randn(4, backbone.embed_dim)
    expected = 20 * torch.nn.functional.cosine_similarity(features[:, None], head.prototypes[None], dim=-1)
    assert torch.allclose(head(backbone, features), expected, atol=1e-5)


def test_fresh_adapter_leaves_the_logits_bit_for_bit(backbone):
    pixels = torch.randn(2, 3, 48, 48)
    model = vl.load_backbone("tiny-clip", "random").eval()
    vl.split_attention(model)
    before = ImageClassifier(model, "text", CLASSES, ("{}",))(pixels)
    attached = vl.attach(model, vl.LoraConfig(r=2, dropout=0.25))
    for train in (False, True):
        assert torch.equal(ImageClassifier(attached.train(train), "text", CLASSES, ("{}",))(pixels), before)


def test_many_prompts_in_chunks_equal_all_at_once_and_keep_less(monkeypatch):
    model = vl.load_backbone("tiny-clip", "random").requires_grad_(False)
    config = vl.LoraConfig(r=2)
    model = vl.attach(model, config, towers=("text",), modules=("q", "v"), check=False).train()
    names = tuple(f"thing {number}" for number in range(8))
    head = make_head("text", model, names, ("a photo of a {}.",))
    features = torch.randn(3, model.embed_dim)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)

    def gradients():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            loss = head(model, features).square().mean()
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.autograd.grad(loss, trained), sum(kept)

    whole, kept_whole = gradients()
    monkeypatch.setattr(heads, "CHUNK", 3)
    chunked, kept_chunked = gradients()
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert kept_chunked < kept_whole / 10
