"""Several methods on the same data and splits: a fair table, and what each costs.

A sweep folder::

    METHOD/lr-RATE/seed-N/    the runs, as :mod:`vision_lowrank.studies.run` makes them
    baseline-HASH.json        of the model without adapter
    METHOD/cost.json          step time against the recipe's own adapter, measured in turns
    comparison.json           everything below, with versions and commands
    comparison.md, .csv       the table
    pareto.svg                accuracy against trained parameters

METHOD is an adapter, or ``adapter+initialiser``. The recipe says where adapters sit and how long they train; of another
adapter than the recipe's own, all other options are that method's defaults, but for overrides that it knows. Learning
rates, where several are given, are chosen per method by the first seed's validation accuracy, never by test data.
Calling :func:`compare` again goes on where it stopped. A method that cannot run here is listed with its reason and does
not stop the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

from ..config import RunConfig, environment, load_config, to_tree
from ..config.adapter import PLACES, AdapterSection
from ..engine.loop import Engine
from ..engine.task import measured_stage
from ..errors import UserError
from ..files import write_text
from ..registry import registry
from ..viz.plots import pareto
from ..viz.text import csv_text, markdown, percent
from .run import build_task, open_run, run_seed
from .trials import each_method, every_seed
from .variants import INCOMPARABLE, OTHERS, Budget, Entry, check_budget

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
ROUNDS = 10


@dataclass(frozen=True)
class Sweep:
    """What to compare.

    Attributes:
        recipe: a few-shot recipe with an adapter.
        entries: methods.
        folder: where results go.
        overrides: settings for all methods, such as ``engine.steps=100``.
        budget: ``defaults`` leaves every method its own size, ``rank`` gives all the recipe's rank, ``parameters``
            gives each the rank that comes nearest to the recipe's number of trained parameters.
        rates: learning rates to choose from; empty for the recipe's own.
    """

    recipe: Path
    entries: Sequence[Entry]
    folder: Path
    overrides: Sequence[str] = ()
    budget: Budget = "defaults"
    rates: Sequence[float] = ()

    @cached_property
    def base(self) -> RunConfig:
        """The recipe itself.

        Raises:
            UserError: an unknown budget, or a recipe without an adapter.
        """
        check_budget(self.budget)
        config = load_config(self.recipe, self.overrides)
        if not hasattr(config.task, "shots") or (config.adapter is None and config.rule is None):
            raise UserError(f"{self.recipe}: {INCOMPARABLE}")
        if self.budget != "defaults" and (config.adapter is None or "r" not in config.adapter.options):
            kind = config.adapter.type if config.adapter else "a recipe without adapter"
            raise UserError(f"budget '{self.budget}' goes by the recipe's rank, and {kind} has none.")
        return config

    @cached_property
    def target(self) -> int:
        """Number of parameters that the recipe's own adapter trains."""
        return _trained(self.base)

    def config(self, entry: Entry, r: int | None = None) -> RunConfig:
        """The recipe with another method, at the rank `r` or the method's own."""
        base = self.base
        sits = base.adapter or AdapterSection(type="lora")
        if entry.adapter is None:
            changes = ["adapter=null"]
        elif base.adapter is not None and entry.adapter == base.adapter.type:
            changes = [f"adapter.r={r}"] if r and "r" in base.adapter.options else []
        else:
            target = registry.get("adapter", entry.adapter).target
            own = getattr(target, "places", PLACES)
            section = {"type": entry.adapter, "towers": sits.towers, "layers": sits.layers}
            section["modules"] = sits.modules if own == PLACES else own
            known = {f"adapter.{key}" for key in AdapterSection.keys(entry.adapter) - {"type"}}
            given = [each for each in self.overrides if each.partition("=")[0].strip() in known]
            changes = [f"adapter={json.dumps(section)}", *given, *([f"adapter.r={r}"] if r else [])]
        parts = {"initializer": entry.initializer, **dict(entry.others)}
        for section in OTHERS:
            own = getattr(base, section)
            if parts.get(section) != (own.type if own else None):  # the recipe's own part keeps its options
                changes.append(f"{section}={json.dumps({'type': parts[section]}) if parts.get(section) else 'null'}")
        return load_config(self.recipe, [*self.overrides, *changes])


