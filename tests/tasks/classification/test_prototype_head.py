import copy

import pytest
import torch
import torch.nn.functional as F
from fixtures.hosts import pixels
from fixtures.models import moved

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.merge import merge
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError
from vision_lowrank.tasks.classification.classifier import ImageClassifier
from vision_lowrank.tasks.classification.heads import text_rows
from vision_lowrank.tasks.classification.prototypes import PrototypeHead

LABELS = torch.tensor([1, 3, 1, 3, 1])


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def head(classes=5, width=4):
    return PrototypeHead(classes, width).double()


def test_logits_are_dot_products_without_bias_or_scale():
    own, features = head(), rand(3, 4)
    expected = [
        [sum(h * w for h, w in zip(row, column, strict=True)) for column in own.prototypes.detach()] for row in features
    ]
    torch.testing.assert_close(own.logits(features), torch.tensor(expected, dtype=torch.float64))
    assert [name for name, _ in own.named_parameters()] == ["prototypes"]


def test_rows_are_class_means_and_other_rows_do_not_change():
    own, features = head(), rand(5, 4)
    before = own.prototypes.detach().clone()
    own.set_prototypes(features, LABELS)
    torch.testing.assert_close(own.prototypes[1], (features[0] + features[2] + features[4]) / 3)
    torch.testing.assert_close(own.prototypes[3], (features[1] + features[3]) / 2)
    for c in (0, 2, 4):
        assert torch.equal(own.prototypes[c], before[c])
    assert own.seen.tolist() == [False, True, False, True, False]
    assert own.prototypes.requires_grad


def test_unseen_classes_never_win_when_masked():
    own, features = head(), rand(40, 4)
    own.set_prototypes(features[:5], LABELS)
    raw, masked = own.logits(features), own(None, features)
    assert torch.equal(masked[:, own.seen], raw[:, own.seen])
    assert (masked[:, ~own.seen] == -torch.inf).all()
    assert set(masked.argmax(dim=1).tolist()) == {1, 3}
    assert set(raw.argmax(dim=1).tolist()) - {1, 3}
    own.mask_unseen = False
    assert torch.equal(own(None, features), raw)


def test_a_masked_loss_has_finite_gradients():
    own, features = head(), rand(6, 4).requires_grad_()
    own.see([0, 1])
    F.cross_entropy(own(None, features), torch.tensor([0, 1, 0, 1, 0, 1])).backward()
    assert features.grad.isfinite().all()
    assert not own.prototypes.grad[2:].any()


def test_sessions_of_prototypes_are_the_nearest_dot_product_baseline():
    own, shots, tests = head(classes=6), rand(12, 4), rand(50, 4)
    labels = torch.arange(6).repeat(2)
    base = None
    for session in ((0, 1, 2), (3, 4), (5,)):
        chosen = torch.tensor([label in session for label in labels.tolist()])
        own.set_prototypes(shots[chosen], labels[chosen])
        means = {c: (shots[c] + shots[c + 6]) / 2 for c in range(session[-1] + 1)}
        nearest = [max(means, key=lambda c, row=row: float(row @ means[c])) for row in tests]
        logits = own(None, tests)
        assert logits.argmax(dim=1).tolist() == nearest
        base = logits[:, :3] if base is None else base
        assert torch.equal(logits[:, :3].argmax(dim=1), base.argmax(dim=1))


def test_a_frozen_head_changes_by_the_prototype_step_only():
    own = head()
    own.set_prototypes(rand(2, 4), torch.tensor([0, 1]))
    before = own.prototypes.detach().clone()
    own.requires_grad_(False)
    features = rand(2, 4).requires_grad_()
    own.set_prototypes(features, torch.tensor([2, 2]))
    F.cross_entropy(own.logits(features), torch.tensor([2, 2])).backward()
    assert own.prototypes.grad is None
    assert torch.equal(own.prototypes[[0, 1, 3, 4]], before[[0, 1, 3, 4]])
    torch.testing.assert_close(own.prototypes[2], features.detach().mean(dim=0))
    assert not own.prototypes.requires_grad


def test_random_rows_fill_the_range_of_the_paper():
    rows = PrototypeHead(200, 16).prototypes
    assert rows.abs().max() <= 0.25
    assert rows.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("trains", [True, False])
def test_growing_keeps_rows_and_what_is_seen(trains):
    own, features = head().requires_grad_(trains), rand(3, 4)
    own.see([4])
    before = own.logits(features)
    own.grow(2)
    assert own.logits(features).shape == (3, 7)
    torch.testing.assert_close(own.logits(features)[:, :5], before)
    assert own.seen.tolist() == [False] * 4 + [True] + [False] * 2
    assert own.prototypes.requires_grad == trains
    assert own.prototypes.dtype == torch.float64
    own.set_prototypes(features, torch.tensor([6, 6, 6]))
    torch.testing.assert_close(own.prototypes[6], features.mean(dim=0))
    with pytest.raises(UserError, match="cannot grow by 0 classes"):
        own.grow(0)


def test_text_rows_predict_as_zero_shot_does():
    model = load_backbone("tiny-clip").double().eval()
    names, templates, batch = (
        ["cat", "dog", "red_apple"],
        ["a photo of a {}.", "an icon of a {}"],
        torch.randn(9, 3, 48, 48),
    )
    rows = text_rows(model, names, templates)
    assert not rows.requires_grad
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3, dtype=torch.float64))
    own = PrototypeHead(4, model.embed_dim).double()
    own.set_rows(range(3), rows)
    with torch.no_grad():
        batch = rand(9, 3, 48, 48)
        features = model.encode_image(batch)
        zero_shot = ImageClassifier(model, "text", names, templates)(batch)
        cosines = own.logits(features)[:, :3] / features.norm(dim=1, keepdim=True)
        torch.testing.assert_close(model.logit_scale * cosines, zero_shot)
    torch.testing.assert_close(text_rows(model, names, templates, scale=3.0), 3 * rows)
    with pytest.raises(UserError, match="has no text tower"):
        text_rows(load_backbone("timm:resnet10t", "random"), names, templates)


def test_merging_the_adapter_leaves_the_logits_as_they_were():
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = attach(
        load_backbone("timm:vit_tiny_patch16_224", "random", **sizes), LoraConfig(r=2, dropout=0.1), check=False
    )
    own, batch = PrototypeHead(5, 32), pixels(model)
    moved(model)
    with torch.no_grad():
        logits = own.logits(model.encode_image(batch))
        merged = own.logits(merge(copy.deepcopy(model)).eval().encode_image(batch))
    torch.testing.assert_close(merged, logits, rtol=0, atol=1e-4)
