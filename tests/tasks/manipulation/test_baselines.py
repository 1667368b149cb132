import json

import numpy as np
import pytest
from PIL import Image
from scipy.signal import convolve2d
from scipy.stats import kurtosis, skew
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vision_lowrank.data.manipulation.robustness import Degradation
from vision_lowrank.data.photos import photographs
from vision_lowrank.errors import ArtefactError, UserError
from vision_lowrank.tasks.manipulation.baselines import (
    SIGNALS,
    ErrorLevel,
    FeatureDetector,
    NoiseResidual,
    signal,
    statistics,
)

TRAINING = ("astronaut.png", "brick.png", "clock_motion.png", "coffee.png", "gravel.png", "motorcycle_left.png")
UNSEEN = ("cell.png", "chelsea.png", "coins.png", "retina.jpg")


def photograph(name, size=(256, 192)):
    photos = photographs()
    return photos.image(photos.keys.index(name)).resize(size, Image.Resampling.BICUBIC)


def region(size=(256, 192)):
    mask = np.zeros(size[::-1], dtype=bool)
    mask[50:110, 75:150] = True
    return mask


def composed(mask, inside, outside):
    """A picture of `inside` where the mask is, and `outside` elsewhere."""
    return Image.fromarray(np.where(mask[..., None], np.asarray(inside), np.asarray(outside)))


def noisy(name, mask):
    clean = photograph(name)
    return composed(mask, Degradation("gaussian_noise", 144).apply(clean, name), clean)


def pasted(name, mask):
    """A never-compressed part in a picture that was a JPEG."""
    clean = photograph(name)
    return composed(mask, clean, Degradation("jpeg", 70).apply(clean))


def pixel_auc(mask, heat):
    return roc_auc_score(mask.ravel(), heat.ravel())


def small_set(names, seed, edit):
    """Crops of photographs, compressed once, and the same crops after `edit` of a part of them."""
    rng, pictures, labels = np.random.default_rng(seed), [], []
    for name in names:
        whole = photograph(name, (320, 240))
        for index in range(4):
            left, top = (int(rng.integers(length - 128)) for length in whole.size)
            crop = whole.crop((left, top, left + 128, top + 128))
            mask = np.zeros((128, 128), dtype=bool)
            y, x = rng.integers(0, 64, size=2)
            mask[y : y + 64, x : x + 64] = True
            pictures += [Degradation("jpeg", 80).apply(crop), edit(crop, mask, f"{name}{index}")]
            labels += [0, 1]
    return pictures, labels


def with_noise(crop, mask, key):
    return Degradation("jpeg", 80).apply(composed(mask, Degradation("gaussian_noise", 150).apply(crop, key), crop))


def never_compressed(crop, mask, key):
    return composed(mask, crop, Degradation("jpeg", 80).apply(crop))


@pytest.mark.parametrize("name", ["chelsea.png", "brick.png", "moon.png"])
def test_a_region_of_other_noise_is_found(name):
    mask = region()
    heat = NoiseResidual().heat_map(noisy(name, mask))
    assert heat.dtype == np.float32
    assert pixel_auc(mask, heat) > 0.9
    assert pixel_auc(mask, heat) > pixel_auc(mask, NoiseResidual().heat_map(photograph(name))) + 0.2
    assert heat[mask].mean() > 0.4


def test_a_region_of_less_noise_is_found_as_well():
    mask, grainy = region(), Degradation("gaussian_noise", 144).apply(photograph("moon.png"))
    smooth = composed(mask, photograph("moon.png"), grainy)
    assert pixel_auc(mask, NoiseResidual().heat_map(smooth)) > 0.9


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "grass.png"])
def test_the_error_level_rises_where_a_never_compressed_part_was_pasted(name):
    mask = region()
    heat = ErrorLevel().heat_map(pasted(name, mask))
    assert pixel_auc(mask, heat) > 0.9
    # Not because the content there is busier: the same place, when all had one past, and elsewhere no change.
    before = ErrorLevel().heat_map(Degradation("jpeg", 70).apply(photograph(name)))
    assert heat[mask].mean() > 2 * before[mask].mean()
    np.testing.assert_allclose(heat[150:], before[150:], atol=1e-6)


def test_residuals_are_what_their_formulas_say():
    image = photograph("chelsea.png", (40, 30))
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    kernel = np.outer([1, -2, 1], [1, -2, 1]) / 6
    residual = NoiseResidual().residual(image)
    np.testing.assert_allclose(residual[1:-1, 1:-1], convolve2d(grey, kernel, mode="valid"), atol=1e-9)
    # Its scale makes it the noise itself.
    grain = Degradation("gaussian_noise", 100).apply(Image.new("RGB", (300, 300), (128, 128, 128)), "a")
    expected = np.asarray(grain.convert("L"), dtype=np.float64).std()
    assert NoiseResidual().residual(grain).std() == pytest.approx(expected, rel=0.02)
    twice = np.asarray(Degradation("jpeg", 90).apply(image), dtype=np.float64)
    error = np.abs(np.asarray(image, dtype=np.float64) - twice).mean(axis=2)
    np.testing.assert_allclose(ErrorLevel().residual(image), error)


