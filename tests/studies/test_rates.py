"""A run's learning rate chosen by validation, and what its adapter is measured against."""

import pytest

from vision_lowrank.config import load_config
from vision_lowrank.engine.step_runner import TrainingDiverged
from vision_lowrank.errors import UserError
from vision_lowrank.studies.rates import choose_rate
from vision_lowrank.studies.references import run_references, warnings_of


class Trainer:
    """A stand-in for ``run_seed``: validation accuracy by rate; None diverges."""

    def __init__(self, values):
        self.values, self.asked = values, []

    def __call__(self, config, seed, folder):
        self.asked.append((config.engine.lr, seed, folder))
        value = self.values[config.engine.lr]
        if value is None:
            raise TrainingDiverged("the loss is nan")
        folder.mkdir(parents=True)
        return {"metrics": value}


def val(value):
    return {"val/accuracy": value}


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ((), (5e-4, 2e-3, 8e-3)),
        (("adapter={type: lofit}",), (2e-3, 1e-2, 5e-2)),
        (("adapter=null", "rule={type: lisa}"), (2e-5, 1e-4, 5e-4)),
        (("adapter=null", "task.head=linear"), (3e-3, 1e-2, 3e-2)),
        (("rates=[0.1,0.2]",), (0.1, 0.2)),
    ],
)
def test_auto_is_three_rates_that_suit_what_trains(shapes, changes, rates):
    config = load_config(shapes, ("engine.lr=auto", *changes))
    assert config.rates == rates
    assert config.engine.lr == rates[len(rates) // 2]
    assert load_config(shapes).rates == ()


def test_the_best_on_validation_is_taken_and_its_training_kept(shapes, tmp_path):
    config = load_config(shapes, ("rates=[0.1,0.2,0.4,0.8]",))
    train = Trainer({0.1: val(0.5), 0.2: val(0.75), 0.4: None, 0.8: val(float("nan"))})
    chosen, found = choose_rate(config, tmp_path, train)
    assert (chosen.engine.lr, chosen.rates) == (0.2, ())
    assert found == {"0.1": 0.5, "0.2": 0.75, "0.4": None, "0.8": None}
    assert {seed for _, seed, _ in train.asked} == {1}
    assert (tmp_path / "seed-1").is_dir()
    assert not (tmp_path / "rates" / "lr-0.2" / "seed-1").exists()
    again = Trainer({})
    assert choose_rate(config, tmp_path, again) == (chosen, found)
    assert not again.asked


def test_without_a_choice_nothing_is_trained_and_without_validation_it_is_refused(shapes, tmp_path):
    config = load_config(shapes)
    assert choose_rate(config, tmp_path, Trainer({})) == (config, {})
    config = load_config(shapes, ("rates=[0.1]",))
    with pytest.raises(UserError, match="no val/accuracy to choose by"):
        choose_rate(config, tmp_path / "a", Trainer({0.1: {}}))
    with pytest.raises(UserError, match=r"diverges at every rate of 0\.1"):
        choose_rate(config, tmp_path / "b", Trainer({0.1: None}))


def test_references_are_trained_beside_and_what_cannot_be_is_said(shapes, tmp_path):
    config = load_config(shapes, ("references=[zero_shot,linear_probe,full]",))
    configs = []

    def train(config, seed, folder):
        configs.append((config, seed, folder))
        if config.rule is not None:
            raise UserError("no")
        return {"metrics": {"test/test/accuracy": 0.5}}

    found = run_references(config, tmp_path, train, {"1": {"test/test/accuracy": 0.25}})
    assert found == {
        "zero_shot": {"seeds": {"1": {"test/test/accuracy": 0.25}}},  # the untrained model it is already
        "linear_probe": {"seeds": {seed: {"test/test/accuracy": 0.5} for seed in "12"}},
        "full": {"left_out": "no"},
    }
    assert all(each.adapter is None for each, _, _ in configs)
    assert configs[0][2] == tmp_path / "references" / "linear_probe" / "seed-1"


def test_an_adapter_below_a_reference_is_warned_of():
    def result(own, probe):
        references = {"linear_probe": {"metrics": {"test/a/accuracy": {"mean": probe}}}, "full": {"left_out": "no"}}
        metrics = {"test/a/accuracy": {"mean": own}}
        return {"name": "mine", "task": "fewshot", "metrics": metrics, "references": references}

    (said,) = warnings_of(result(0.5, 0.625))
    assert said.startswith("mine ends below linear_probe in test/a/accuracy: 50.0% against 62.5%.")
    assert not warnings_of(result(0.5, 0.5))
