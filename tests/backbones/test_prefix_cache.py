"""Blocks below the first that trains are computed once per sample."""

import pytest
import torch

import vision_lowrank as vl
from vision_lowrank.backbones.prefix_cache import PrefixCache
from vision_lowrank.tasks.classification.heads import make_head

BLOCKS = {"vision": 4, "text": 4}


def adapted(layers, towers=("text",)):
    model = vl.load_backbone("tiny-clip", "random").requires_grad_(False)
    model = vl.attach(model, vl.LoraConfig(r=2), towers=towers, layers=layers, modules=("q", "v"), check=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def calls(cache):
    counts = [0] * len(cache.blocks)
    for index, block in enumerate(cache.blocks):
        norm = next(module for module in block.modules() if isinstance(module, torch.nn.LayerNorm))
        norm.register_forward_hook(lambda *_, index=index: counts.__setitem__(index, counts[index] + 1))
    return counts


def tokens(model, count=5):
    return model.tokenizer([f"thing {number}" for number in range(count)])


def test_depth_is_the_number_of_blocks_below_the_first_that_trains():
    last = len(vl.load_backbone("tiny-clip", "random").towers["text"].blocks) - 1
    assert PrefixCache(adapted("-1:"), "text").depth == last
    assert PrefixCache(adapted("all"), "text").depth == 0
    model = adapted("-1:")
    model.get_base_model().model.positional_embedding.requires_grad_(True)
    assert PrefixCache(model, "text").depth == 0


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_cached_outputs_are_the_same_bits_and_spare_the_blocks(tower):
    model = adapted("-1:", (tower,)).train()
    cache = PrefixCache(model, tower)
    inputs = tokens(model) if tower == "text" else torch.randn(5, 3, 48, 48)
    encode = model.encode_text if tower == "text" else model.encode_image
    plain = encode(inputs)
    counts = calls(cache)
    for _ in range(3):
        with cache.using(range(5)):
            assert torch.equal(encode(inputs), plain)
    assert counts[: cache.depth] == [1] * cache.depth
    assert counts[cache.depth :] == [3] * (len(counts) - cache.depth)
    assert torch.equal(encode(inputs), plain)
    assert counts[0] == 2  # outside nothing is kept


def test_rows_follow_the_keys():
    model = adapted("-1:")
    cache, all_tokens = PrefixCache(model, "text"), tokens(model)
    with cache.using(range(5)):
        whole = model.encode_text(all_tokens)
    with cache.using([4, 1]):
        torch.testing.assert_close(model.encode_text(all_tokens[[4, 1]]), whole[[4, 1]], rtol=1e-5, atol=1e-6)


def test_gradients_are_those_without_the_cache():
    model = adapted("-2:").train()
    head = make_head("text", model, [f"thing {i}" for i in range(6)], ("a {}.",))
    features = torch.randn(2, model.embed_dim)
    trained = [p for p in model.parameters() if p.requires_grad]

    def gradients():
        return torch.autograd.grad(head(model, features).square().sum(), trained)

    plain = gradients()
    head.prefix = PrefixCache(model, "text")
    for _ in range(2):
        for one, other in zip(plain, gradients(), strict=True):
            assert torch.equal(one, other)


def test_an_error_inside_leaves_the_blocks_as_they_were():
    model = adapted("-1:")
    cache, all_tokens = PrefixCache(model, "text"), tokens(model)
    plain = model.encode_text(all_tokens)
    with cache.using(range(5)):
        model.encode_text(all_tokens)
    with pytest.raises(ZeroDivisionError), cache.using(range(5)):
        raise ZeroDivisionError
    assert torch.equal(model.encode_text(all_tokens), plain)
    assert all("forward" not in vars(block) for block in cache.blocks)
