import numpy as np
import pytest

from vision_lowrank.errors import UserError
from vision_lowrank.metrics.bootstrap import bootstrap
from vision_lowrank.metrics.image_level import detection_report


def twins(sources=40, each=10, seed=0):
    """Scores that all pictures of a source share."""
    return np.repeat(np.random.default_rng(seed).normal(size=sources), each), np.repeat(np.arange(sources), each)


def test_sources_give_wider_intervals_than_pictures_when_twins_share_a_score():
    values, sources = twins()

    def mean(rows):
        return {"mean": float(values[rows].mean())}

    by_source, by_picture = bootstrap(mean, sources)["mean"], bootstrap(mean, np.arange(len(values)))["mean"]
    assert by_source.value == by_picture.value == pytest.approx(values.mean())
    ratio = (by_source.high - by_source.low) / (by_picture.high - by_picture.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)  # ten pictures tell no more than one
    assert by_source.low < by_source.value < by_source.high


def test_interval_of_a_mean_is_the_normal_one():
    values, sources = twins(400, 3)
    found = bootstrap(lambda rows: {"mean": float(values[rows].mean())}, sources)["mean"]
    error = values[::3].std() / np.sqrt(400)
    assert (found.low, found.high) == pytest.approx(values.mean() + 1.96 * error * np.array([-1, 1]), abs=0.15 * error)


def test_a_draw_takes_whole_sources_as_many_as_there_are():
    names = np.array(["b", "a", "c", "a", "b", "a"])
    seen = []

    def record(rows):
        counts = np.bincount(rows, minlength=6)
        seen.append(counts)
        return {"n": float(len(rows))}

    bootstrap(record, names, resamples=50)
    assert seen[0].tolist() == [1] * 6  # all pictures, once
    for counts in seen[1:]:
        assert counts[0] == counts[4] and counts[1] == counts[3] == counts[5]  # noqa: PT018
        assert counts[0] + counts[1] + counts[2] == 3
    assert len({tuple(counts) for counts in seen}) > 5


def test_the_seed_decides_and_undefined_resamples_are_left_out():
    scores, edited, sources = np.array([0.1, 0.9, 0.8]), np.array([False, True, True]), np.arange(3)

    def report(rows):
        return detection_report(scores[rows], edited[rows])

    found = bootstrap(report, sources, resamples=200, seed=3)
    assert found == bootstrap(report, sources, resamples=200, seed=3)
    assert found["auc"].value == found["auc"].low == found["auc"].high == 1.0
    assert 0 < found["auc"].resamples < 200 == found["accuracy"].resamples
    never = bootstrap(lambda rows: {"x": None, "y": float("nan")}, sources, resamples=5)
    assert all((each.value, each.low, each.high, each.resamples) == (None, None, None, 0) for each in never.values())


def test_bad_input_is_refused():
    for options in ({"sources": []}, {"sources": [1], "resamples": 0}, {"sources": [1], "level": 1.0}):
        with pytest.raises(UserError, match="bootstrap of"):
            bootstrap(lambda rows: {}, **options)
