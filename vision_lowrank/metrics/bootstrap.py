"""Confidence intervals by bootstrap over sources.

A photograph and its edits ("twins") share a source and are not independent. So sources are drawn, not pictures: S of S
sources with replacement, each with all its pictures, 1,000 times; every metric is computed anew on the rows drawn, and
the interval is between the (1 - level) / 2 and (1 + level) / 2 quantiles of its values (percentile bootstrap, Efron
1979; by clusters, Davison & Hinkley 1997, 3.8).

    bootstrap(lambda rows: detection_report(scores[rows], edited[rows]), sources)["auc"].low
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import UserError

Metrics = Callable[[np.ndarray], Mapping[str, float | None]]


@dataclass(frozen=True)
class Interval:
    """A metric with its confidence interval.

    Attributes:
        value: on all pictures; None where it is undefined.
        low: lower end; None where every resample left the metric undefined.
        high: upper end.
        resamples: in which the metric was defined; the others are left out of the interval.
    """

    value: float | None
    low: float | None
    high: float | None
    resamples: int


def bootstrap(
    metrics: Metrics, sources: ArrayLike, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Compute intervals of every metric that a function of row numbers returns.

    Args:
        metrics: takes (n,) int64 row numbers, repeats allowed, and returns named values; None or NaN = undefined.
        sources: (N,) names or numbers: rows with the same one are drawn together. ``np.arange(N)`` draws pictures.
        resamples: number of draws.
        seed: of the draws; the same for the same result.
        level: of the interval, in (0, 1).

    Raises:
        UserError: there are no rows, or a number is out of range.
    """
    keys = np.unique(np.asarray(sources), return_inverse=True)[1].reshape(-1)
    if not len(keys) or resamples < 1 or not 0 < level < 1:
        raise UserError(
            f"bootstrap of {len(keys)} rows, {resamples} resamples, level {level:g}: give 1 or more, 1 or more, and "
            "a level between 0 and 1."
        )
    order, sizes = np.argsort(keys, kind="stable"), np.bincount(keys)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    whole = metrics(np.arange(len(keys)))
    draws: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(resamples):
        for name, value in metrics(_draw(order, starts, sizes, rng)).items():
            if value is not None and not math.isnan(value):
                draws[name].append(float(value))
    tails = [50 * (1 - level), 50 * (1 + level)]
    found = {}
    for name, value in whole.items():
        low, high = np.percentile(draws[name], tails).tolist() if draws[name] else (None, None)
        known = value is not None and not math.isnan(value)
        found[name] = Interval(value if known else None, low, high, len(draws[name]))
    return found


def _draw(order: np.ndarray, starts: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw rows of as many sources as there are, with replacement."""
    chosen = rng.integers(0, len(sizes), len(sizes))
    counts = sizes[chosen]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[np.repeat(starts[chosen], counts) + within]
