"""From the logit of a detector to a probability and a verdict, fitted on validation pictures.

* temperature: p = sigmoid(s / T) with T in [0.05, 20] minimising the negative log-likelihood (Guo et al. 2017). It is
  convex in 1 / T, hence has one minimum in log T, which golden section finds; T never makes it worse than T = 1, and
  keeps the order of pictures.
* threshold for a false-positive rate f, on n real pictures: the k = floor(f n) highest probabilities may raise an alarm
  (p >= threshold). The threshold lies halfway between the highest probability that must not and the next higher one (1
  where there is none), so that at most f of the real pictures alarm, whatever the ties.
* `interval`: exact binomial (Clopper & Pearson 1934) interval of the false-positive rate, 95 %, from the alarms at the
  threshold. The threshold was chosen on the same pictures: read it as how little n pictures can tell.
* `uncertain`: between the thresholds of 5 % and of 1 % false positives the verdict is "uncertain". A threshold that a
  person asks for (`at`, `fixed`) is a decision: it has no band.
* With fewer than 100 real pictures the threshold is 0.5 without band, and `origin` says so.

Reliability before and after is compared by :func:`calibration_report`: ECE, negative log-likelihood and Brier score of
sigmoid(s) and of sigmoid(s / T) on the same pictures. On the pictures of the fit this shows what was gained; for a
number to report, give it pictures of the test set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import ArtefactError, UserError
from .image_level import expected_calibration_error

ENOUGH = 100
LOWEST, HIGHEST = 0.05, 20.0
KEPT = 2000


@dataclass(frozen=True)
class Calibration:
    """How a detector's logits become probabilities and verdicts; the default is not calibrated.

    Attributes:
        temperature: T.
        threshold: on the probability; above 1 where no real picture may alarm and some have probability 1.
        origin: where the threshold comes from, for readers.
        uncertain: the band [low, high) of probabilities without a verdict; None = no band.
        interval: of the false-positive rate at the threshold, 95 %; None without real pictures.
        reals: real validation pictures.
        edits: edited validation pictures.
        real_scores: sorted probabilities of the real validation pictures; of more than 2000, the order statistics of
            ranks ceil(i n / 2000), i = 1…2000, from which thresholds err towards fewer alarms.
    """

    temperature: float = 1.0
    threshold: float = 0.5
    origin: str = "0.5: not calibrated"
    uncertain: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    reals: int = 0
    edits: int = 0
    real_scores: tuple[float, ...] = ()

    @classmethod
    def fit(cls, logits: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> Calibration:
        """Fit temperature, threshold for 5 % false positives and the uncertain band.

        Args:
            logits: (N,) of "edited".
            labels: (N,); 0 real, anything else edited. Where a class is missing, the temperature stays 1.

        Raises:
            UserError: shapes differ, or a logit is not finite.
        """
        s, y = _logits(logits, labels)
        temperature = fit_temperature(s, y) if y.any() and not y.all() else 1.0
        reals = np.sort(expit(s[~y] / temperature))
        if len(reals) > KEPT:
            reals = reals[_ranks(len(reals)) - 1]
        start = cls(
            temperature=temperature,
            reals=int((~y).sum()),
            edits=int(y.sum()),
            real_scores=tuple(reals.tolist()),
        )
        found = start.at(0.05)
        if found.reals < ENOUGH:
            return found
        return replace(found, uncertain=(found.threshold, start.at(0.01).threshold))

    def probability(self, logits: Tensor) -> Tensor:
        """Compute sigmoid(logits / T), any shape, float64 on the CPU, as thresholds are compared."""
        return torch.from_numpy(expit(logits.detach().cpu().double().numpy() / self.temperature))

    def at(self, fpr: float) -> Calibration:
        """Copy with the threshold of a false-positive rate and no band.

        Raises:
            UserError: `fpr` is not between 0 and 1.
        """
        if not 0 < fpr < 1:
            raise UserError(f"false-positive rate {fpr:g}: give one between 0 and 1, such as fpr=0.01.")
        if self.reals < ENOUGH:
            return self._with(0.5, f"0.5: fewer than {ENOUGH} real validation pictures ({self.reals})")
        return self._with(self._threshold(fpr), f"fpr={fpr:g} on {self.reals} real validation pictures")

    def fixed(self, threshold: float) -> Calibration:
        """Copy with a given threshold and no band.

        Raises:
            UserError: `threshold` is not a probability.
        """
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold {threshold:g}: give a probability, 0 to 1.")
        return self._with(float(threshold), f"{threshold:g}: given")

    def verdict(self, p: float) -> Literal["edited", "real", "uncertain"]:
        """Classify a picture of calibrated probability `p`."""
        if self.uncertain is not None and self.uncertain[0] <= p < self.uncertain[1]:
            return "uncertain"
        return "edited" if p >= self.threshold else "real"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in JSON's types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Calibration:
        """Build from what :meth:`to_dict` wrote.

        Raises:
            ArtefactError: keys or types are not what it writes.
        """
        names = {field.name for field in fields(cls)}
        try:
            values = {name: tuple(map(float, v)) if isinstance(v, list) else v for name, v in tree.items()}
            found = cls(**values)
            sound = set(tree) == names and found.temperature > 0 and found.threshold >= 0 and found.reals >= 0
            sound &= all(pair is None or len(pair) == 2 for pair in (found.uncertain, found.interval))
            sound &= len(found.real_scores) == min(found.reals, KEPT)
        except (AttributeError, TypeError, ValueError):
            sound = False
        if not sound:
            raise ArtefactError(f"calibration: needs {', '.join(sorted(names))} as to_dict() writes: calibrate again.")
        return found

    def _with(self, threshold: float, origin: str) -> Calibration:
        interval = binomial_interval(self._alarms(threshold), self.reals) if self.reals else None
        return replace(self, threshold=threshold, origin=origin, uncertain=None, interval=interval)

    def _threshold(self, fpr: float) -> float:
        """Find the smallest sound threshold: at most `fpr` of the real pictures at or above it."""
        scores = np.asarray(self.real_scores)
        allowed = math.floor(fpr * self.reals + 1e-9)  # 0.29 * 100 is 28.999…
        barred = scores[np.searchsorted(_ranks(self.reals), self.reals - allowed)]
        above = scores[scores > barred]
        return float(max((barred + (above[0] if len(above) else 1.0)) / 2, np.nextafter(barred, 2.0)))

    def _alarms(self, threshold: float) -> int:
        """Count real pictures at or above `threshold`; of over 2000, an upper bound less than n / 2000 too high."""
        below = int(np.searchsorted(self.real_scores, threshold))
        return self.reals - (int(_ranks(self.reals)[below - 1]) if below else 0)


def fit_temperature(logits: np.ndarray, edited: np.ndarray) -> float:
    """Find the T in [0.05, 20] of the smallest negative log-likelihood, within 1e-6 in log T.

    Args:
        logits: (N,) float64.
        edited: (N,) bool, both classes.
    """
    best = golden_section(lambda t: negative_log_likelihood(logits / math.exp(t), edited), LOWEST, HIGHEST)
    return min((1.0, best), key=lambda temperature: negative_log_likelihood(logits / temperature, edited))


def golden_section(loss: Callable[[float], float], lowest: float, highest: float) -> float:
    """Find the x in [lowest, highest] with the least loss(log x), which has one minimum there."""
    low, high, ratio = math.log(lowest), math.log(highest), (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-6:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


def negative_log_likelihood(logits: np.ndarray, edited: np.ndarray) -> float:
    """Compute the mean of log(1 + exp(-s)) over edited and log(1 + exp(s)) over real pictures, in nats."""
    return float(np.logaddexp(0.0, np.where(edited, -logits, logits)).mean())


def expit(values: ArrayLike) -> np.ndarray:
    """Compute sigmoid(x) of any shape in float64, each number alone: SciPy's to the last bit, without SciPy.

    Torch's and NumPy's may give equal numbers other values in other places of a tensor.
    """
    x = np.asarray(values, dtype=np.float64)
    return np.fromiter(map(_expit, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def _expit(x: float) -> float:
    try:
        return 1 / (1 + math.exp(-x))
    except OverflowError:
        return 0.0


def binomial_interval(hits: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Compute the exact (Clopper-Pearson) interval of a share, seen in `hits` of `total`; `total` at least 1."""
    from scipy.stats import beta  # a second to import, and only what fits a threshold needs it

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, total - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, total - hits)) if hits < total else 1.0
    return low, high


