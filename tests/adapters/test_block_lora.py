import numpy as np
import peft
import pytest
import torch
from torch import nn

from vision_lowrank.adapters.block_lora import BlockLora, BlockLoraConfig
from vision_lowrank.adapters.tuner import report
from vision_lowrank.errors import UserError


def update(out_features=7, in_features=5, **options):
    weight = torch.randn(out_features, in_features, dtype=torch.float64)
    return BlockLora(weight, BlockLoraConfig(**options), "layer").double()


def test_starts_at_zero_with_lora_initialisation_of_the_shared_projection():
    block = update(40, 100, r=40, blocks=2)
    assert torch.count_nonzero(block.delta()) == 0
    assert block.A.abs().max() <= 0.1
    assert float(block.A.detach().std()) == pytest.approx(0.1 / np.sqrt(3), rel=0.05)


def test_output_is_the_sum_over_arms():
    block = update(r=4, blocks=2, alpha=3.0)
    nn.init.normal_(block.B)
    x = torch.randn(6, 5, dtype=torch.float64)
    naive = sum(3.0 / 2.0 * (x @ block.A.T) @ block.B[i].T for i in range(2))
    torch.testing.assert_close(block(x), naive, rtol=1e-12, atol=1e-12)


def test_rank_is_r_over_blocks():
    block = update(30, 20, r=6, blocks=3)
    nn.init.normal_(block.B)
    assert np.linalg.matrix_rank(block.delta().detach().numpy()) == 2


def test_one_block_is_lora():
    block = update(r=3, blocks=1, alpha=2.0, scaling="lora")
    nn.init.normal_(block.B)
    torch.testing.assert_close(block.delta(), 2 / 3 * block.B[0] @ block.A)
    assert sum(p.numel() for p in block.parameters()) == 3 * (7 + 5)


def test_gradients_of_all_arms_are_one():
    block = update(r=6, blocks=3)
    nn.init.normal_(block.B)
    G = torch.randn(7, 5, dtype=torch.float64)
    (block.delta() * G).sum().backward()
    s = 1 / np.sqrt(6)
    torch.testing.assert_close(block.B.grad, (s * G @ block.A.T).expand(3, 7, 2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(block.A.grad, s * block.B.sum(0).T @ G, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_that_of_lora_of_block_rank_with_n_times_the_rate_on_b(optimiser):
    blocks, rate = 3, 0.01
    torch.manual_seed(0)
    block = update(r=6, blocks=blocks)
    A = nn.Parameter(block.A.detach().clone())
    B = nn.Parameter(torch.zeros(7, 2, dtype=torch.float64))
    target, s = torch.randn(7, 5, dtype=torch.float64), 1 / np.sqrt(6)
    ours = optimiser(block.parameters(), lr=rate)
    control = optimiser([{"params": [A]}, {"params": [B], "lr": blocks * rate}], lr=rate)
    for _ in range(20):
        for delta, step in ((block.delta, ours), (lambda: s * B @ A, control)):
            step.zero_grad()
            (delta() - target).square().sum().backward()
            step.step()
    torch.testing.assert_close(block.B.sum(0), B, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(block.A, A, rtol=1e-10, atol=1e-10)
    assert torch.equal(block.B[0], block.B[1])
    assert torch.equal(block.B[0], block.B[2])
    assert B.abs().max() > 0.01


def test_dropout_uses_one_mask_for_all_arms():
    block = update(r=4, blocks=2, dropout=0.5).train()
    with torch.no_grad():
        block.B[0], block.B[1] = 1.0, -1.0
    assert torch.count_nonzero(block(torch.randn(50, 5, dtype=torch.float64))) == 0


def test_published_parameter_count_on_clip_vit_b16():
    shapes = [(768, 768)] * 36 + [(512, 512)] * 36
    counts = {}
    for r, n in ((2, 1), (2, 2), (4, 2), (4, 4), (8, 8)):
        made = [BlockLora(torch.empty(shape), BlockLoraConfig(r=r, blocks=n), "") for shape in ((768, 768), (512, 512))]
        each = {tuple(block.A.shape[1:]): sum(p.numel() for p in block.parameters()) for block in made}
        counts[r, n] = sum(each[shape[1],] for shape in shapes)
    assert counts == {(2, 1): 184_320, (2, 2): 138_240, (4, 2): 276_480, (4, 4): 230_400, (8, 8): 414_720}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 5, "blocks": 2}, "r = 5 is not divisible by blocks = 2"),
        ({"r": 2, "blocks": 0}, "blocks = 0"),
        ({"r": 0}, "rank must be at least 1"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"scaling": "rslra"}, "Did you mean 'rslora'?"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        BlockLoraConfig(**options)
    assert words in str(error.value)


def test_a_rank_too_large_names_the_layer_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    with pytest.raises(UserError, match=r"'1'.*largest r allowed there is 6"):
        peft.get_peft_model(model, BlockLoraConfig(r=8, blocks=2, target_modules=["0", "1"]))
    assert [type(module) for module in model] == [nn.Linear, nn.Linear]


def test_each_layer_reports_the_block_rank_and_the_sizes_of_both_controls():
    model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 10)), BlockLoraConfig(r=4, blocks=2, target_modules=["0"]))
    (facts,) = report(model).values()
    assert facts == {
        "rank": 2,
        "nominal_rank": 4,
        "parameters": 2 * 6 + 4 * 10,
        "lora_at_block_rank": 2 * (6 + 10),
        "lora_at_nominal_rank": 4 * (6 + 10),
    }
    assert facts["parameters"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
