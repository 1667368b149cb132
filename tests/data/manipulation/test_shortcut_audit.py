"""The audit finds files that differ by label, and stays at chance where twins are encoded alike."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from vision_lowrank.data.manipulation.base import ManipulationSet, PictureRecord
from vision_lowrank.data.manipulation.shortcut_audit import metadata_features, shortcut_audit, weighted_auc
from vision_lowrank.errors import DataError


def encoded(pixels, kind, quality):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return buffer.getvalue()


def twins(root, how, sources=24, edits=lambda source: 1 + source % 3):
    """Real pictures with 1 to 3 edits; how(label, rng) -> (format, quality, size)."""
    records = []
    for source in range(sources):
        state = np.random.SeedSequence([source])
        for number in range(1 + edits(source)):
            kind, quality, size = how(int(number > 0), np.random.default_rng(state))
            pixels = np.random.default_rng([source, 1]).integers(0, 256, (size, size, 3), dtype=np.uint8)
            pixels[: size // 3] = number * 20  # another length in bytes
            name = f"{source}-{number}.{kind.lower()}"
            (root / name).write_bytes(encoded(pixels, kind, quality))
            records.append(PictureRecord(f"{source}-{number}", name, int(number > 0), f"{source}-0"))
    return ManipulationSet.of("twins", records, root)


def alike(label, rng):
    return "JPEG", int(rng.integers(60, 96)), int(rng.integers(24, 48))


def test_twins_encoded_alike_are_exactly_at_chance(tmp_path):
    images = twins(tmp_path, alike)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audit = shortcut_audit(images)
    assert audit.auc_without_bytes == pytest.approx(0.5, abs=1e-12)
    for family in ("format", "size", "jpeg", "exif"):
        assert audit.by_family[family] == pytest.approx(0.5, abs=1e-12)
    assert audit.interval[0] - 1e-9 <= audit.auc <= audit.interval[1] + 1e-9
    assert (audit.pictures, audit.groups) == (len(images), 24)
    assert shortcut_audit(images) == audit


def test_png_edits_are_caught(tmp_path):
    images = twins(tmp_path, lambda label, rng: ("PNG", 0, 32) if label else alike(label, rng))
    with pytest.warns(UserWarning, match="FORMAT SHORTCUT"):
        audit = shortcut_audit(images)
    assert audit.suspicious
    assert audit.auc > 0.99
    assert audit.by_family["format"] == 1.0
    assert audit.by_family["exif"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("family", "how"),
    [
        ("jpeg", lambda label, rng: ("JPEG", 90 if label else int(rng.integers(60, 86)), 32)),
        ("size", lambda label, rng: ("JPEG", 80, 40 if label else int(rng.integers(24, 38)))),
    ],
)
def test_other_shortcuts_are_caught_and_named(tmp_path, family, how):
    images = twins(tmp_path, how)
    with pytest.warns(UserWarning, match=f"most by '{family}'"):
        audit = shortcut_audit(images)
    assert audit.by_family[family] == 1.0
    assert audit.by_family["format"] == pytest.approx(0.5)


def test_features_are_the_files(tmp_path):
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=75, subsampling=2, exif=exif)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    images = ManipulationSet.of(
        "two", [PictureRecord("a", "a.jpg", 0, "a"), PictureRecord("b", "b.png", 1, "b")], tmp_path
    )
    features = metadata_features(images)
    assert features["format"].tolist() == [[1, 0], [0, 1]]
    assert features["size"].tolist() == [[30, 20, 600]] * 2
    assert features["exif"].tolist() == [[1], [0]]
    assert features["bytes"][:, 0].tolist() == [(tmp_path / name).stat().st_size / 600 for name in ("a.jpg", "b.png")]
    # quality 75 halves the first entry of the standard's table, 16
    assert features["jpeg"][0, 0] == 8
    assert features["jpeg"][0, 128] == 2  # 4:2:0
    assert features["jpeg"].shape == (2, 130)


def test_sets_that_cannot_be_audited(tmp_path):
    images = twins(tmp_path, alike, sources=3)
    with pytest.raises(DataError, match="no real or no edited"):
        shortcut_audit(images.subset(np.flatnonzero(images.labels == 0)))
    with pytest.raises(DataError, match="of one source"):
        shortcut_audit(images.subset([0, 1]))
    (tmp_path / images.records[0].image).write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read"):
        shortcut_audit(images)


def test_weighted_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, scores, weights = rng.integers(0, 2, 200), rng.integers(0, 9, 200) / 3, rng.random(200)
    assert weighted_auc(labels, scores, weights) == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
