"""Adapters on bases of half precision: of a library's own, and of ``to``; and from there to the float32 base."""

import pytest
import torch
from fixtures.models import moved as moved_in_place

import vision_lowrank as vl
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.kernels import linear
from vision_lowrank.targets.coverage import coverage

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def clip(precision="fp32", weights="random"):
    torch.manual_seed(0)
    options = {"vision_cfg": VISION, "text_cfg": TEXT} | ({} if precision == "fp32" else {"precision": precision})
    return vl.load_backbone("open_clip:ViT-B-32", str(weights), **options).eval()


@torch.no_grad()
def moved(model):
    return moved_in_place(model)


def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of the float32 weights: bases that are random are each their own."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in clip().model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("precision", ["bf16", "fp16", "pure_bf16"])
@pytest.mark.parametrize("config", [vl.LoraConfig(r=2), vl.BlockLoraConfig(r=2, blocks=2)], ids=["lora", "block_lora"])
def test_a_clip_of_half_precision_is_adapted_saved_and_loaded_by_the_float32_one(weights, precision, config, tmp_path):
    half, full = clip(precision, weights), clip(weights=weights)
    assert half.fingerprint == full.fingerprint
    assert {p.dtype for p in half.model.visual.transformer.resblocks[0].mlp.parameters()} != {torch.float32}
    model = moved(vl.attach(half, config, towers=("vision", "text")))
    assert not coverage(model).dead
    with torch.no_grad():
        y = model.encode_image(pixels())
        vl.save(model, tmp_path / "adapter")
        again = vl.load(tmp_path / "adapter", clip(precision, weights))
        assert torch.equal(again.encode_image(pixels()), y)
        wide = vl.load(tmp_path / "adapter", full).encode_image(pixels())
        plain = clip(weights=weights).encode_image(pixels())
    assert wide.dtype == torch.float32
    assert (wide - y.float()).norm() < 0.2 * (wide - plain).norm()


def test_an_adapter_that_does_something_else_is_still_refused(weights, tmp_path):
    model = moved(vl.attach(clip("bf16", weights), vl.LoraConfig(r=2)))
    folder = vl.save(model, tmp_path / "adapter")
    other = clip(weights=weights)
    with torch.no_grad():
        other.model.visual.proj.mul_(-1)
    with pytest.raises(ArtefactError, match="was trained on"):
        vl.load(folder, other)


def test_a_precision_that_open_clip_does_not_have():
    with pytest.raises(UserError, match=r"precision 'half': write one of fp32, bf16"):
        clip("half")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_adapters_on_a_base_that_was_cast_are_fused(dtype, monkeypatch):
    model = moved(vl.attach(vl.load_backbone("tiny-clip").to(dtype), vl.BlockLoraConfig(r=2)))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    alone = []
    monkeypatch.setattr(linear, "reference", lambda x, branch: alone.append(branch))
    loss = model.encode_image(torch.randn(2, 3, 48, 48, dtype=dtype)).float().square().sum()
    loss.backward()
    assert not alone
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert {g.dtype for g in gradients if g is not None} == {torch.float32}
