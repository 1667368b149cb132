import pytest
import torch
from torch import nn

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.attachment.parameters import encoder_parameters
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.engine.task import Task, count
from vision_lowrank.errors import UserError
from vision_lowrank.tasks.classification.prototypes import PrototypeHead
from vision_lowrank.tasks.incremental.unfreeze import SessionParameters

EMBEDDINGS = {"patch_embed", "cls_token", "pos_embed", "class_embedding", "positional_embedding", "conv1", "ln_pre"}


def vit(**options):
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
    return load_backbone("timm:vit_tiny_patch16_224", "random", **(sizes | options))


def clip():
    return load_backbone("tiny-clip", "random")


def beginnings(names, tower):
    """The parameters' blocks by number, and the first name of what lies beside the blocks."""
    found = set()
    for name in names:
        number = next((i for i, block in enumerate(tower.blocks) if name.startswith(f"{block}.")), None)
        found.add(name.removeprefix("model.").removeprefix("visual.").split(".")[0] if number is None else number)
    return found


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(
    ("make", "depth", "after"),
    [(vit, 3, {"norm"}), (lambda: vit(pooler=True), 3, {"norm", "head"}), (clip, 6, {"ln_post", "proj"})],
    ids=["timm", "pooler", "clip"],
)
def test_blocks_from_l_ft_on_and_all_that_follows_train(make, depth, after, attached):
    model = make().requires_grad_(False)
    tower = model.towers["vision"]
    model = attach(model, LoraConfig(r=2), check=False) if attached else model
    flags = [p.requires_grad for p in model.parameters()]
    for l_ft in range(depth):
        assert beginnings(encoder_parameters(model, l_ft), tower) == {*range(l_ft, depth)} | after
    assert encoder_parameters(model, depth) == {}
    whole = beginnings(encoder_parameters(model, -1), tower)
    assert whole - {*range(depth)} - after <= EMBEDDINGS
    assert {*range(depth)} | after < whole
    assert [p.requires_grad for p in model.parameters()] == flags


def test_the_whole_encoder_is_the_image_tower_without_the_text_tower():
    model = clip()
    expected = {name for name, _ in model.named_parameters() if model.tower_of(name) == "vision"}
    assert encoder_parameters(model, -1).keys() == expected


def test_the_counts_of_the_paper():
    wide = load_backbone("timm:vit_base_patch16_224", "random", img_size=32, depth=2, pooler=True)
    model = attach(wide, LoraConfig(r=16), modules=("q", "v"), check=False)
    head = PrototypeHead(10, 768)
    for l_ft in (0, 1):
        parts = SessionParameters.of(model, head, l_ft)
        assert count(parts.encoder.values()) == (2 - l_ft) * 7_087_872 + 592_128
    parts.train("pet", "classifier")
    trained = [p for module in (model, head) for p in module.parameters() if p.requires_grad]
    assert count(trained) == 589_824 * 2 / 12 + 768 * 10
    assert not SessionParameters.of(model, head, 2).encoder


class Session(Task):
    def __init__(self, model, head):
        super().__init__()
        self.model, self.head = model, head


def session(l_ft=1):
    torch.manual_seed(0)
    model = attach(vit(), LoraConfig(r=2, dropout=0.0), modules=("q", "v"), check=False)
    task = Session(model, PrototypeHead(4, 32))
    return task, SessionParameters.of(model, task.head, l_ft)


@pytest.mark.parametrize("names", [("pet",), ("classifier",), ("pet", "classifier"), ("pet", "classifier", "encoder")])
def test_the_parts_named_train_and_no_others(names):
    task, parts = session()
    parts.train("pet", "classifier", "encoder")
    parts.train(*names)
    expected = [p for name in names for p in getattr(parts, name).values()]
    assert {id(p) for p in task.parameters() if p.requires_grad} == {id(p) for p in expected}


@pytest.mark.parametrize("from_the_start", [True, False])
def test_the_encoder_has_a_group_of_its_own_from_the_start(from_the_start):
    task, parts = session()
    parts.train("pet", "classifier", *(["encoder"] if from_the_start else []))
    first, second = parts.groups(task.parameter_groups(), 0.1, 0.01)
    assert {id(p) for p in first["params"]} == {id(p) for p in [*parts.pet.values(), *parts.classifier.values()]}
    assert {id(p) for p in second["params"]} == {id(p) for p in parts.encoder.values()}
    assert "lr" not in first
    assert second["lr"] == pytest.approx(0.001)


def test_the_encoder_joins_later_without_a_new_optimiser():
    task, parts = session()
    parts.train("pet", "classifier")
    optimizer = torch.optim.SGD(parts.groups(task.parameter_groups(), 0.1, 0.5), 0.1, momentum=0.9, weight_decay=0.1)
    start = {name: p.detach().clone() for name, p in task.named_parameters()}
    encoder = {id(p) for p in parts.encoder.values()}

    def step():
        optimizer.zero_grad()
        loss = task.head.logits(task.model.encode_image(torch.randn(2, 3, 32, 32))).square().mean()
        loss.backward()
        optimizer.step()
        return {id(p) for name, p in task.named_parameters() if not torch.equal(p, start[name])}

    assert not step() & encoder
    assert not step() & encoder
    parts.train("pet", "classifier", "encoder")
    assert encoder <= step()


def test_lower_blocks_stay_while_the_encoder_trains():
    task, parts = session(l_ft=2)
    parts.train("encoder")
    task.head.logits(task.model.encode_image(torch.randn(2, 3, 32, 32))).sum().backward()
    reached = {name for name, p in task.model.get_base_model().named_parameters() if p.grad is not None}
    assert reached == parts.encoder.keys()


def test_impossible_blocks_are_refused():
    with pytest.raises(UserError, match=r"l_ft=-2: give the index of a block"):
        encoder_parameters(vit(), -2)
    convolutional = load_backbone("timm:resnet10t", "random")
    with pytest.raises(UserError, match=r"'timm:resnet10t' has no known blocks; set l_ft=-1"):
        encoder_parameters(convolutional, 0)
    whole = encoder_parameters(convolutional, -1)
    assert count(whole.values()) == count(convolutional.parameters())
    assert isinstance(next(iter(whole.values())), nn.Parameter)
