"""How a metric is shown and in which direction it is better, by the last word of its name: ``test/seen/pixel_f1`` is an
``f1``, a share, shown in percent. The one place that knows.

What is not listed here is shown as it is, and more of it is better.
"""

from __future__ import annotations

SHARES = {
    "accuracy", "top5", "auc", "ap", "ap50", "f1", "iou", "recall", "precision", "rate", "ece", "localisation", "area",
    "exact", "hamming", "map", "op50", "op75", "ao", "sr50", "sr75",
}  # fmt: skip
LESS_IS_BETTER = {"loss", "ece", "brier", "rate", "localisation", "area", "forgetting", "drop"}
SESSIONS = ("session/", "incremental/")  # class-incremental learning: all of it shares


def is_share(name: str) -> bool:
    """Tell whether a metric lies in [0, 1] and is shown in percent."""
    return _word(name) in SHARES or name.startswith(SESSIONS)


def larger_is_better(name: str) -> bool:
    """Tell whether more of a metric is better: the direction that selections and tables go by."""
    return _word(name) not in LESS_IS_BETTER


def sign(name: str) -> int:
    """Return 1 where more of a metric is better, -1 where less is."""
    return 1 if larger_is_better(name) else -1


def title(name: str) -> str:
    """Return a table column's title: ``incremental/last_accuracy`` is ``last``, ``…/harmonic_mean`` two words."""
    return name.rpartition("/")[2].removesuffix("_accuracy").replace("_", " ")


def told(name: str) -> str:
    """Return the name of a metric or a set as people are told it: ``test/test/accuracy`` is ``test/accuracy``."""
    kind, _, rest = name.partition("/")
    return rest if rest.partition("/")[0] == kind else name


def _word(name: str) -> str:
    return name.rpartition("/")[2].rpartition("_")[2]
