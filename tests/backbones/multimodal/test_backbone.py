import pytest
import torch
from fixtures.multimodal import arch_of, at_images, fresh, inputs_for, picture, shared, tiles_for

from vision_lowrank.adapters.lora import LoraConfig
from vision_lowrank.attachment.attach import attach
from vision_lowrank.backbones.multimodal.sizes import TINY
from vision_lowrank.errors import UserError

PARAMETERS = {
    "tiny-qwen2-vl": 261_760,
    "tiny-qwen2.5-vl": 265_824,
    "tiny-qwen3-vl": 333_568,
    "tiny-internvl3": 231_328,
    "tiny-internvl3_5": 230_944,
    "tiny-llava-onevision": 224_800,
    "tiny-smolvlm": 234_080,
}


@pytest.fixture(params=TINY)
def backbone(request):
    return shared(request.param)


# 1 ---------------------------------------------------------------------------------------------------------------


def test_size_protocol_and_towers(backbone):
    arch = arch_of(backbone)
    assert sum(p.numel() for p in backbone.parameters()) == PARAMETERS[arch]
    assert {name: len(tower.blocks) for name, tower in backbone.towers.items()}["llm"] == 4 == backbone.state_layers
    tiles, (rows, _) = tiles_for(backbone, 2), backbone.token_grid
    patches = (rows * backbone.family.merge(backbone.model.config)) ** 2
    tokens = backbone.image_tokens(tiles)
    assert tokens.shape == (2, patches, backbone.embed_dim) == (2, patches, 32)
    torch.testing.assert_close(backbone(tiles), tokens.mean(1))
    assert backbone.state_width == 64
    assert backbone.encode_text(backbone.tokenizer(["one", "and two"])).shape == (2, 64)
    assert backbone.transform(picture()).shape == tiles.shape[1:]
    assert backbone.tower_of(backbone.towers["vision"].blocks[0] + ".x") == "vision"
    assert backbone.tower_of(backbone.towers["llm"].blocks[0] + ".x") == "llm"


# 2, 3, 4 -----------------------------------------------------------------------------------------------------------


