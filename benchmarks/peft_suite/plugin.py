"""A pytest plugin that gives PEFT's own tests of custom models the methods of this package in place of PEFT's.

PEFT keeps the cases of those tests in lists of the test module: a name, a toy model, a config class and its options.
They are filled anew, in place, before the tests are collected. PEFT's tests want a start that is not the base's, for
which its configs have ``init_weights=False``; here each config gets that option, which moves every trained tensor.
"""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import peft.mapping
import pytest
import torch

from vision_lowrank.adapters.tuner import METHODS, Method
from vision_lowrank.registry import registry

# What a method needs to fit the toy models, whose layers are 10 -> 20 and 20 -> 2.
NEEDED: dict[str, dict[str, Any]] = {
    "BLOCK_LORA": {"r": 2, "blocks": 2},
    "COMP_LORA": {"r": 1, "protect_rank": 1},
    "KASA": {"r": 1},
    "LAMDA": {"r": 2, "alpha": 2.0},
    "LOLDU": {},
    "LORA_XS": {"r": 2, "alpha": 2.0},
    "OFFSET_LORA": {"r": 2},
    "SLORA": {"r": 2, "alpha": 2.0},
    "SORA": {"r": 2, "alpha": 2.0},
}
PLACES: dict[str, dict[str, Any]] = {
    "one layer": {"target_modules": "lin0"},
    "both layers": {"target_modules": ["lin0", "lin1"]},
    "a saved module": {"target_modules": ["lin0"], "modules_to_save": ["lin1"]},
}
# What it needs besides where a layer has one output, as PEFT's Conv1D model has; KaSA must keep a second component.
ONE_OUTPUT: dict[str, dict[str, Any]] = {
    "BLOCK_LORA": {},
    "COMP_LORA": {"protect_rank": 0},
    "LOLDU": {},
    **{name: {"r": 1} for name in ("LAMDA", "LORA_XS", "OFFSET_LORA", "SLORA", "SORA")},
}
OUTCOMES: dict[str, tuple[str, str]] = {}


def movable(name: str) -> type:
    """Make a method's config with ``init_weights``, known to PEFT in place of the method's own."""
    method = METHODS[name]
    config = dataclasses.make_dataclass(
        method.config.__name__, [("init_weights", bool, dataclasses.field(default=True))], bases=(method.config,)
    )

    def update(weight: torch.Tensor, options: Any, key: str) -> Any:
        made = method.update(weight, options, key)
        if not options.init_weights:
            with torch.no_grad():
                for parameter in made.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        return made

    METHODS[name] = Method(config, update, method.wrapper)
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[name] = config
    return config


def cases() -> tuple[list[tuple], list[tuple]]:
    """Return the cases of one adapter, and those of two: on the same layer and on different ones."""
    registry.load("adapter")
    one, two = [], []
    for name, options in NEEDED.items():
        config = movable(name)
        one += [(f"{name} {place}", "MLP", config, options | where) for place, where in PLACES.items()]
        if name in ONE_OUTPUT:
            conv1d = options | ONE_OUTPUT[name] | {"target_modules": ["conv1d"]}
            one.append((f"{name} Conv1D", "EmbConv1D", config, conv1d))
        moved = {**options, "init_weights": False}
        pairs = {"same": ("lin0", "lin0"), "different": ("lin0", "lin1")}
        two += [
            (f"{name} {kind}", name.lower(), config, *(moved | {"target_modules": [target]} for target in targets))
            for kind, targets in pairs.items()
        ]
    return one, two


def pytest_configure(config: pytest.Config) -> None:
    """Let PEFT's helpers be imported where ``datasets``, which these tests do not use, is not installed."""
    if importlib.util.find_spec("datasets") is None:
        empty: Any = types.ModuleType("datasets")
        empty.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
        empty.load_dataset = None
        sys.modules["datasets"] = empty


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> None:
    """Fill the lists of a test module as its first name is looked at."""
    module = collector.obj
    if isinstance(module, types.ModuleType) and hasattr(module, "TEST_CASES") and not hasattr(module, "_ours"):
        module._ours = cases()
        module.TEST_CASES[:], module.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = module._ours
        module.ALL_PEFT_CONFIG_CLASSES[:] = sorted({row[2] for row in module._ours[0]}, key=lambda kind: kind.__name__)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of ours: those of PEFT's own methods have nothing to say here."""
    names = [*NEEDED, *(METHODS[name].config.__name__ for name in NEEDED)]
    kept = [item for item in items if any(name in item.nodeid for name in names)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a test ended, and why it failed, for the file that ``PEFT_SUITE_RESULTS`` names."""
    if report.when == "call" or report.outcome != "passed":
        lines = str(report.longrepr).splitlines() if report.outcome == "failed" else []
        reason = next((line[2:].strip() for line in lines if line.startswith("E ")), "")
        OUTCOMES[report.nodeid.split("::", 1)[1]] = (report.outcome, reason[:300])


def pytest_sessionfinish() -> None:
    """Write all outcomes."""
    Path(os.environ["PEFT_SUITE_RESULTS"]).write_text(json.dumps(OUTCOMES), encoding="utf-8")
