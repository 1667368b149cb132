"""What a picture shows of its history without any deep network: the classical baselines of manipulation detection.

Both look at a residual r (H, W), what is left of a picture once its content is taken away:

    ela     error level analysis: |x - JPEG_q(x)|, mean over channels. Parts that were compressed before change little
            when compressed again; a pasted part with another past changes more.          [Krawetz, 2007]
    noise   x * [[1, -2, 1], [-2, 4, -2], [1, -2, 1]] / 6 of the grey picture: 0 where it is a linear function of x or
            of y, so that mostly noise is left, with the noise's standard deviation.      [Immerkaer, 1996]

Features (F,) float64 for a classifier: :func:`statistics` of |r| and of its level per block of 8 x 8 pixels, and for
``noise`` also how often each sequence of three neighbours occurs, in rows and columns together, with the second
differences of the grey picture cut to -2 … 2 (125 shares; a small case of the rich models of Fridrich and Kodovsky,
2012). Reading them needs no training.

Maps (H, W) float32 in [0, 1] that say where:

    ela     mean of |r| over a neighbourhood of 24 x 24 pixels, as a share of :data:`FULL` grey levels, cut at 1
    noise   1 - min(s, m) / max(s, m), where s is the noise level around a pixel and m its median over the picture: 0
            where noise is as everywhere, towards 1 where there is many times more or less. s = 1.4826 median |r| per
            block + :data:`ROUNDING`, so that edges count little and noise below one grey level not at all

:class:`FeatureDetector` is a logistic regression on standardised features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from scipy.ndimage import convolve, uniform_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from ...data.manipulation.robustness import Degradation
from ...errors import ArtefactError, UserError, near_miss
from ...files import write_text

BLOCK = 8
AROUND = 3  # blocks that a neighbourhood measures in x and in y
FULL = 20.0
ROUNDING = 1 / np.sqrt(12)  # standard deviation of rounding to whole grey levels
CUT = 2
_CORNERS = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6


class Signal(Protocol):
    """Something that a picture shows of its history."""

    def features(self, image: Image.Image) -> np.ndarray:
        """Compute the features, (F,) float64, finite for every RGB picture."""
        ...

    def heat_map(self, image: Image.Image) -> np.ndarray:
        """Compute the heat map, (H, W) float32 in [0, 1], higher where an edit is likelier."""
        ...


@dataclass(frozen=True)
class ErrorLevel:
    """Error level analysis.

    Attributes:
        quality: of the JPEG that a picture is compared with.
    """

    quality: int = 90

    def residual(self, image: Image.Image) -> np.ndarray:
        """Compute the residual, (H, W) float64, non-negative."""
        saved = np.asarray(Degradation("jpeg", self.quality).apply(image), dtype=np.float64)
        return np.abs(np.asarray(image, dtype=np.float64) - saved).mean(axis=-1)

    def features(self, image: Image.Image) -> np.ndarray:
        """Compute the features as :class:`Signal` says; F = 18."""
        residual = self.residual(image)
        return np.concatenate([statistics(residual), statistics(_levels(residual, np.mean))])

    def heat_map(self, image: Image.Image) -> np.ndarray:
        """Compute the heat map as :class:`Signal` says."""
        levels = uniform_filter(_levels(self.residual(image), np.mean), AROUND, mode="nearest")
        return _enlarged((levels / FULL).clip(0, 1), image.size)


@dataclass(frozen=True)
class NoiseResidual:
    """Statistics of noise."""

    def residual(self, image: Image.Image) -> np.ndarray:
        """Compute the residual, (H, W) float64; the picture is mirrored at its rim."""
        return convolve(_grey(image), _CORNERS, mode="mirror")

    def features(self, image: Image.Image) -> np.ndarray:
        """Compute the features as :class:`Signal` says; F = 143."""
        residual = np.abs(self.residual(image))
        sequences = _co_occurrences(_grey(image))
        return np.concatenate([statistics(residual), statistics(_levels(residual, np.median)), sequences])

    def heat_map(self, image: Image.Image) -> np.ndarray:
        """Compute the heat map as :class:`Signal` says."""
        blocks = 1.4826 * _levels(np.abs(self.residual(image)), np.median)
        levels = uniform_filter(blocks, AROUND, mode="nearest") + ROUNDING
        middle = np.median(levels)
        return _enlarged(1 - np.minimum(levels, middle) / np.maximum(levels, middle), image.size)


SIGNALS: dict[str, Signal] = {"ela": ErrorLevel(), "noise": NoiseResidual()}


def signal(name: str) -> Signal:
    """Return a signal by name, with its standard values.

    Raises:
        UserError: there is none of that name.
    """
    if name not in SIGNALS:
        raise UserError(f"unknown signal '{name}'.{near_miss(name, SIGNALS)} Known: {', '.join(SIGNALS)}.")
    return SIGNALS[name]


def statistics(values: np.ndarray) -> np.ndarray:
    """Compute nine statistics (9,) float64 of `values`.

    They are mean, standard deviation, skewness, kurtosis - 3, three quantiles (0.5, 0.9, 0.99), and the standard
    deviation and the last quantile as multiples of the mean. A constant has neither skewness nor kurtosis: 0.
    """
    mean, deviation = values.mean(), values.std()
    standard = (values - mean) / max(deviation, 1e-9)
    kurtosis = (standard**4).mean() - 3 if deviation > 1e-9 else 0.0
    quantiles = np.quantile(values, [0.5, 0.9, 0.99])
    relative = np.array([deviation, quantiles[-1]]) / max(mean, 1e-9)
    return np.concatenate([[mean, deviation, (standard**3).mean(), kurtosis], quantiles, relative])


@dataclass(frozen=True)
class FeatureDetector:
    """p = sigmoid(weights · (features - mean) / scale + bias).

    Attributes:
        signal: name in :data:`SIGNALS`.
        mean: (F,) of the training pictures' features.
        scale: (F,) their standard deviations, 1 for what does not vary.
        weights: (F,).
        bias: one number.
        threshold: scores at least as high are edited; 0.5 until it was chosen, see :meth:`with_threshold`.
    """

    signal: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float = 0.5

    @classmethod
    def fit(
        cls, name: str, images: Iterable[Image.Image], labels: Sequence[int], strength: float = 0.1
    ) -> FeatureDetector:
        """Fit a detector to training pictures, each class with the same weight.

        Args:
            name: of the signal.
            images: RGB, gone through once.
            labels: 0 real, anything else edited.
            strength: inverse of the L2 penalty (scikit-learn's C).

        Raises:
            UserError: the signal is unknown, or all pictures are of one class.
        """
        edited = np.asarray(labels) != 0
        if edited.all() or not edited.any():
            raise UserError("a detector needs real and edited pictures to learn from; these are all of one kind.")
        features = np.stack([signal(name).features(image) for image in images])
        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale[scale < 1e-9] = 1.0
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
        model.fit((features - mean) / scale, edited)
        weights = (tuple(values.tolist()) for values in (mean, scale, model.coef_[0]))
        return cls(name, *weights, bias=float(model.intercept_[0]))

    def with_threshold(self, images: Iterable[Image.Image], labels: Sequence[int]) -> FeatureDetector:
        """Return the same with the threshold of the highest balanced accuracy on validation pictures.

        Of equals it is the highest.

        Raises:
            UserError: all pictures are of one class.
        """
        edited = np.asarray(labels) != 0
        if edited.all() or not edited.any():
            raise UserError("a threshold needs real and edited validation pictures; these are all of one kind.")
        false, true, thresholds = roc_curve(edited, [self.score(image) for image in images], drop_intermediate=False)
        # The first threshold of the curve is infinite: nothing is edited.
        return replace(self, threshold=float(thresholds[1:][np.argmax((true - false)[1:])]))

    def score(self, image: Image.Image) -> float:
        """Compute the probability, under this model, that an RGB picture was edited."""
        standard = (signal(self.signal).features(image) - self.mean) / self.scale
        return float(1 / (1 + np.exp(-np.clip(standard @ self.weights + self.bias, -500, 500))))

    def heat_map(self, image: Image.Image) -> np.ndarray:
        """Compute the signal's own map, (H, W) float32 in [0, 1]: the classifier says nothing of places."""
        return signal(self.signal).heat_map(image)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> FeatureDetector:
        """Load what :meth:`save` wrote.

        Raises:
            ArtefactError: the file is missing, damaged or of other features than this version's.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            vectors = {key: tuple(map(float, values.pop(key))) for key in ("mean", "scale", "weights")}
            numbers = {key: float(values.pop(key)) for key in ("bias", "threshold")}
            detector = cls(**values, **vectors, **numbers)
            count = len(signal(detector.signal).features(Image.new("RGB", (BLOCK, BLOCK))))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, UserError) as error:
            raise ArtefactError(f"'{path}' is no feature detector ({error}): fit and save it again.") from None
        if {len(vector) for vector in vectors.values()} != {count}:
            raise ArtefactError(f"'{path}' is not of the {count} features of '{detector.signal}': fit it again.")
        return detector


def _grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=np.float64)


def _levels(values: np.ndarray, reduce: Callable[..., np.ndarray]) -> np.ndarray:
    """Compute `reduce` of every block of 8 x 8 from the top left, as JPEG has them; mirroring fills the last ones."""
    rows, columns = (-(-length // BLOCK) for length in values.shape)
    padding = [(0, count * BLOCK - length) for count, length in zip((rows, columns), values.shape, strict=True)]
    whole = np.pad(values, padding, mode="symmetric")
    return reduce(whole.reshape(rows, BLOCK, columns, BLOCK), axis=(1, 3))


def _enlarged(levels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge a value per block to a value per pixel of a picture of `size` (width, height), bilinear."""
    width, height = size
    box = (0, 0, width / BLOCK, height / BLOCK)
    image = Image.fromarray(levels.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box)).clip(0, 1)


def _co_occurrences(grey: np.ndarray) -> np.ndarray:
    """Compute the shares (125,) of sequences of three neighbours of the second differences, in rows and columns."""
    base = 2 * CUT + 1
    counts = np.zeros(base**3)
    for values in (grey, grey.T):
        cut = np.diff(values, n=2, axis=1).clip(-CUT, CUT).astype(np.int64) + CUT
        sequences = (cut[:, :-2] * base + cut[:, 1:-1]) * base + cut[:, 2:]
        counts += np.bincount(sequences.ravel(), minlength=base**3)
    return counts / max(1.0, counts.sum())
