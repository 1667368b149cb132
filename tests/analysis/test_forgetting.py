import math

import pytest
import torch

from vision_lowrank.analysis.forgetting import forgetting, forgetting_along, forgetting_of_logits
from vision_lowrank.errors import UserError

BEFORE = {"retention/noto/accuracy": 0.75, "retention/noto/loss": 1.0, "only/before": 1.0}


def test_positive_is_lost_for_accuracies_and_losses():
    after = {"retention/noto/accuracy": 0.5, "retention/noto/loss": 1.5, "only/after": 0.0}
    assert forgetting(BEFORE, after) == {"retention/noto/accuracy": 0.25, "retention/noto/loss": 0.5}
    with pytest.raises(UserError, match="no metric in common"):
        forgetting(BEFORE, {"only/after": 0.0})


def test_from_logits():
    labels = torch.tensor([0, 1, 2, 0])
    before = torch.nn.functional.one_hot(labels, 3) * 1e4
    after = before.clone()
    after[0] = 0  # ties of three: loss ln 3
    after[1] = torch.tensor([1e4, 0, 0])
    lost = forgetting_of_logits(before, after, labels)
    assert lost["accuracy"] == pytest.approx(0.25)
    assert lost["loss"] == pytest.approx((math.log(3) + 1e4) / 4)
    with pytest.raises(UserError, match="same samples"):
        forgetting_of_logits(before, after[1:], labels)


def test_along_the_sweep_in_the_order_of_lambda():
    sweep = {1.0: {"retention/noto/accuracy": 0.25}, 0.0: {"retention/noto/accuracy": 0.5}}
    assert forgetting_along(BEFORE, sweep) == {"retention/noto/accuracy": [(0.0, 0.25), (1.0, 0.5)]}
