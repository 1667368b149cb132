import json

import numpy as np
import pytest

from vision_lowrank.errors import UserError
from vision_lowrank.inference.header import finished, make_header
from vision_lowrank.inference.journal import ScanRow
from vision_lowrank.inference.predictor import Threshold
from vision_lowrank.metrics.calibration import Calibration


def calibration():
    rng = np.random.default_rng(0)
    return Calibration.fit(np.r_[rng.normal(-1, 1, 400), rng.normal(1, 1, 400)], np.repeat([0, 1], 400))


def test_the_threshold_is_the_detectors_a_probability_or_a_rate():
    own = calibration()
    assert Threshold.parse("auto").of(own) is own
    assert Threshold.parse("0.7").of(own).threshold == 0.7
    assert Threshold.parse("fpr=0.02").of(own) == own.at(0.02)


@pytest.mark.parametrize("text", ["", "high", "1.5", "-0.1", "nan", "fpr=0", "fpr=1", "fpr=", "fpr", "=0.5", "tpr=0.1"])
def test_other_thresholds_are_refused(text):
    with pytest.raises(UserError, match=r"--threshold .*fpr=0\.01"):
        Threshold.parse(text)


def header(edit_model, calibration, **changes):
    options = {"path": "m", "explain": False, "device": "cpu", "command": "scan", "inputs": 2, "others": 1} | changes
    return make_header(edit_model, calibration, **options)


def test_the_header_says_what_numbers_depend_on(edit_model):
    made = json.loads(json.dumps(header(edit_model, calibration(), explain=True)))
    assert made["model"]["identity"] == edit_model.identity
    assert made["preprocessing"]["framing"] == {"mode": "resize", "size": 56, "max_tiles": 6}
    assert made["threshold_origin"] == "fpr=0.05 on 400 real validation pictures"
    assert made["calibration"]["reals"] == 400
    assert "real_scores" not in made["calibration"]
    assert "Sees brightness only." in made["limits"]
    assert made["environment"]["packages"]["torch"]


def test_settings_change_with_what_a_row_depends_on_only(edit_model):
    own = calibration()
    same = [header(edit_model, own), header(edit_model, own, device="cuda", inputs=9, command="x")]
    assert same[0]["settings"] == same[1]["settings"]
    others = [
        header(edit_model, own.fixed(0.5)),
        header(edit_model, own.at(0.05)),
        header(edit_model, own, explain=True),
    ]
    edit_model.identity = "fedcba9876543210"
    others.append(header(edit_model, own))
    texts = {json.dumps(each["settings"]) for each in [same[0], *others]}
    assert len(texts) == 5


def test_the_end_counts_rows(edit_model):
    rows = [ScanRow("a", verdict="edited"), ScanRow("b", error="broken")]
    made = finished(header(edit_model, calibration()), rows, 1.25)
    assert made["counts"] == {"edited": 1, "uncertain": 0, "real": 0, "error": 1}
    assert made["complete"]
    assert not finished(made, rows[:1], 1.0)["complete"]
