import math

import pytest
import torch

from vision_lowrank.config.schema import EngineConfig
from vision_lowrank.engine.schedule import learning_rate, set_learning_rate


def rates(peak=2e-4, **options):
    config = EngineConfig(**{"lr": peak} | options)
    return [learning_rate(step, peak, config) for step in range(config.steps)]


@pytest.mark.parametrize("steps", [2, 3, 8000])
def test_the_cosine_starts_at_the_peak_and_ends_exactly_at_the_minimum(steps):
    """Card clip_lora, invariant 9."""
    values = rates(steps=steps)
    assert (values[0], values[-1]) == (2e-4, 1e-6)
    assert values == sorted(values, reverse=True)


def test_the_cosine_is_half_way_in_the_middle():
    assert rates(1.0, steps=11, min_lr=0.0)[5] == pytest.approx(0.5)
    assert rates(1.0, steps=9, min_lr=0.0)[2] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_the_warm_up_is_linear_and_wastes_no_step():
    values = rates(1.0, steps=20, warmup_steps=4, min_lr=0.1)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert values[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("warmup_steps", [1, 2, 50])
def test_a_short_run_with_a_long_warm_up_stays_positive_and_below_the_peak(warmup_steps):
    assert all(0 < value <= 1.0 for value in rates(1.0, steps=2, warmup_steps=warmup_steps))


def test_constant_stays_at_the_peak():
    assert set(rates(steps=5, schedule="constant")) == {2e-4}


def test_every_group_has_its_own_peak():
    groups = [{"params": [torch.zeros(1)], "lr": 1.0}, {"params": [torch.zeros(1)], "lr": 1e-9}]
    optimizer = torch.optim.AdamW(groups)
    config = EngineConfig(steps=5)
    assert set_learning_rate(optimizer, 0, config) == 1.0
    assert set_learning_rate(optimizer, 4, config) == 1e-6
    assert optimizer.param_groups[1]["lr"] == 1e-9
    assert set_learning_rate(optimizer, 0, config) == 1.0
