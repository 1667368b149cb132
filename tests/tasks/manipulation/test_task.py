import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.processes import run_in_two
from sklearn.metrics import roc_auc_score
from tasks.manipulation.conftest import EDITS

from vision_lowrank.config import load_config
from vision_lowrank.data.manipulation.base import ManipulationSet, ManipulationSplits
from vision_lowrank.engine import Engine, Hook
from vision_lowrank.errors import ConfigError, UserError
from vision_lowrank.metrics.calibration import Calibration
from vision_lowrank.studies.run import build_task, run
from vision_lowrank.tasks.manipulation.model import ManipulationModel

QUICK = ["task.contrast=null", "task.layer=3", "engine.steps=2"]


def started(path, *overrides, folder="run"):
    """A task with its engine, before anything."""
    config = load_config(path, list(overrides))
    task = build_task(config, 1)
    return task, Engine(config.engine, task, path.parent / folder, seed=1)


def trained(path, *overrides, folder="run"):
    task, engine = started(path, *overrides, folder=folder)
    engine.fit()
    return task, engine


def part_of(name):
    """``adapter``, ``decoder``, ``projector`` or a buffer, by a tensor's name in the task."""
    return "adapter" if "lora_" in name or "weight_update" in name else name.removeprefix("model.").split(".")[0]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rows_of(folder):
    with open(folder / "pictures.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def alike(one, other):
    """Equal bit for bit; nan is nan."""
    return torch.equal(torch.nan_to_num(one, -7.0), torch.nan_to_num(other, -7.0))


def same(one, other):
    assert one.keys() == other.keys()
    different = [name for name, t in one.items() if not alike(t, other[name])]
    assert not different


# A run ------------------------------------------------------------------------------------------------------------


def test_the_stages_run_in_order_and_train_what_they_say(detection):
    moved = {}

    class Watch(Hook):
        def on_stage_start(self, engine):
            self.before = {name: t.clone() for name, t in engine.task.state_dict().items()}

        def on_stage_end(self, engine):
            after = engine.task.state_dict()
            moved[engine.stage.name] = {part_of(n) for n, t in after.items() if not alike(t, self.before[n])}

    config = load_config(detection)
    task = build_task(config, 1)
    Engine(config.engine, task, detection.parent / "run", seed=1, hooks=[Watch()]).fit()
    assert list(moved) == ["contrast", "layers", "decoders"]
    assert moved["contrast"] == {"adapter", "projector", "contrast_table"}
    assert moved["layers"] <= {"layer", "layer_table"}
    assert moved["decoders"] == {"adapter", "decoder", "val_logits"}
    assert not any(table.isnan().any() for table in (task.contrast_table, task.layer_table, task.val_logits))


def test_every_file_and_number_of_a_run_is_there(finished):
    _config, result, folder = finished
    written = json.loads((folder / "result.json").read_text())
    facts = written["facts"]["manipulation"]
    assert written["metrics"] == result["seeds"]["1"]["metrics"]
    assert [row["layer"] for row in facts["layers"]["table"]] == [1, 2, 3, 4, 5, 6]
    best = max(facts["layers"]["table"], key=lambda row: row["score"])
    assert facts["layers"]["chosen"] == best["layer"]
    for place in ("before", "after"):
        assert -1 <= facts["contrast"][place]["twin_cosine"] <= 1
        assert 0 <= facts["contrast"][place]["probe_auc"] <= 1
    assert facts["contrast"]["before"] != facts["contrast"]["after"]
    assert (facts["calibration"]["reals"], facts["calibration"]["edits"]) == (6, 12)
    assert "real_scores" not in facts["calibration"]
    details = json.loads((folder / "details.json").read_text())
    assert details["layers"] == facts["layers"]
    assert set(details["sets"]["test/test"]["slices"]["editor"]) == set(EDITS)
    low, high = (details["sets"]["test/test"]["intervals"]["auc"][end] for end in ("low", "high"))
    assert low <= written["metrics"]["test/test/auc"] <= high
    assert (folder.parent / "report.html").is_file()


def test_every_number_can_be_computed_again_from_the_rows(finished, edited):
    _, result, folder = finished
    metrics, rows = result["seeds"]["1"]["metrics"], rows_of(folder)
    ids = [json.loads(line)["id"] for line in (edited / "test.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ids
    labels, p = [int(row["label"]) for row in rows], [float(row["probability"]) for row in rows]
    assert metrics["test/test/auc"] == pytest.approx(roc_auc_score(labels, p))
    f1 = [float(row["pixel_f1"]) for row in rows if row["pixel_f1"]]
    assert len(f1) == sum(labels)
    assert metrics["test/test/pixel_f1"] == pytest.approx(np.mean(f1), abs=1e-4)
    iou = [float(row["box_iou"]) for row in rows if row["box_iou"]]
    assert metrics["test/test/box_union_iou"] == pytest.approx(np.mean(iou), abs=1e-4)
    right = [row["verdict"] == ("edited" if label else "real") for row, label in zip(rows, labels, strict=True)]
    assert metrics["test/test/accuracy"] == pytest.approx(np.mean(right))
    for editor in EDITS:
        own = [p for p, row in zip(p, rows, strict=True) if row["editor"] in (editor, "")]
        wanted = [row["editor"] == editor for row in rows if row["editor"] in (editor, "")]
        assert metrics[f"test/test/editor/{editor}/auc"] == pytest.approx(roc_auc_score(wanted, own))


def test_the_baseline_moves_nothing_and_is_better_than_nothing_learnt(detection):
    task, engine = started(detection)
    before = {name: t.clone() for name, t in task.state_dict().items()}
    flags = {name: p.requires_grad for name, p in task.named_parameters()}
    baseline = engine.evaluate_untrained()
    same(task.state_dict(), before)
    assert {name: p.requires_grad for name, p in task.named_parameters()} == flags
    # Its box is the mean training box, whatever the picture.
    assert baseline["test/test/box_union_iou"] == pytest.approx(
        baseline["test/test/constant_box/box_union_iou"], abs=0.02
    )
    with torch.no_grad():
        for parameter in task.parts.tower.values():
            parameter.add_(torch.randn_like(parameter))
    again = build_task(load_config(detection), 1)
    again_engine = Engine(engine.config, again, detection.parent / "other", seed=1)
    with torch.no_grad():
        for parameter in again.parts.tower.values():
            parameter.add_(torch.randn_like(parameter))
    assert again_engine.evaluate_untrained() == baseline  # the adapter is off


# What decides -----------------------------------------------------------------------------------------------------


def test_calibration_is_that_of_the_validation_pictures(finished):
    config, _result, folder = finished
    detector = ManipulationModel.load(folder / "artefact")
    val = build_task(config, 1).splits.val
    findings = detector.predict([val.image(i) for i in range(len(val))], calibration=Calibration())
    logits = torch.tensor([finding.probability for finding in findings], dtype=torch.float64).logit()
    expected = Calibration.fit(logits, val.labels != 0)
    assert detector.calibration.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert detector.calibration.real_scores == pytest.approx(expected.real_scores, abs=1e-5)


def test_test_pictures_decide_nothing(detection, monkeypatch):
    short = ["task.contrast.steps=2", "engine.steps=2"]
    task, _ = trained(detection, *short, folder="plain")

    def other(config):
        splits = ORIGINAL(config)
        test = splits.tests["test"]
        records = [replace(record, label=1 - record.label, boxes=None, mask=None) for record in test.records]
        return ManipulationSplits(splits.train, splits.val, {"test": ManipulationSet.of("test", records, test.root)})

    from vision_lowrank.tasks.manipulation import building
    from vision_lowrank.tasks.manipulation import task as module

    ORIGINAL = building.load_manipulation
    monkeypatch.setattr(module, "load_manipulation", other)
    turned, engine = trained(detection, *short, folder="turned")
    assert (turned.splits.tests["test"].labels != task.splits.tests["test"].labels).all()
    engine.evaluate("test")
    same(turned.trained_state(), task.trained_state())
    assert turned.model.calibration == task.model.calibration


def test_the_best_state_on_validation_pictures_is_kept(detection):
    _task, engine = trained(detection, *QUICK, "task.select=val", "engine.steps=4", "engine.eval_every=1")
    found = [line["val/auc"] for line in lines_of(detection.parent / "run") if "val/auc" in line]
    assert engine.evaluate("val")["val/auc"] == pytest.approx(max(found))


def test_degraded_test_sets_have_metrics_of_their_own(detection):
    task, engine = trained(detection, *QUICK, "task.robustness=[resize-0.5,screenshot]")
    metrics = engine.evaluate("test")
    assert metrics["test/test/screenshot-1/auc"] == metrics["test/test/auc"]
    assert metrics["test/test/resize-0.5/pixel_pictures"] == metrics["test/test/pixel_pictures"]
    task.write_details(detection.parent, engine.outputs)
    sets = {f"test/test{suffix}" for suffix in ("", "/resize-0.5", "/screenshot-1")}
    assert {row["set"] for row in rows_of(detection.parent)} == sets
    assert set(json.loads((detection.parent / "details.json").read_text())["sets"]) == {"test/test"}


def test_without_test_pictures_there_are_no_rows(detection, monkeypatch):
    from vision_lowrank.tasks.manipulation import building
    from vision_lowrank.tasks.manipulation import task as module

    whole = building.load_manipulation
    monkeypatch.setattr(module, "load_manipulation", lambda config: replace(whole(config), tests={}))
    result = run(load_config(detection, QUICK))
    assert "val/auc" in result["metrics"]


# Rates ------------------------------------------------------------------------------------------------------------


def rates(task):
    """(lowest name of a parameter, rate) of every group of the present stage; None = the stage's."""
    names = {id(p): name for name, p in task.named_parameters()}
    found = {}
    for group in task.parameter_groups():
        for parameter in group["params"]:
            part = part_of(names[id(parameter)])
            assert found.setdefault(part, group.get("lr")) == group.get("lr")
    return found


def test_every_part_has_its_rate(detection):
    task, _ = started(detection, "task.losses.contrast=0.1", "task.contrast.lr=0.5", "task.adapter_lr_factor=0.1")
    contrast, layers, decoders = task.stages()
    assert (contrast.engine["lr"], contrast.engine["steps"]) == (0.5, 4)
    task.begin_stage(contrast)
    assert rates(task) == {"adapter": None, "projector": 1e-3}
    task.begin_stage(layers)
    assert rates(task) == {}
    task.begin_stage(decoders)
    assert rates(task) == {"adapter": pytest.approx(2e-4), "projector": None, "decoder": None}


def test_at_rate_zero_the_adapter_rests_beside_the_decoders(detection):
    task, _ = started(detection, "task.adapter_lr_factor=0")
    task.begin_stage(task.stages()[-1])
    assert rates(task) == {"decoder": None}


def test_the_contrast_may_go_on_beside_the_decoders(detection):
    trained(detection, *QUICK, "task.losses.contrast=0.3")
    terms = ("detection", "cues", "boxes", "objectness", "tokens", "contrast")
    for line in lines_of(detection.parent / "run"):
        if "loss" in line:
            assert line["loss"] == pytest.approx(sum(line[name] for name in terms), rel=1e-4)
            assert (line["used/detection"], line["used/cues"], line["used/boxes"]) == (6, 3, 3)


# Resuming and processes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(finished):
    config, _, folder = finished
    task = build_task(config, 1)
    engine = Engine(config.engine, task, folder, seed=1, rule=config.rule)
    engine.fit()  # all stages are replayed
    return task, engine


@pytest.mark.parametrize("place", [("contrast", 3), ("layers", 0), ("decoders", 1), ("decoders", 5)])
def test_a_killed_run_goes_on_bit_for_bit(detection, place, uninterrupted, edited):
    class Kill(Hook):
        def after_step(self, engine):
            if (engine.stage.name, engine.step) == place:
                raise KeyboardInterrupt

        def on_stage_end(self, engine):
            if (engine.stage.name, engine.step) == place:
                raise KeyboardInterrupt

    config = load_config(detection)
    with pytest.raises(KeyboardInterrupt):
        Engine(config.engine, build_task(config, 1), detection.parent / "cut", seed=1, hooks=[Kill()]).fit()
    seen = []

    class Stages(Hook):
        def on_stage_start(self, engine):
            seen.append(engine.stage.name)

    task = build_task(config, 1)
    engine = Engine(config.engine, task, detection.parent / "cut", seed=1, hooks=[Stages()])
    engine.fit()
    assert seen[0] == place[0]
    whole, whole_engine = uninterrupted
    same(task.trained_state(), whole.trained_state())
    assert task.model.calibration == whole.model.calibration
    assert engine.evaluate("test") == whole_engine.evaluate("test")


def test_two_processes_give_the_result_of_one(detection, tmp_path):
    # No dropout, whose masks differ from process to process; the second batch of an epoch is smaller.
    options = ["adapter.dropout=0", "task.dropout=0", "task.losses.contrast=0.1", "engine.batch_size=4"]
    options += ["task.contrast.steps=2", "engine.steps=3"]
    run(load_config(detection, [*options, "name=one"]))
    run_in_two("-m", "vision_lowrank", "train", detection, "name=two", *options)
    one, two = (
        json.loads((tmp_path / "runs" / name / "seed-1" / "result.json").read_text()) for name in ("one", "two")
    )
    facts = [each["facts"]["manipulation"] for each in (one, two)]
    assert facts[0]["layers"]["chosen"] == facts[1]["layers"]["chosen"]
    assert facts[1]["contrast"]["after"] == pytest.approx(facts[0]["contrast"]["after"], abs=1e-3)
    ours, theirs = (rows_of(tmp_path / "runs" / name / "seed-1") for name in ("one", "two"))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["id"] == other["id"]
        assert float(mine["probability"]) == pytest.approx(float(other["probability"]), abs=1e-3)


# Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.layer=7"], r"task.layer=7: 'tiny-clip' has layers 0 to 6"),
        (["task.layer=-1"], r"task.layer=-1: 'tiny-clip' has layers 0 to 6"),
        (["task.trains_base=true"], "leave the adapter out"),
        (["adapter=null"], "task.contrast needs weights to train"),
        (["task.robustness=[jpg-70]"], "unknown degradation 'jpg'. Did you mean 'jpeg'"),
        (["task.explanation={}"], "has no language model: use a multimodal LLM"),
        (["adapter=null", "task.contrast=null", "initializer={type: pissa}"], "there is no adapter to start"),
        (["adapter.towers=[vision,text]"], r"text tower too, which nothing here trains: set adapter.towers=\[vision\]"),
        (["task.width=20"], "width 20"),
        (["task.augmentation=twin"], "twins"),
    ],
)
def test_bad_settings_are_one_line(detection, overrides, message):
    with pytest.raises((UserError, ConfigError), match=message) as caught:
        build_task(load_config(detection, overrides), 1)
    assert "\n" not in str(caught.value)


def test_a_classification_task_refuses_edited_pictures_and_this_one_refuses_classes(
    detection, recipe, edited, pictures
):
    with pytest.raises(UserError, match=r"'manipulation' gives edits, but classes are needed here.* folder") as caught:
        build_task(load_config(recipe, [f"data={{type: manipulation, path: {edited}}}"]), 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"'folder' gives classes, but edits are needed here.* manipulation") as caught:
        build_task(load_config(detection, [f"data={{type: folder, root: {pictures}}}"]), 1)
    assert "\n" not in str(caught.value)


def rewritten(edited, folder, keep):
    """A copy of the data set with the records of `keep(split, row)`, a row or None."""
    folder.mkdir()
    for split in ("train", "val", "test"):
        rows = [keep(split, json.loads(line)) for line in (edited / f"{split}.jsonl").read_text().splitlines()]
        for row in filter(None, rows):
            for key in ("image", "mask"):
                if key in row:
                    row[key] = str(edited / row[key])
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in filter(None, rows)))
    return folder


