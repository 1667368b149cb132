"""Reliability of a detector's probabilities, from the rows that a run keeps of every picture.

With 15 bins of equal width over [0, 1], b-th mean probability p_b, share y_b that was edited and share w_b of all
pictures, ECE = sum of w_b |p_b - y_b|: the definition of :mod:`vision_lowrank.metrics.image_level`, repeated
because a report reads results only.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ...errors import ArtefactError

BINS = 15


def read_pictures(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read set -> probabilities (N,) and whether the pictures were edited (N,) bool; empty where there is no file.

    Raises:
        ArtefactError: the file is damaged.
    """
    if not path.is_file():
        return {}
    columns: dict[str, list[tuple[float, bool]]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                columns.setdefault(row["set"], []).append((float(row["probability"]), row["label"] != "0"))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ArtefactError(f"{path}: damaged ({error}): run the evaluation again.") from None
    return {name: (np.array([p for p, _ in rows]), np.array([y for _, y in rows])) for name, rows in columns.items()}


def reliability(p: np.ndarray, edited: np.ndarray) -> list[tuple[float, float, float]]:
    """Compute (mean probability, share edited, share of all pictures) of the 15 equal-width bins that hold pictures."""
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    own = [place == number for number in np.unique(place)]
    return [(float(p[each].mean()), float(edited[each].mean()), float(each.mean())) for each in own]


def calibration_error(p: np.ndarray, edited: np.ndarray) -> float:
    """Compute the ECE: what the bins' probabilities and shares differ by, weighted by their pictures."""
    return sum(mass * abs(mean - share) for mean, share, mass in reliability(p, edited))


def uncalibrated(p: np.ndarray, temperature: float) -> np.ndarray:
    """Compute sigmoid(s) from sigmoid(s / T), which the file rounds to six digits.

    0 and 1 are taken as half a digit away.
    """
    near = np.clip(p, 5e-7, 1 - 5e-7)
    return 1 / (1 + ((1 - near) / near) ** temperature)
