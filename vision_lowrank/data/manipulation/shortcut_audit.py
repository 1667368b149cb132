"""Can real and edited pictures be told apart without looking at them?

Editors write PNGs of fixed sizes, cameras write JPEGs: a detector trained on such a set learns the file format. The
audit trains a small random forest on metadata alone and reports its AUC. *Families* of features, from the file's
header and length, no pixel decoded:

* ``format``: container and colour mode;  ``size``: width, height, pixels;
* ``jpeg``: quantisation tables (2 x 64), chroma subsampling, progressive or not;  ``exif``: present or not;
* ``bytes``: file bytes per pixel. An edit changes what is in the picture and so, a little, its length: this family may
  be slightly above chance in a set without any shortcut. ``auc_without_bytes`` is free of that.

Predictions are cross-validated over groups (a record's `group`, else its `source_id`), so that no source is in both
parts. Every source counts as one real and one edited picture: with n_s,y of its pictures of label y, each has weight
1 / n_s,y. So if all twins of a source share their metadata, the AUC is 1/2 up to rounding (ties count half). The
interval is the 95 % bootstrap over groups. ManipBench (arXiv 2511.14259) made such shortcuts likely: 25 editors, each
with its own files; features and model are this project's.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import JpegImagePlugin
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold

from ...errors import DataError
from ..images import open_picture
from .base import REAL, ManipulationSet

FAMILIES = ("format", "size", "jpeg", "exif", "bytes")
FOLDS, TREES, LEAF, RESAMPLES = 5, 20, 5, 500
SUSPICIOUS = 0.6


@dataclass(frozen=True)
class ShortcutAudit:
    """What metadata alone give away.

    Attributes:
        name: of the set.
        auc: of all families together.
        interval: 95 % bootstrap interval of `auc`, over groups.
        auc_without_bytes: of all families but the file's length.
        by_family: family -> AUC of it alone.
        pictures: how many were looked at.
        groups: how many groups they are in.
    """

    name: str
    auc: float
    interval: tuple[float, float]
    auc_without_bytes: float
    by_family: dict[str, float]
    pictures: int
    groups: int

    @property
    def suspicious(self) -> bool:
        """Whether a detector could learn the files instead of the edits: an AUC above 0.6."""
        return self.auc > SUSPICIOUS

    def __str__(self) -> str:
        low, high = self.interval
        families = ", ".join(f"{name} {value:.3f}" for name, value in self.by_family.items())
        return (
            f"{self.name}: real against edited by metadata alone, AUC {self.auc:.3f} [{low:.3f}, {high:.3f}], "
            f"{self.auc_without_bytes:.3f} without file length ({families}); {self.pictures} pictures, {self.groups} "
            "groups"
        )


def shortcut_audit(images: ManipulationSet) -> ShortcutAudit:
    """Audit a set; warns loudly where the AUC is above 0.6.

    Args:
        images: real and edited pictures; fully synthetic ones count as edited.

    Raises:
        DataError: a file is missing or no picture, the set has only real or only edited pictures, or only one group.
    """
    labels = (images.labels != REAL).astype(int)
    if labels.min(initial=1) == labels.max(initial=0):
        raise DataError(f"'{images.name}' has no real or no edited pictures: a shortcut audit compares both.")
    groups = [record.group or record.source_id for record in images.records]
    codes = np.unique(groups, return_inverse=True)[1]
    if codes.max() == 0:
        raise DataError(f"all pictures of '{images.name}' are of one source: a shortcut audit needs two or more.")
    features = metadata_features(images)
    weights = _weights(images, labels)

    def auc(families: tuple[str, ...]) -> tuple[float, np.ndarray]:
        columns = np.concatenate([features[family] for family in families], axis=1)
        scores = _cross_validated(columns, labels, codes, weights)
        return weighted_auc(labels, scores, weights), scores

    value, scores = auc(FAMILIES)
    found = ShortcutAudit(
        images.name, value, _interval(labels, scores, weights, codes), auc(FAMILIES[:-1])[0],
        {family: auc((family,))[0] for family in FAMILIES}, len(images), int(codes.max()) + 1,
    )  # fmt: skip
    if found.suspicious:
        worst = max(found.by_family, key=lambda family: found.by_family[family])
        warnings.warn(
            f"FORMAT SHORTCUT: {found}. Metadata tell edits from originals, most by '{worst}': a detector trained on "
            "these files may learn that. Re-encode real and edited pictures alike.",
            stacklevel=2,
        )
    return found


def weighted_auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """Compute the weighted share of pairs (real, edited) whose edited picture has the higher score; ties count half.

    Args:
        labels: (N,) int, 1 = edited; both occur with a weight above 0.
        scores: (N,).
        weights: (N,) of the pictures; a pair's is their product.
    """
    ranks = np.unique(scores, return_inverse=True)[1]
    edited, real = np.bincount(ranks, weights * labels), np.bincount(ranks, weights * (1 - labels))
    return float(edited @ (real.cumsum() - real / 2) / (edited.sum() * real.sum()))


def metadata_features(images: ManipulationSet) -> dict[str, np.ndarray]:
    """Compute features, family -> (N, columns) float64.

    Raises:
        DataError: a file is missing or no picture.
    """
    rows = [_row(images.root / record.image, record.image) for record in images.records]
    kinds = sorted({row[0] for row in rows})
    features = {"format": np.array([[kind == row[0] for kind in kinds] for row in rows], dtype=np.float64)}
    for family in FAMILIES[1:]:
        features[family] = np.array([row[1][family] for row in rows], dtype=np.float64)
    return features


def _row(path: Path, name: str) -> tuple[str, dict[str, list[float]]]:
    """Read format with mode, and the numbers of each other family."""
    try:
        with open_picture(path) as picture:
            width, height = picture.size
            tables = getattr(picture, "quantization", None) or {}
            jpeg = [float(value) for number in range(2) for value in (*tables.get(number, ()), *[0] * 64)[:64]]
            sampling = JpegImagePlugin.get_sampling(picture) if tables else -2
            exif = float("exif" in picture.info)
            kind = f"{picture.format} {picture.mode}"
            progressive = float("progressive" in picture.info)
    except FileNotFoundError:
        raise DataError(f"picture '{name}' does not exist.") from None
    except Exception as error:  # on damaged files PIL's parsers raise whatever they stumble on
        raise DataError(f"picture '{name}' cannot be read: {error}.") from None
    numbers = {
        "size": [width, height, width * height],
        "jpeg": [*jpeg, sampling, progressive],
        "exif": [exif],
        "bytes": [path.stat().st_size / (width * height)],
    }
    return kind, numbers


def _weights(images: ManipulationSet, labels: np.ndarray) -> np.ndarray:
    """Compute 1 / number of pictures of the same source and label, (N,)."""
    keys = list(zip(images.sources.codes.tolist(), labels.tolist(), strict=True))
    counts = Counter(keys)
    return np.array([1 / counts[key] for key in keys])


def _cross_validated(columns: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Predict P(edited) of every picture by a forest that saw no picture of its group, (N,)."""
    scores = np.zeros(len(labels))
    folds = StratifiedGroupKFold(min(FOLDS, int(groups.max()) + 1), shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label with fewer pictures than folds
        parts = list(folds.split(columns, labels, groups))
    for train, test in parts:
        if len(np.unique(labels[train])) == 1:
            scores[test] = labels[train][0]
            continue
        forest = RandomForestClassifier(TREES, min_samples_leaf=LEAF, random_state=0)
        forest.fit(columns[train], labels[train], weights[train])
        scores[test] = forest.predict_proba(columns[test])[:, 1]
    return scores


def _interval(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % percentile interval of the AUC over resampled groups."""
    rng, count = np.random.default_rng(0), int(groups.max()) + 1
    values = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)[groups] * weights
        if all(drawn[labels == label].any() for label in (0, 1)):
            values.append(weighted_auc(labels, scores, drawn))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