def test_features_are_scipys_moments_and_counted_sequences():
    values = np.random.default_rng(0).gamma(2, size=(50, 40))
    found = statistics(values)
    quantiles = np.quantile(values, [0.5, 0.9, 0.99])
    moments = [values.mean(), values.std(), skew(values.ravel()), kurtosis(values.ravel()), *quantiles]
    np.testing.assert_allclose(found[:7], moments)
    np.testing.assert_allclose(found[7:], [values.std() / values.mean(), quantiles[2] / values.mean()])
    image = photograph("coffee.png", (12, 9))
    grey = np.asarray(image.convert("L"), dtype=int)
    counts = np.zeros((5, 5, 5))
    for lines in (grey, grey.T):
        for line in lines:
            second = [max(-2, min(2, a - 2 * b + c)) for a, b, c in zip(line, line[1:], line[2:], strict=False)]
            for sequence in zip(second, second[1:], second[2:], strict=False):
                counts[tuple(2 + step for step in sequence)] += 1
    np.testing.assert_allclose(NoiseResidual().features(image)[-125:], (counts / counts.sum()).ravel())


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (17, 8)])
@pytest.mark.parametrize("name", SIGNALS)
def test_any_picture_has_finite_features_and_a_map(name, size):
    images = [Image.new("RGB", size, "red"), photograph("coffee.png", size)]
    counts = {len(signal(name).features(image)) for image in images}
    assert counts == {18 if name == "ela" else 143}
    for image in images:
        features, heat = signal(name).features(image), signal(name).heat_map(image)
        assert features.dtype == np.float64
        assert np.isfinite(features).all()
        assert heat.shape == size[::-1]
        assert np.isfinite(heat).all()
        assert heat.min() >= 0
        assert heat.max() <= 1


@pytest.mark.parametrize(("name", "edit"), [("noise", with_noise), ("ela", never_compressed)])
def test_planted_edits_of_unseen_photographs_are_detected_above_chance(name, edit):
    detector = FeatureDetector.fit(name, *small_set(TRAINING, 1, edit))
    pictures, labels = small_set(UNSEEN, 2, edit)
    assert roc_auc_score(labels, [detector.score(picture) for picture in pictures]) > 0.7


@pytest.fixture(scope="module")
def fitted():
    pictures, labels = small_set(TRAINING, 1, with_noise)
    return pictures, labels, FeatureDetector.fit("noise", pictures, labels)


def test_it_is_scikit_learns_pipeline(fitted):
    pictures, labels, detector = fitted
    features = np.stack([NoiseResidual().features(picture) for picture in pictures])
    features[:, features.std(axis=0) < 1e-9] = 0
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    expected = model.fit(features, labels).predict_proba(features)[:, 1]
    np.testing.assert_allclose([detector.score(picture) for picture in pictures], expected, atol=1e-3)
    np.testing.assert_array_equal(detector.heat_map(pictures[0]), NoiseResidual().heat_map(pictures[0]))


def test_the_threshold_is_the_most_balanced_of_validation(fitted):
    _, _, detector = fitted
    pictures, labels = small_set(UNSEEN[:2], 3, with_noise)
    scores = np.array([detector.score(picture) for picture in pictures])
    threshold = detector.with_threshold(pictures, labels).threshold
    every = [balanced_accuracy_score(labels, scores >= each) for each in sorted(scores)]
    assert balanced_accuracy_score(labels, scores >= threshold) == max(every)
    with pytest.raises(UserError, match="all of one kind"):
        detector.with_threshold(pictures, [1] * len(labels))
    with pytest.raises(UserError, match="all of one kind"):
        FeatureDetector.fit("noise", pictures, [0] * len(labels))


def test_it_is_saved_as_text_and_damage_is_named(fitted, tmp_path):
    pictures, _, detector = fitted
    path = tmp_path / "baseline.json"
    detector.save(path)
    assert FeatureDetector.load(path) == detector
    assert FeatureDetector.load(path).score(pictures[1]) == detector.score(pictures[1])
    values = json.loads(path.read_text())
    for change in ({"signal": "nose"}, {"bias": "x"}, {"weights": 3}, {"more": 1}, {"mean": [0.0]}):
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(ArtefactError, match=r"baseline\.json"):
            FeatureDetector.load(path)
    for text in ("", "[1]", "{}"):
        path.write_text(text)
        with pytest.raises(ArtefactError, match="no feature detector"):
            FeatureDetector.load(path)
    with pytest.raises(ArtefactError, match="no feature detector"):
        FeatureDetector.load(tmp_path / "missing.json")
    with pytest.raises(UserError, match="Did you mean 'noise'"):
        signal("nois")
