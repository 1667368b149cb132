import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from vision_lowrank.data.manipulation.base import ManipulationSet, PictureRecord
from vision_lowrank.data.manipulation.framing import Framing
from vision_lowrank.data.manipulation.robustness import parse
from vision_lowrank.data.manipulation.schema import read_schema
from vision_lowrank.data.transforms import Preprocess
from vision_lowrank.metrics.calibration import Calibration
from vision_lowrank.tasks.manipulation.frames import Frames, stacked
from vision_lowrank.tasks.manipulation.levels import map_level
from vision_lowrank.tasks.manipulation.model import ManipulationModel
from vision_lowrank.tasks.manipulation.pictures import Annotations, Pictures, boxes_of
from vision_lowrank.tasks.manipulation.scoring import Priors, details, score, write_pictures
from vision_lowrank.tasks.manipulation.untrained import Untrained

CUES = ("noise", "texture", "color")
SURE = 20.0


class Eyes:
    """A detector without a model: what :func:`score` asks of one."""

    cues = CUES
    framing = Framing("resize", 64)
    frames = Frames(framing, (16, 16), Preprocess(size=64, mean=(0.5,) * 3, std=(0.5,) * 3))
    heat = ManipulationModel.heat


@pytest.fixture(scope="module")
def test_set(edited):
    return read_schema(edited / "test.jsonl")


def known(pictures, degradation=None):
    annotated = Pictures(pictures, Annotations(Eyes.frames, CUES, 2), degradation)
    return stacked([annotated[index] for index in range(len(annotated))])


def right(pictures, degradation=None):
    """Outputs that say exactly what is annotated."""
    truth = known(pictures, degradation)
    there = torch.arange(2) < truth["box_count"][:, None]
    return {
        "logit": (truth["label"] * 2.0 - 1) * torch.linspace(3, 4, len(pictures)),
        "cues": (truth["cues"] * 2 - 1) * SURE,
        "boxes": truth["boxes"],
        "objectness": torch.where(there, SURE, -SURE),
        "tokens": (truth["tokens"] - 0.5) * SURE,
        "valid": truth["inside"],
    }


def scored(pictures, outputs, degradation=None, calibration=None):
    priors = Priors.of(pictures, CUES)
    return score(Eyes(), pictures, outputs, calibration or Calibration(), priors, degradation)


def changed(pictures, **by_id):
    """The set with some records changed."""
    records = [replace(record, **by_id.get(record.id, {})) for record in pictures.records]
    return ManipulationSet.of(pictures.name, records, pictures.root, pictures.vocabulary)


@pytest.mark.parametrize("degradation", [None, "resize-0.5"])
def test_who_says_what_is_annotated_has_the_best_score(test_set, degradation):
    degradation = degradation and parse(degradation)
    found = scored(test_set, right(test_set, degradation), degradation).metrics
    for name in ("auc", "accuracy", "cue_micro_f1", "editor/speckle/auc", "category/color/recall"):
        assert found[name] == 1, name
    assert found["box_union_iou"] == pytest.approx(1, abs=0.02)  # areas are whole pixels
    assert found["box_ap50"] == pytest.approx(1)
    assert found["pixel_f1"] > 0.8  # cells are four pixels wide
    assert found["pixel_false_localisation"] == found["box_false_localisation"] == 0
    assert found["constant_box/box_union_iou"] < 0.7


def test_image_level_metrics_are_scikit_learns(test_set):
    outputs = right(test_set) | {"logit": torch.randn(len(test_set))}
    found, y = scored(test_set, outputs).metrics, test_set.labels
    assert found["auc"] == pytest.approx(roc_auc_score(y, outputs["logit"]))
    assert found["ap"] == pytest.approx(average_precision_score(y, outputs["logit"]))
    for code, editor in enumerate(test_set.editors.names):
        own = (y == 0) | (test_set.editors.codes == code)
        assert found[f"editor/{editor}/auc"] == pytest.approx(roc_auc_score(y[own], outputs["logit"][own]))


def test_boxes_and_maps_count_whatever_the_verdict(test_set):
    outputs = right(test_set)
    calm = scored(test_set, outputs | {"logit": torch.full((len(test_set),), -9.0)}).metrics
    loud = scored(test_set, outputs).metrics
    for name in ("pixel_f1", "box_union_iou", "box_ap50"):
        assert calm[name] == loud[name]


def test_what_is_not_annotated_or_global_takes_no_part_in_localisation(test_set):
    first, second, third = [record.id for record in test_set.records if record.label][:3]
    missing = {first: {"mask": None}, second: {"boxes": None}, third: {"scope": "global"}}
    whole, fewer = scored(test_set, right(test_set)), scored(changed(test_set, **missing), right(test_set))
    assert (whole.metrics["pixel_pictures"], whole.metrics["box_pictures"]) == (8, 8)
    assert (fewer.metrics["pixel_pictures"], fewer.metrics["box_pictures"]) == (6, 6)
    empty = {row["id"]: (row["pixel_f1"] is None, row["box_iou"] is None) for row in fewer.rows if row["label"]}
    assert (empty[first], empty[second], empty[third]) == ((True, False), (False, True), (True, True))
    assert fewer.metrics["auc"] == whole.metrics["auc"]
    cueless = changed(test_set, **{first: {"cues": None}})
    assert scored(cueless, right(test_set)).metrics["cue_pictures"] == 7


def test_a_wrong_picture_counts_once(test_set):
    outputs = right(test_set)
    wrong = next(i for i, record in enumerate(test_set.records) if record.label)
    outputs["boxes"] = outputs["boxes"].clone()
    outputs["boxes"][wrong, 0] = torch.tensor([0.01, 0.01, 0.02, 0.02])
    found = scored(test_set, outputs)
    assert found.metrics["box_union_iou"] == pytest.approx(7 / 8, abs=0.01)
    assert found.rows[wrong]["box_iou"] == pytest.approx(0, abs=0.05)


