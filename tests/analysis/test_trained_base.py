import pytest
import torch

import vision_lowrank as vl
from vision_lowrank.analysis.trained_base import trained_pairs
from vision_lowrank.errors import UserError

BLOCK = "model.visual.transformer.resblocks.1"


def states(*models):
    return [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]


@torch.no_grad()
def test_pairs_are_the_changes_of_the_blocks_matrices_and_the_models_stay_whole(tiny_weights):
    base, tuned = (vl.load_backbone("tiny-clip", str(tiny_weights)) for _ in range(2))
    block = tuned.get_submodule(BLOCK)
    D = block.attn.in_proj_weight.shape[1]
    change = {"v": torch.randn(D, D), "fc2": torch.randn(block.mlp.c_proj.weight.shape)}
    block.attn.in_proj_weight[2 * D :] += change["v"]
    block.mlp.c_proj.weight += change["fc2"]
    block.ln_1.weight += 1
    tuned.model.token_embedding.weight += 1
    before = states(base, tuned)
    frozen = {"v": base.get_submodule(BLOCK).attn.in_proj_weight[2 * D :].clone()}
    pairs = {pair.kind: pair for pair in trained_pairs(base, tuned)}
    assert set(pairs) == {"vision v", "vision fc2"}
    assert pairs["vision v"].name == f"{BLOCK}.attn.v_proj"
    assert torch.equal(pairs["vision v"].weight, frozen["v"].double())
    for kind, expected in change.items():
        torch.testing.assert_close(pairs[f"vision {kind}"].delta, expected.double(), rtol=0, atol=1e-6)
    for was, now in zip(before, states(base, tuned), strict=True):
        assert was.keys() == now.keys()
        assert all(torch.equal(was[name], now[name]) for name in was)


def test_a_model_whose_blocks_are_untouched_is_refused(tiny_weights):
    base, tuned = (vl.load_backbone("tiny-clip", str(tiny_weights)) for _ in range(2))
    with torch.no_grad():
        tuned.model.token_embedding.weight += 1
    with pytest.raises(UserError, match="no matrix of a block was trained"):
        list(trained_pairs(base, tuned))
