import numpy as np
import pytest

from vision_lowrank.data.geometry import CropMap
from vision_lowrank.data.tracking.pair_crops import SearchJitter


def test_jitter_has_the_published_spread_and_keeps_the_target_inside():
    rng, box = np.random.default_rng(0), np.array([100.0, 80, 150, 120])
    jitter = SearchJitter(4.0, (224, 224), 10.0)
    plain = CropMap.around(box, 4.0, (224, 224))
    drawn = [jitter.draw(box, rng) for _ in range(4000)]
    found = [crop for crop in drawn if crop is not None]
    assert len(found) > 3990
    ratios = np.log(np.array([plain.scale / crop.scale for crop in found]))
    assert ratios.std(axis=0) == pytest.approx([0.25, 0.25], abs=0.02)
    assert abs(np.corrcoef(ratios.T)[0, 1]) < 0.1  # along x and y on its own
    inside = np.clip([crop.to_crop(box) for crop in found], 0, 224)
    assert (inside[:, 2:] - inside[:, :2] >= 10).all()
    middles = np.array([(crop.to_crop(box)[:2] + crop.to_crop(box)[2:]) / 2 for crop in found]) - 112
    sides = np.array([(box[2:] - box[:2]) * crop.scale for crop in found])
    shares = middles / (3 * sides.sum(axis=1, keepdims=True) / 2)
    assert np.abs(shares).max() <= 1
    assert np.abs(shares).max() > 0.9


def test_a_target_that_is_too_small_is_given_up():
    assert SearchJitter(4.0, (224, 224), 100.0).draw(np.array([0.0, 0, 40, 40]), np.random.default_rng(0)) is None


def test_spread_can_be_set():
    rng, box = np.random.default_rng(0), np.array([100.0, 80, 150, 120])
    plain = CropMap.around(box, 4.0, (224, 224))
    found = [SearchJitter(4.0, (224, 224), 10.0, scale=0, shift=0.5).draw(box, rng) for _ in range(300)]
    assert all(np.allclose(crop.scale, plain.scale) for crop in found)
    away = np.array([crop.to_crop(box) - plain.to_crop(box) for crop in found])[:, :2]
    most = 0.5 * ((box[2:] - box[:2]) * plain.scale).sum() / 2
    assert 0.95 * most < np.abs(away).max() <= most + 1e-6
