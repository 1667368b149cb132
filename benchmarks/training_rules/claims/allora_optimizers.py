"""ALLoRA: does it learn faster than LoRA in a short training, under SGD and under AdamW?

One run at a constant learning rate per method, optimiser and seed, measured on its way. Both methods have scale 1 and
no dropout, so that the rule is all that differs. SGD has momentum 0.9 and, per method, the rate of three that gives the
best validation accuracy at the first measured step, first seed; AdamW has the recipe's rate for both. Two seeds.
"""

from __future__ import annotations

from typing import Any

from shared import STYLE, Budget, train, training_loss

from vision_lowrank.config import RunConfig
from vision_lowrank.engine.evaluation import evaluate_sets
from vision_lowrank.engine.hooks import Hook
from vision_lowrank.engine.loop import Engine
from vision_lowrank.studies.run import summarise

AT = (50, 100, 200)
FULL = Budget().steps
RATES = {"lora": (0.025, 0.05, 0.1), "allora": (0.05, 0.1, 0.2)}
PLAIN = ("adapter.alpha=4", "adapter.scaling=lora", "adapter.dropout=0")
SGD = ("engine.optimizer=sgd", "engine.momentum=0.9", "engine.weight_decay=0")


def allora_optimizers(budget: Budget) -> list[dict[str, Any]]:
    """Measure accuracy and loss on the training pictures after 50, 100 and 200 steps."""
    at = [max(1, step * budget.steps // FULL) for step in AT]
    rows = []
    for method in RATES:
        for optimizer, changes in (("sgd", SGD), ("adamw", ())):
            config = constant(budget, method, at[-1], *changes)
            rates = RATES[method] if optimizer == "sgd" else (config.engine.lr,)
            validation = {rate: validated(budget, method, at[0], rate, *changes) for rate in rates if len(rates) > 1}
            rate = max(validation, key=lambda each: validation[each]) if validation else rates[0]
            config = constant(budget, method, at[-1], *changes, f"engine.lr={rate}")
            found = [measured(config, seed, at) for seed in budget.seeds[:2]]
            row = {"method": method, "optimizer": optimizer, "rate": rate, "validation": validation}
            rows += [row | {"steps": step, **summarise(each[str(step)] for each in found)} for step in at]
    return rows


def constant(budget: Budget, method: str, steps: int, *changes: str) -> RunConfig:
    """Load the recipe with scale 1 and without dropout, at a constant rate, for as many steps."""
    return budget.config(method, *PLAIN, "engine.schedule=constant", f"engine.steps={steps}", *changes)


def validated(budget: Budget, method: str, steps: int, rate: float, *changes: str) -> float:
    """Compute the validation accuracy at the first seed after as many steps."""
    engine = train(constant(budget, method, steps, *changes, f"engine.lr={rate}"), budget.seeds[0])
    return engine.evaluate("val")["val/accuracy"]


def measured(config: RunConfig, seed: int, at: list[int]) -> dict[str, dict[str, float]]:
    """Measure step -> accuracy on the trained style and loss on the training pictures."""
    along = Along(at)
    train(config, seed, hooks=[along])
    return along.found


class Along(Hook):
    """Measures after the steps `at`; what it found is in the checkpoint of the finished run."""

    def __init__(self, at: list[int]) -> None:
        self.at, self.found = at, {}

    def after_step(self, engine: Engine) -> None:
        """Measure, where it is time."""
        if engine.step not in self.at:
            return
        name = STYLE.removesuffix("/accuracy")
        sets = {name: engine.task.eval_sets("test")[name]}
        metrics, _ = evaluate_sets(engine.task, sets, engine.settings, engine.runtime, engine.display, seed=engine.seed)
        loss = float(training_loss(engine)().detach())
        self.found[str(engine.step)] = {"accuracy": metrics[STYLE], "loss": loss}

    def state_dict(self) -> dict[str, Any]:
        """Return what was found."""
        return {"found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self.found = state["found"]