def compare(sweep: Sweep, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run what is missing of a sweep and write its files.

    Args:
        sweep: what to compare.
        say: told what is being done, one line at a time.

    Returns:
        What ``comparison.json`` holds.

    Raises:
        UserError: no method could run; the message is the first one's.
    """
    base = sweep.base
    rows = each_method({entry.name: partial(_row, sweep, entry, say) for entry in sweep.entries}, say)
    done = [row for row in rows if "failed" not in row]
    result = {
        "recipe": str(sweep.recipe),
        "overrides": list(sweep.overrides),
        "budget": sweep.budget,
        "rates": list(sweep.rates),
        "seeds": list(base.task.seeds),
        "environment": environment(),
        "target": sweep.target if sweep.budget == "parameters" else None,
        "baseline": done[0]["baseline"],
        "rows": rows,
    }
    write_text(sweep.folder / "comparison.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    header, lines = table(result)
    write_text(sweep.folder / "comparison.md", markdown(header, lines))
    write_text(sweep.folder / "comparison.csv", csv_text([header, *lines]))
    write_text(sweep.folder / "pareto.svg", figure(result))
    return result


def step_times(configs: Sequence[RunConfig], rounds: int) -> list[list[float]]:
    """Seconds of a training step on one batch: for each config, `rounds` times, the configs taking turns."""
    times: list[list[float]] = [[] for _ in configs]
    with tempfile.TemporaryDirectory() as scratch:
        engines = []
        for index, config in enumerate(configs):
            task = build_task(config, config.task.seeds[0])
            engine = Engine(config.engine, task, Path(scratch) / str(index), seed=1, rule=config.rule)
            engine.dry_step(measured_stage(task.stages()))
            engines.append(engine)
        for _ in range(rounds):
            for engine, values in zip(engines, times, strict=True):
                start = time.perf_counter()
                engine.update()
                values.append(time.perf_counter() - start)
    return times


def table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the untrained model first, then every method; accuracies in percent, mean ± spread."""
    names = [name for name in result["baseline"] if name.endswith("/accuracy")]
    header = ["method", "lr", "r", *(name.removesuffix("/accuracy") for name in names)]
    header += ["trained parameters", "step (ratio)", "step memory (MiB)"]
    lines = [["untrained", "", "", *(percent(result["baseline"][name]) for name in names), "0", "", ""]]
    for row in result["rows"]:
        if "failed" in row:
            lines.append([row["method"], f"left out: {row['failed']}", *[""] * (len(header) - 2)])
            continue
        cells = [percent(row["metrics"][name]) for name in names]
        size = f"{row['trained_parameters']:,}"
        if result["budget"] == "parameters" and not 2 / 3 < row["trained_parameters"] / result["target"] < 3 / 2:
            size += f" (target {result['target']:,})"
        cost = [size, f"{row['step_ratio']:.2f}", f"{row['peak_memory'] / 2**20:.0f}"]
        lines.append([row["method"], f"{row['lr']:g}", str(row["r"] or ""), *cells, *cost])
    return header, lines


def figure(result: Mapping[str, Any]) -> str:
    """Accuracy on the first test set against trained parameters, as SVG."""
    name = next(name for name in result["baseline"] if name.startswith("test/") and name.endswith("/accuracy"))
    points = [
        (row["method"], row["trained_parameters"], row["metrics"][name]["mean"], row["metrics"][name]["std"])
        for row in result["rows"]
        if "failed" not in row
    ]
    return pareto(points, name.removesuffix("/accuracy"), result["baseline"][name]["mean"])


def _row(sweep: Sweep, entry: Entry, say: Callable[[str], None]) -> dict[str, Any]:
    """Choose the rate, train every seed, and measure."""
    config = sweep.config(entry, _rank(sweep, entry))
    row, results = every_seed(
        partial(_seed, sweep, entry, config),
        list(sweep.rates) or [config.engine.lr],
        config.task.seeds,
        lambda line: say(f"{entry.name}: {line}"),
    )
    return {
        "method": entry.name,
        **{name: _dumped(getattr(config, name)) for name in ("adapter", *OTHERS)},
        "r": config.adapter.options.get("r") if config.adapter else None,
        **row,
        "peak_memory": results[0]["cost"]["peak_memory"],
        "train_hashes": [each["facts"]["train_hash"] for each in results],
        **_step_ratio(sweep, entry, config),
    }


def _seed(sweep: Sweep, entry: Entry, config: RunConfig, rate: float, seed: int) -> dict[str, Any]:
    folder = sweep.folder / entry.name / f"lr-{rate:g}"
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"lr": rate})})
    open_run(folder, config)
    # With text prompts the model without its adapter is the same for all methods and seeds: it is evaluated once.
    tree = to_tree(config)
    base = json.dumps([tree["backbone"], tree["data"], {**tree["task"], "seeds": None, "shots": None}])
    shared = sweep.folder / f"baseline-{hashlib.sha256(base.encode()).hexdigest()[:8]}.json"
    own = folder / f"seed-{seed}" / "baseline.json"
    if config.task.head == "text" and shared.is_file() and not own.is_file():
        own.parent.mkdir(parents=True, exist_ok=True)
        write_text(own, shared.read_text())
    result = run_seed(config, seed, folder / f"seed-{seed}")
    write_text(shared, json.dumps(result["baseline"]) + "\n")
    return result


def _rank(sweep: Sweep, entry: Entry) -> int | None:
    """The rank that the budget gives a method; None for its own."""
    adapter = sweep.config(entry).adapter
    if sweep.budget == "defaults" or adapter is None or "r" not in adapter.options:
        return None
    if sweep.budget == "rank":
        return sweep.base.adapter.options["r"]
    counts = {}
    for r in RANKS:
        try:
            counts[r] = _trained(sweep.config(Entry(entry.adapter), r))
        except UserError:  # too large for a layer, or not divisible
            continue
    if not counts:
        raise UserError(f"{entry.adapter}: no rank of {RANKS} fits the model.")
    return min(counts, key=lambda r: abs(math.log(counts[r] / sweep.target)))


def _trained(config: RunConfig) -> int:
    """Number of trained parameters."""
    return build_task(config, config.task.seeds[0]).describe()["trainable_parameters"]


def _step_ratio(sweep: Sweep, entry: Entry, config: RunConfig) -> dict[str, float]:
    """Median time of a step and its ratio to the recipe's own adapter, both taking turns; kept for when it goes on."""
    path = sweep.folder / entry.name / "cost.json"
    if path.is_file():
        return json.loads(path.read_text())
    times = step_times([sweep.base, config], ROUNDS)
    ratio = median(own / other for other, own in zip(*times, strict=True))
    cost = {"step_seconds": median(times[1]), "step_ratio": ratio}
    write_text(path, json.dumps(cost) + "\n")
    return cost


def _dumped(section: Any) -> Any:
    return None if section is None else section.model_dump(mode="json")