def test_a_map_of_boxes_stands_in_for_a_token_map(test_set):
    outputs = right(test_set)
    del outputs["tokens"]
    assert scored(test_set, outputs).metrics["pixel_f1"] == pytest.approx(1, abs=1e-3)


def test_constants_are_those_of_the_training_pictures(test_set):
    priors = Priors.of(test_set, CUES)
    shares = [boxes_of(r).xyxy[0] / np.tile([r.width, r.height], 2) for r in test_set.records if r.label]
    np.testing.assert_allclose(priors.box, np.mean(shares, axis=0))
    assert priors.cue.tolist() in ([1, 0, 0], [0, 1, 0], [0, 0, 1])  # each is seen in half of the edits
    reals = test_set.subset(np.flatnonzero(test_set.labels == 0))
    assert Priors.of(reals, CUES).box is None
    plain = score(Eyes(), test_set, right(test_set), Calibration(), Priors.of(reals, CUES))
    assert not any(name.startswith("constant_box/") for name in plain.metrics)


def test_the_threshold_is_that_of_the_calibration(test_set):
    calm = scored(test_set, right(test_set), calibration=Calibration(threshold=0.99))
    assert calm.metrics["recall"] == 0
    assert {row["verdict"] for row in calm.rows} == {"real"}
    doubled = scored(test_set, right(test_set), calibration=Calibration(temperature=2.0))
    expected = (right(test_set)["logit"].double() / 2).sigmoid()
    assert [row["probability"] for row in doubled.rows] == pytest.approx(expected.tolist(), abs=1e-6)


def test_rows_and_details_are_files(test_set, tmp_path):
    torch.manual_seed(0)
    outputs = right(test_set) | {"logit": torch.randn(len(test_set))}
    found = scored(test_set, outputs)
    write_pictures(tmp_path / "rows.csv", {"test/a": found, "test/a/jpeg-50": found})
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["set"] for row in rows] == ["test/a"] * 12 + ["test/a/jpeg-50"] * 12
    assert json.loads(rows[1]["boxes"]) == [[pytest.approx(v, abs=0.06) for v in boxes_of(test_set.records[1]).xyxy[0]]]
    assert json.loads(rows[1]["cues"]) == ["noise", "texture"]
    about = details({"test/a": found, "test/a/jpeg-50": found})
    assert list(about) == ["test/a"]
    interval = about["test/a"]["intervals"]["auc"]
    assert interval["low"] <= found.metrics["auc"] <= interval["high"]
    assert about["test/a"]["slices"]["editor"]["speckle"]["count"] == 4
    json.dumps(about, allow_nan=False)
    write_pictures(tmp_path / "none.csv", {})
    assert not (tmp_path / "none.csv").exists()


# The untrained baseline -------------------------------------------------------------------------------------------


def test_the_baseline_knows_features_and_means_alone(test_set):
    truth = known(test_set)
    torch.manual_seed(0)
    features = torch.randn(len(test_set), 5) + 2 * truth["label"][:, None]
    plain = Untrained(truth | {"features": features})
    new = torch.randn(3, 5)
    outputs = plain.outputs(new, truth["inside"][:3])
    scale = (features.double().mean(dim=0), features.double().std(dim=0, correction=0))
    x, z = (((each.double() - scale[0]) / scale[1]).numpy() for each in (features, new))
    probe = LogisticRegression(max_iter=1000).fit(x, truth["label"].numpy())
    assert outputs["logit"].tolist() == pytest.approx(probe.decision_function(z), abs=1e-4)
    edits = truth["label"] > 0
    torch.testing.assert_close(outputs["boxes"][2, 0], truth["boxes"][edits, 0].mean(dim=0))
    mean = truth["tokens"][edits].mean(dim=0).clamp(1e-3, 1 - 1e-3).logit()
    valid = torch.ones(int(edits.sum()), len(mean), dtype=torch.bool)
    level = map_level(mean.expand(len(valid), -1), valid, truth["tokens"][edits])
    torch.testing.assert_close(outputs["tokens"][0], mean - level)
    assert (outputs["tokens"] > 0).any()  # the mean map finds something
    torch.testing.assert_close(outputs["cues"][1].sigmoid(), torch.full((3,), 0.5))
    assert (outputs["objectness"] > 0).tolist() == [[True, False]] * 3
    plain.calibrate({"features": features, "label": truth["label"]})
    expected = Calibration.fit(probe.decision_function(x), truth["label"])
    assert plain.calibration.temperature == pytest.approx(expected.temperature, rel=1e-4)
    assert plain.calibration.real_scores == pytest.approx(expected.real_scores, rel=1e-6)


def test_the_baseline_does_without_what_is_not_annotated():
    records = [PictureRecord("a", "a", 0, "a", width=4, height=4), PictureRecord("b", "b", 1, "a", width=4, height=4)]
    assert Priors.of(ManipulationSet.of("bare", records, None), CUES).box is None
    truth = {
        "label": torch.tensor([0, 1]), "has_cues": torch.zeros(2, dtype=torch.bool), "cues": torch.zeros(2, 3),
        "boxes": torch.zeros(2, 2, 4), "box_count": torch.zeros(2), "tokens": torch.zeros(2, 9),
        "has_tokens": torch.tensor([True, False]), "features": torch.tensor([[0.0], [1.0]]),
    }  # fmt: skip
    outputs = Untrained(truth).outputs(torch.tensor([[0.5]]), torch.ones(1, 9, dtype=torch.bool))
    assert outputs["boxes"][0, 0].tolist() == [0.5] * 4
    assert all(value.isfinite().all() for value in outputs.values())