def features_of(backbone, inputs):
    own = {n: v for n, v in inputs.items() if n not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    features = backbone.model.get_image_features(**own).pooler_output
    return torch.cat([f.reshape(-1, 64) for f in features])


@torch.no_grad()
def test_image_tokens_are_as_many_as_features_and_carry_them(backbone):
    tiles, n = tiles_for(backbone, 3), backbone.token_grid[0] * backbone.token_grid[1]
    inputs = inputs_for(backbone, tiles, [1, 2])
    features = features_of(backbone, inputs)
    assert len(features) == 3 * (n + backbone.family.newline)
    hidden = backbone.model.model(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(at_images(backbone, inputs, hidden[0]), features)
    (state,), valid = backbone.image_states(tiles, [1, 2], [0])
    on_grid = features.unflatten(0, (3, -1))[:, :n].flatten(0, 1)
    torch.testing.assert_close(state[valid], on_grid)


@torch.no_grad()
def test_states_are_those_of_the_full_model_and_layers_above_do_not_run(backbone):
    tiles, n = tiles_for(backbone, 3), backbone.token_grid[0] * backbone.token_grid[1]
    inputs = inputs_for(backbone, tiles, [1, 2])
    hidden = backbone.model.model(**inputs, output_hidden_states=True).hidden_states
    layers = [layer for layer in (1, 2, 3) if layer >= backbone.family.first_safe_layer(backbone.model.config)]
    assert layers
    picked = backbone.model.model(**inputs, output_hidden_states=[layers[0]]).hidden_states
    assert torch.equal(picked[layers[0]], hidden[layers[0]])
    blocks = [backbone.get_submodule(path) for path in backbone.towers["llm"].blocks]
    for layer in layers:
        blocks[layer].forward, forward = None, blocks[layer].forward  # a call would raise
        (state,), valid = backbone.image_states(tiles, [1, 2], [layer])
        del blocks[layer].forward
        assert blocks[layer].forward == forward
        expected = at_images(backbone, inputs, hidden[layer]).unflatten(0, (3, -1))[:, :n].flatten(0, 1)
        torch.testing.assert_close(state[valid], expected)
    (last,), valid = backbone.image_states(tiles, [1, 2], [4])
    norm = backbone.model.get_submodule(f"model.{backbone.family.llm}").norm
    expected = at_images(backbone, inputs, hidden[4]).unflatten(0, (3, -1))[:, :n].flatten(0, 1)
    torch.testing.assert_close(norm(last[valid]), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_deepstack_is_part_of_the_state():
    backbone = shared("tiny-qwen3-vl")
    tiles = tiles_for(backbone, 1)
    inputs = backbone.inputs(tiles, [1], backbone.prompts([1], ["what?"]))
    hidden = backbone.model.model(**inputs, output_hidden_states=True).hidden_states
    added = backbone.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).deepstack_features
    states, _ = backbone.image_states(tiles, [1], [1, 2, 3])
    for layer, extra in zip((1, 2), added, strict=True):
        torch.testing.assert_close(states[layer - 1][0], at_images(backbone, inputs, hidden[layer]) + extra[0])
    torch.testing.assert_close(states[2][0], at_images(backbone, inputs, hidden[3]))
    assert backbone.family.first_safe_layer(backbone.model.config) == 3


# 6 ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_patch_moves_its_own_token_most(backbone):
    merge, (rows, columns) = backbone.family.merge(backbone.model.config), backbone.token_grid
    patch, tile = backbone.family.patch(backbone.model.config), tiles_for(backbone, 1)
    side = rows * merge
    changed = tile.repeat(side * side, 1, 1, 1)
    for number in range(side * side):
        y, x = (patch * index for index in divmod(number, side))
        changed[number, :, y : y + patch, x : x + patch] *= -1
    tokens = backbone.image_tokens(changed) - backbone.image_tokens(tile)
    assert tokens.norm(dim=-1).argmax(1).tolist() == list(range(side * side))
    (state,), _ = backbone.image_states(torch.cat([tile, changed]), [1] * (1 + side * side), [0])
    moved = (state[1:] - state[0]).norm(dim=-1).argmax(1).tolist()
    assert moved == [n // side // merge * columns + n % side // merge for n in range(side * side)]


# 7 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_gives_what_its_pictures_give_alone(backbone, side):
    tiles = tiles_for(backbone, 3)
    inputs = inputs_for(backbone, tiles, [1, 2], side=side)
    layer = 3
    both = backbone.model.model(**inputs, output_hidden_states=True).hidden_states[layer]
    both = at_images(backbone, inputs, both)
    alone = []
    for part, count, question in ((tiles[:1], 1, "what?"), (tiles[1:], 2, "is it edited?")):
        one = inputs_for(backbone, part, [count], [question])
        state = backbone.model.model(**one, output_hidden_states=True).hidden_states[layer]
        alone.append(at_images(backbone, one, state))
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-5, atol=2e-6)
    states, valid = backbone.image_states(tiles, [1, 2], [2])
    single, _ = backbone.image_states(tiles[:1], [1], [2])
    torch.testing.assert_close(states[0][0][valid[0]], single[0][0], rtol=1e-5, atol=2e-6)
    assert not states[0][~valid].any()


# 9, answers, native tiling ------------------------------------------------------------------------------------------


def test_missing_token_types_are_named():
    backbone = shared("tiny-qwen2.5-vl")
    inputs = inputs_for(backbone, tiles_for(backbone, 2), [1, 1])
    assert inputs.pop("mm_token_type_ids").sum() == 2 * 16
    with pytest.raises(UserError, match="lack mm_token_type_ids"):
        backbone._llm(**inputs)


def test_answer_loss_is_that_of_the_answers_tokens_alone(backbone):
    tiles = tiles_for(backbone, 3)
    with torch.no_grad():
        loss = backbone.answer_loss(tiles, [1, 2], ["what?", "is it edited?"], ["yes", "I do not know"])
        terms = []
        for part, count, question, answer in (
            (tiles[:1], 1, "what?", "yes"),
            (tiles[1:], 2, "is it edited?", "I do not know"),
        ):
            (chat,) = backbone.prompts([count], [question])
            inputs = backbone.inputs(part, [count], [chat + answer + backbone.text.eos_token])
            logits = backbone.model(**inputs).logits[0].log_softmax(-1)
            ids, told = inputs["input_ids"][0], len(answer) + 1  # one token per byte, and the end
            terms += [-logits[i - 1, ids[i]] for i in range(len(ids) - told, len(ids))]
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_answers_can_be_learnt_through_the_llm():
    own = fresh("tiny-internvl3_5")
    model = attach(own, LoraConfig(r=8), towers=["llm"], modules=["q", "v", "o", "fc1", "fc2"])
    tiles, texts = tiles_for(own, 1), (["edited?"], ["yes"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.answer_loss(tiles, [1], *texts)
        loss.backward()
        optimizer.step()
    assert loss < 0.4  # the frozen head allows no less than 0.2
    assert model.eval().generate(tiles, [1], texts[0], max_new_tokens=8) == ["yes"]


@torch.no_grad()
def test_native_tiling_says_where_every_image_token_is(backbone):
    for size in ((70, 130), (200, 60), (56, 56)):
        inputs = backbone.prepare([picture(*size), picture(*size[::-1])], ["what?", "is it edited?"])
        places = backbone.token_places(inputs)
        counts = (inputs["input_ids"] == backbone.model.config.image_token_id).sum(1).tolist()
        assert [len(place) for place in places] == counts
        for place in places:
            on_grid = place[place[:, 1] >= 0]
            assert len(on_grid.unique(dim=0)) == len(on_grid)  # no place twice
        assert backbone.model.model(**inputs).last_hidden_state.isfinite().all()


@torch.no_grad()
def test_a_picture_of_one_tile_is_the_same_by_either_route():
    for arch, options in (
        ("tiny-internvl3_5", {"crop_to_patches": False}),
        ("tiny-qwen3-vl", {}),
        ("tiny-smolvlm", {}),
    ):
        backbone = shared(arch)
        image = picture(backbone.preprocess.size, backbone.preprocess.size)
        native = backbone.prepare([image], ["what?"], **options)
        tiles = backbone.transform(image)[None]
        own = backbone.inputs(tiles, [1], backbone.prompts([1], ["what?"]))
        assert own.keys() == native.keys()
        for name in own:
            torch.testing.assert_close(own[name].float(), native[name].float(), rtol=1e-4, atol=1e-4)


def test_native_places_of_llava_follow_the_picture():
    backbone = shared("tiny-llava-onevision")
    (place,) = backbone.token_places(backbone.prepare([picture(112, 56)], ["what?"]))
    assert place[:16].tolist() == [[0, row, column] for row in range(4) for column in range(4)]
    assert place[16:25].tolist() == [*([1, 0, column] for column in range(8)), [1, -1, -1]]
    assert len(place) == 16 + 4 * 9