def calibration_report(
    logits: Tensor | ArrayLike, labels: Tensor | ArrayLike, calibration: Calibration
) -> dict[str, float | None]:
    """Compute reliability before and after.

    Args:
        logits: (N,).
        labels: (N,); 0 real, anything else edited.
        calibration: what is compared with none.

    Returns:
        ``ece``, ``nll`` and ``brier``, each ``…_before`` (T = 1) and ``…_after``; ``temperature``, ``threshold``, and
        ``uncertain``, the share of pictures in the band.

    Raises:
        UserError: shapes differ, a logit is not finite, or there are no pictures.
    """
    s, y = _logits(logits, labels)
    if not len(s):
        raise UserError("calibration report of no pictures: give at least one.")
    report: dict[str, float | None] = {}
    for when, temperature in (("before", 1.0), ("after", calibration.temperature)):
        p = expit(s / temperature)
        report[f"ece_{when}"] = expected_calibration_error(p, y)
        report[f"nll_{when}"] = negative_log_likelihood(s / temperature, y)
        report[f"brier_{when}"] = float(((p - y) ** 2).mean())
    low, high = calibration.uncertain or (0.0, 0.0)
    p = expit(s / calibration.temperature)
    return report | {
        "temperature": calibration.temperature,
        "threshold": calibration.threshold,
        "uncertain": float(((p >= low) & (p < high)).mean()),
    }


def _ranks(total: int) -> np.ndarray:
    """Compute the ranks, from 1, of the real pictures whose probabilities are kept."""
    kept = min(total, KEPT)
    return -(-np.arange(1, kept + 1) * total // kept)


def _logits(logits: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    s = logits.detach().cpu().double().numpy() if isinstance(logits, Tensor) else np.asarray(logits, dtype=np.float64)
    y = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if s.ndim != 1 or s.shape != y.shape:
        raise UserError(f"logits {s.shape} and labels {y.shape}: give one of each per picture, (N,) and (N,).")
    if not np.isfinite(s).all():
        raise UserError(f"{int((~np.isfinite(s)).sum())} of {len(s)} logits are not finite: the detector diverged.")
    return s, y != 0
