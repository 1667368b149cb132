"""What every comparison does: a row per method, all seeds at one learning rate, chosen where several are given."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import UserError
from .run import summarise

Row = dict[str, Any]
SELECT = "val/accuracy"


def each_method(methods: Mapping[str, Callable[[], Row]], say: Callable[[str], None]) -> list[Row]:
    """A row of every method; one that cannot run is listed with its reason and does not stop the others.

    Args:
        methods: name -> what runs it and gives its row.
        say: told what is being done, one line at a time.

    Raises:
        UserError: no method could run; the message is the first one's.
    """
    rows, started = [], time.perf_counter()
    for index, (name, row) in enumerate(methods.items()):
        minutes = (time.perf_counter() - started) / 60
        say(f"method {index + 1} of {len(methods)}: {name} ({minutes:.0f} min so far)")
        try:
            rows.append(row())
        except (UserError, RuntimeError) as error:  # out of memory, for one
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append({"method": name, "failed": reason})
            say(f"{name} left out: {reason}")
    if all("failed" in row for row in rows):
        raise UserError(rows[0]["failed"] if rows else "compare: no method was named.")
    return rows


def every_seed(
    run: Callable[[float, int], Row], rates: Sequence[float], seeds: Sequence[int], say: Callable[[str], None]
) -> tuple[Row, list[Row]]:
    """Choose the learning rate by the first seed's validation accuracy, where there are several, and run every seed.

    Args:
        run: (rate, seed) -> what :func:`~vision_lowrank.studies.run.run_seed` gives; a finished one is read back.
        rates: to choose from, at least one.
        seeds: at least one.
        say: told what is being run.

    Returns:
        The columns of a row that every method has, and the results of all seeds.

    Raises:
        UserError: there are several rates and no validation accuracy.
    """
    validation = {}
    for rate in rates if len(rates) > 1 else []:
        say(f"learning rate {rate:g}, seed {seeds[0]}")
        metrics = run(rate, seeds[0])["metrics"]
        if SELECT not in metrics:
            raise UserError("there are no validation pictures to choose a learning rate by: give one --lr.")
        validation[rate] = metrics[SELECT]
    rate = max(validation, key=lambda each: validation[each]) if validation else rates[0]
    results = []
    for seed in seeds:
        say(f"learning rate {rate:g}, seed {seed}")
        results.append(run(rate, seed))
    return {
        "lr": rate,
        "validation": {f"{rate:g}": value for rate, value in validation.items()},
        "baseline": summarise(each["baseline"] for each in results),
        "metrics": summarise(each["metrics"] for each in results),
        "trained_parameters": results[0]["facts"]["trainable_parameters"],
    }, results
