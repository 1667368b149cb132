"""Classification metrics over gathered outputs.

``accuracy`` is top-1 over all pictures (never a per-class mean), the convention of the few-shot literature;
``class_accuracy`` is the mean over classes that occur; ``top5``, where there are more than five classes, counts a hit
among the five highest logits; ``loss`` is the mean cross-entropy. All but ``loss`` are fractions in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from ..errors import DataError


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute the metrics of one evaluated set.

    Args:
        logits: (n, C) float.
        labels: (n,) int64, 0 <= label < C.

    Raises:
        DataError: n is zero, where none of the metrics is defined.
    """
    if len(labels) == 0:
        raise DataError("cannot compute metrics of an empty set: the test split has no pictures.")
    logits = logits.float()
    classes = logits.shape[1]
    present = torch.bincount(labels, minlength=classes) > 0
    per_class = multiclass_accuracy(logits, labels, num_classes=classes, average="none")
    top5 = {}
    if classes > 5:
        top5["top5"] = multiclass_accuracy(logits, labels, num_classes=classes, average="micro", top_k=5).item()
    return {
        "accuracy": multiclass_accuracy(logits, labels, num_classes=classes, average="micro").item(),
        "class_accuracy": per_class[present].mean().item(),
        **top5,
        "loss": F.cross_entropy(logits, labels).item(),
    }


def harmonic_mean(one: float, other: float) -> float:
    """Compute 2ab / (a + b), 0 where both are 0: base-to-novel's summary of two accuracies."""
    return 2 * one * other / (one + other) if one + other else 0.0


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Count predictions, (C, C) int64: row = true class, column = predicted class."""
    return multiclass_confusion_matrix(logits, labels, num_classes=logits.shape[1])
