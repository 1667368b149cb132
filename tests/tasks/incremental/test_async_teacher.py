import copy

import pytest
import torch
from fixtures.hosts import pixels
from fixtures.models import moved

from vision_lowrank.adapters.block_lora import BlockLoraConfig
from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.engine.task import Task
from vision_lowrank.tasks.classification.prototypes import PrototypeHead
from vision_lowrank.tasks.incremental.teacher import AsynchronousTeacher, FrozenCopy
from vision_lowrank.tasks.incremental.unfreeze import SessionParameters

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
CONFIGS = {"lora": LoraConfig(r=2, dropout=0.1), "block_lora": BlockLoraConfig(r=2, blocks=2)}


class Student(Task):
    """A small ViT with an adapter, a head and a teacher, in float64."""

    def __init__(self, adapter="lora", l_ft=1):
        super().__init__()
        torch.manual_seed(0)
        base = split_attention(load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL).double().eval())
        self.pixels = pixels(base)
        with torch.no_grad():
            self.pretrained = base.encode_image(self.pixels)
        self.model = attach(base, CONFIGS[adapter], modules=("q", "v"), check=False).double().train()
        self.head = PrototypeHead(3, 32).double()
        self.teacher = AsynchronousTeacher()
        self.parts = SessionParameters.of(self.model, self.head, l_ft)

    @property
    def base_weights(self):
        named = self.model.get_base_model().named_parameters()
        return {name: p for name, p in named if name not in self.parts.pet}

    def step(self):
        """One of training's, with the teacher's features in the loss."""
        optimizer = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)
        features = self.model.encode_image(self.pixels)
        taught = self.teacher.features(self.model, self.pixels)
        assert not taught.requires_grad
        (self.head.logits(features).square().sum() + (features - taught).square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        self.teacher.update(self.model)


@pytest.fixture(params=CONFIGS)
def student(request):
    return Student(request.param)


def test_at_the_start_student_teacher_and_pretrained_model_agree(student):
    assert torch.equal(student.teacher.features(student.model, student.pixels), student.pretrained)
    student.teacher.hold(student.parts.encoder)
    assert torch.equal(student.teacher.features(student.model, student.pixels), student.pretrained)
    with torch.no_grad():
        torch.testing.assert_close(student.model.eval().encode_image(student.pixels), student.pretrained)


@pytest.mark.parametrize("held", [False, True])
def test_before_controlled_fine_tuning_the_teacher_is_the_pretrained_model_to_the_bit(student, held):
    if held:
        student.teacher.hold(student.parts.encoder)
    student.parts.train("pet", "classifier")
    before = {name: p.detach().clone() for name, p in student.base_weights.items()}
    for _ in range(3):
        student.step()
    assert torch.equal(student.teacher.features(student.model, student.pixels), student.pretrained)
    assert all(torch.equal(p, before[name]) for name, p in student.base_weights.items())
    assert all(torch.equal(p, before[name]) for name, p in student.teacher.held.items())
    with torch.no_grad():
        assert not torch.allclose(student.model.eval().encode_image(student.pixels), student.pretrained)


def test_then_it_follows_the_base_weights_from_l_ft_on_by_the_formula(student):
    student.teacher.hold(student.parts.encoder)
    student.parts.train("pet", "classifier", "encoder")
    before = {name: p.detach().clone() for name, p in student.base_weights.items()}
    for _ in range(3):
        old = {name: tensor.clone() for name, tensor in student.teacher.held.items()}
        student.step()
        for name, tensor in student.teacher.held.items():
            expected = 0.999 * old[name] + 0.001 * student.base_weights[name]
            torch.testing.assert_close(tensor, expected, rtol=1e-14, atol=1e-15)
    lower = student.base_weights.keys() - student.teacher.held.keys()
    assert {name for name in before if ".blocks.0." in name} < lower
    assert all(torch.equal(student.base_weights[name], before[name]) for name in lower)
    moved = {name for name, tensor in student.teacher.held.items() if not torch.equal(tensor, before[name])}
    assert moved == student.parts.encoder.keys()


def test_many_updates_are_the_closed_form_and_move_the_features_there():
    student = Student()
    student.teacher.hold(student.parts.encoder)
    start = {name: tensor.clone() for name, tensor in student.teacher.held.items()}
    student.parts.train("encoder")
    moved(student.model)
    for _ in range(50):
        student.teacher.update(student.model)
    share, plain = 0.999**50, copy.deepcopy(student.model).unload()
    with torch.no_grad():
        for name, tensor in student.teacher.held.items():
            expected = share * start[name] + (1 - share) * student.base_weights[name]
            torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-14)
            plain.get_parameter(name.replace(".base_layer", "")).copy_(expected)
        torch.testing.assert_close(
            student.teacher.features(student.model, student.pixels), plain.encode_image(student.pixels)
        )


