"""timm's option ``drop_path``: the same share in every block, LoRAT's stochastic depth, unlike timm's rising one."""

import pytest
import torch

from vision_lowrank.backbones.load import load_backbone
from vision_lowrank.errors import UserError

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 32}


def vit(share):
    torch.manual_seed(0)
    return load_backbone("timm:vit_small_patch14_dinov2", "random", drop_path=share, **SMALL)


def test_every_branch_of_every_block_has_the_same_share():
    shares = [(b.drop_path1.drop_prob, b.drop_path2.drop_prob) for b in vit(0.4).trunk.blocks]
    assert shares == [(0.4, 0.4)] * 3


def test_evaluation_is_as_without():
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(vit(0.4).eval().encode_image(pixels), vit(0.0).eval().encode_image(pixels))


def test_branches_are_left_out_for_a_share_of_samples_and_the_rest_is_scaled():
    """Of one branch, sample by sample: nothing at all, or the branch divided by what is kept."""
    block = vit(0.4).train().trunk.blocks[0]
    x = torch.ones(1000, 5, 48)
    torch.manual_seed(1)
    found = block.drop_path1(x)
    dropped = (found == 0).flatten(1).all(dim=1)
    assert 0.35 < dropped.float().mean() < 0.45
    torch.testing.assert_close(found[~dropped], x[~dropped] / 0.6)


def test_an_artefact_remembers_it():
    assert vit(0.4).spec["drop_path"] == 0.4
    assert "drop_path" not in vit(0.0).spec


def test_only_plain_vits_have_it():
    with pytest.raises(UserError, match=r"'resnet18' is no plain vision transformer: leave backbone.options.drop_path"):
        load_backbone("timm:resnet18", "random", drop_path=0.1)
