import pytest
import torch

from vision_lowrank.attention.split import split_attention
from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError
from vision_lowrank.targets.select import layer_indices, select


@pytest.fixture(scope="module")
def backbone():
    return split_attention(load_backbone("tiny-clip", weights="random"))


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [
        ("all", 4, [0, 1, 2, 3]),
        ([3, 0, -1], 4, [0, 3]),
        ("-4:", 12, [8, 9, 10, 11]),
        ("2:8:3", 12, [2, 5]),
        (":2", 12, [0, 1]),
        ("top3", 12, [9, 10, 11]),
        ("bottom", 12, [0, 1, 2, 3]),
        ("mid", 12, [4, 5, 6, 7]),
        ("up", 12, [8, 9, 10, 11]),
        ("half-bottom", 24, list(range(12))),
        ("half-up", 24, list(range(12, 24))),
    ],
)
def test_layers_mean_what_clip_lora_means(layers, count, expected):
    assert layer_indices(layers, count) == expected


@pytest.mark.parametrize("count", [1, 2, 5, 7, 12, 24, 25])
def test_thirds_and_halves_share_out_every_block(count):
    whole = list(range(count))
    assert [i for name in ("half-bottom", "half-up") for i in chosen(name, count)] == whole
    assert [i for name in ("bottom", "mid", "up") for i in chosen(name, count)] == whole


def chosen(layers, count):
    try:
        return layer_indices(layers, count)
    except UserError:
        return []


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([12], "layer 12 does not exist: there are 12 blocks, 0 to 11"),
        ([-13], "layer -13 does not exist"),
        ("half_up", "Did you mean 'half-up'"),
        ("1:2:0", "unknown layers"),
        ("20:", "choose none of 12 blocks"),
        ([], "choose none"),
        ("", "unknown layers"),
    ],
)
def test_wrong_layers_are_named(layers, message):
    with pytest.raises(UserError, match=message):
        layer_indices(layers, 12)


def test_paths_come_tower_by_tower_block_by_block_in_the_order_of_modules(backbone):
    paths = select(backbone, layers={"vision": [5], "text": "-2:"}, modules=("v", "q"))
    assert paths == [
        "model.visual.transformer.resblocks.5.attn.v_proj",
        "model.visual.transformer.resblocks.5.attn.q_proj",
        "model.transformer.resblocks.2.attn.v_proj",
        "model.transformer.resblocks.2.attn.q_proj",
        "model.transformer.resblocks.3.attn.v_proj",
        "model.transformer.resblocks.3.attn.q_proj",
    ]


def test_every_logical_module_is_an_existing_linear(backbone):
    paths = select(backbone, modules=("q", "k", "v", "o", "fc1", "fc2"))
    assert len(paths) == len(set(paths)) == (6 + 4) * 6
    assert all(isinstance(backbone.get_submodule(path), torch.nn.Linear) for path in paths)


def test_a_tower_missing_from_the_layer_mapping_is_taken_whole(backbone):
    assert len(select(backbone, layers={"vision": [0]}, modules="q")) == 1 + 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"towers": ("visual",)}, "no tower 'visual'. Did you mean 'vision'"),
        ({"layers": {"txt": "all"}}, "no tower 'txt'. Did you mean 'text'"),
        ({"modules": ("fc",)}, "no module 'fc'. Did you mean 'fc"),
        ({"modules": ()}, "modules is empty"),
        ({"towers": []}, "towers is empty"),
        ({"towers": ["text"], "layers": [4]}, "layer 4 does not exist"),
    ],
)
def test_wrong_choices_are_named(backbone, arguments, message):
    with pytest.raises(UserError, match=message):
        select(backbone, **arguments)


def test_unsplit_attention_is_pointed_out_but_other_linears_are_found():
    backbone = load_backbone("tiny-clip", weights="random")
    assert len(select(backbone, modules=["fc1"])) == 10
    with pytest.raises(UserError, match="call split_attention"):
        select(backbone)


def test_a_backbone_without_blocks_has_no_towers():
    backbone = load_backbone("timm:resnet10t", "random")
    with pytest.raises(UserError, match="no known blocks"):
        select(backbone)
