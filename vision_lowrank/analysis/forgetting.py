"""What adapting cost of what the model could do before.

forgetting = before - after for what should be high (accuracies), after - before for losses: positive is lost, in the
unit of the metric (arXiv 2410.21228 reports the loss on the pretraining distribution; for vision models that is the
accuracy of the original head, zero-shot accuracy, or k-NN accuracy). Only sets that both sides have are compared.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import UserError
from ..metrics.classification import classification_metrics


def forgetting(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Compute what was lost, metric by metric.

    Args:
        before: metrics of the untouched model, such as ``{"retention/noto/accuracy": 0.5}``.
        after: those of the adapted one.

    Raises:
        UserError: the two have no metric in common.
    """
    shared = [name for name in before if name in after]
    if not shared:
        raise UserError("before and after have no metric in common: evaluate both on the same sets.")
    return {name: _sign(name) * (before[name] - after[name]) for name in shared}


def forgetting_of_logits(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute what was lost on one set.

    Args:
        before: logits (N, C) of the untouched model.
        after: logits (N, C) of the adapted one, for the same samples and classes.
        labels: (N,) int64.

    Raises:
        UserError: the shapes differ.
        DataError: N is zero.
    """
    if before.shape != after.shape or len(labels) != len(before):
        shapes = f"{tuple(before.shape)}, {tuple(after.shape)} and {tuple(labels.shape)}"
        raise UserError(f"logits and labels have shapes {shapes}: give (N, C), (N, C) and (N,) of the same samples.")
    return forgetting(classification_metrics(before, labels), classification_metrics(after, labels))


def forgetting_along(
    before: Mapping[str, float], sweep: Mapping[float, Mapping[str, float]]
) -> dict[str, list[tuple[float, float]]]:
    """Compute what was lost along λ: metric -> (λ, forgetting) pairs, λ ascending.

    Args:
        before: metrics of the untouched model.
        sweep: λ -> metrics, from :func:`.mitigation.sweep`; every λ must have every metric it shares with `before`.

    Raises:
        UserError: a λ has no metric in common with `before`.
    """
    rows = {keep: forgetting(before, sweep[keep]) for keep in sorted(sweep)}
    return {
        name: [(keep, row[name]) for keep, row in rows.items() if name in row]
        for name in before
        if any(name in row for row in rows.values())
    }


def _sign(name: str) -> int:
    return -1 if name.endswith("loss") else 1