def test_it_holds_what_may_move_and_nothing_of_the_adapter(student):
    assert not student.teacher.state_dict()
    student.teacher.hold(student.parts.encoder)
    assert student.teacher.held.keys() == student.parts.encoder.keys()
    assert not any(name in key for key in student.teacher.held for name in ("lora", "weight_update"))
    assert not list(student.teacher.parameters())
    shared = {p.data_ptr() for p in student.parameters()}
    assert not shared & {tensor.data_ptr() for tensor in student.teacher.held.values()}


def test_running_it_leaves_the_student_as_it_was(student):
    student.teacher.hold(student.parts.encoder)
    student.parts.train("pet")
    flags = [p.requires_grad for p in student.parameters()]
    tensors = [p.detach().clone() for p in student.parameters()]
    student.teacher.features(student.model, student.pixels)
    assert [p.requires_grad for p in student.parameters()] == flags
    assert student.model.training
    assert all(torch.equal(p, tensor) for p, tensor in zip(student.parameters(), tensors, strict=True))
    assert all(p.grad is None for p in student.parameters())


def test_holding_again_keeps_what_is_held_and_adds_the_rest():
    student = Student(l_ft=2)
    student.teacher.hold(student.parts.encoder)
    first = {name: tensor.clone() for name, tensor in student.teacher.held.items()}
    student.parts.train("encoder")
    moved(student.model)
    wider = SessionParameters.of(student.model, student.head, 1).encoder
    student.teacher.hold(wider)
    assert student.teacher.held.keys() == wider.keys() > first.keys()
    assert all(torch.equal(student.teacher.held[name], tensor) for name, tensor in first.items())


def test_a_copy_with_adapters_is_the_student_of_that_time(student):
    moved(student.model)
    with torch.no_grad():
        then = student.model.encode_image(student.pixels)
    base, teacher = FrozenCopy(adapters=True), FrozenCopy()
    base.hold(student.parts.pet)
    assert torch.equal(base.features(student.model, student.pixels), then)
    student.parts.train("pet")
    moved(student.model, seed=3)
    with torch.no_grad():
        assert not torch.allclose(student.model.encode_image(student.pixels), then)
    assert torch.equal(base.features(student.model, student.pixels), then)
    assert torch.equal(teacher.features(student.model, student.pixels), student.pretrained)


def test_a_deep_copy_of_a_teacher_stays_behind():
    student = Student()
    student.teacher.hold(student.parts.encoder)
    kept = copy.deepcopy(student.teacher)
    student.parts.train("encoder")
    moved(student.model)
    student.teacher.update(student.model)
    assert torch.equal(kept.features(student.model, student.pixels), student.pretrained)
    assert not torch.equal(student.teacher.features(student.model, student.pixels), student.pretrained)


def test_a_checkpoint_puts_it_back():
    student, other = Student(), Student()
    for each in (student, other):
        each.teacher.hold(each.parts.encoder)
        each.parts.train("pet", "classifier", "encoder")
    student.step()
    student.step()
    state = {name: tensor.clone() for name, tensor in student.trained_state().items()}
    assert {name for name in state if name.startswith("teacher.")}
    assert "head.seen" in state
    other.load_trained_state(state)
    expected = student.teacher.features(student.model, student.pixels)
    assert torch.equal(other.teacher.features(other.model, other.pixels), expected)
    assert not torch.equal(expected, student.pretrained)


def test_a_backbone_without_adapter_can_be_copied_too():
    backbone = load_backbone("timm:vit_tiny_patch16_224", "random", **SMALL).double().requires_grad_(False)
    teacher, batch = AsynchronousTeacher(m=0.5), pixels(backbone)
    parts = SessionParameters.of(backbone, PrototypeHead(2, 32), 2)
    teacher.hold(parts.encoder)
    with torch.no_grad():
        then = backbone.eval().encode_image(batch)
    parts.train("encoder")
    moved(backbone)
    assert torch.equal(teacher.features(backbone, batch), then)
    assert not parts.pet