def test_layers_cannot_be_chosen_on_too_few_photographs(detection, edited, tmp_path):
    def keep(split, row):
        return row if split != "val" or row["source_id"] in ("val-0", "val-1") else None

    data = rewritten(edited, tmp_path / "few", keep)
    with pytest.raises(UserError, match=r"task\.layer=lds looks at validation pictures of 5 photographs"):
        build_task(load_config(detection, [f"data.path={data}"]), 1)
    build_task(load_config(detection, [f"data.path={data}", "task.layer=last"]), 1)


def test_pairs_need_twins(detection, edited, tmp_path):
    def keep(split, row):
        alone = split == "train" and (row["label"] == 0) == (row["source_id"] in ("train-0", "train-1"))
        return row if split != "train" or alone else None

    data = rewritten(edited, tmp_path / "alone", keep)
    overrides = [f"data.path={data}", "task.contrast.reading=pair"]
    with pytest.raises(UserError, match="reading=pair needs pictures with their own edits"):
        build_task(load_config(detection, overrides), 1)
    build_task(load_config(detection, overrides[:1]), 1)


def test_one_kind_of_picture_is_not_enough(detection, edited, tmp_path):
    data = rewritten(edited, tmp_path / "reals", lambda split, row: None if split == "val" and row["label"] else row)
    with pytest.raises(UserError, match="val pictures of 'val' are not of both kinds"):
        build_task(load_config(detection, [f"data.path={data}"]), 1)
