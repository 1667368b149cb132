import json

import pytest

from vision_lowrank.engine.metrics_log import MetricsLog
from vision_lowrank.errors import UserError


def make(folder, *, fresh=True, enabled=True, tensorboard=False):
    return MetricsLog(folder, enabled=enabled, fresh=fresh, tensorboard=tensorboard)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_position_and_values_and_are_strict_json(tmp_path):
    log = make(tmp_path)
    log.write(None, 0, 0, {"test/accuracy": 0.5}, split="test")
    log.write("fit", 3, 13, {"loss": float("nan"), "lr": 0.1})
    assert lines(tmp_path) == [
        {"stage": None, "step": 0, "global_step": 0, "split": "test", "test/accuracy": 0.5},
        {"stage": "fit", "step": 3, "global_step": 13, "loss": None, "lr": 0.1},
    ]
    assert "NaN" not in log.path.read_text()


def test_leftovers_of_a_run_without_checkpoints_are_replaced(tmp_path):
    make(tmp_path).write("old", 1, 1, {})
    log = make(tmp_path)
    assert log.size == 0
    log.write("new", 1, 1, {})
    assert [line["stage"] for line in lines(tmp_path)] == ["new"]


def test_rewinding_drops_later_and_half_written_lines(tmp_path):
    log = make(tmp_path)
    log.write("fit", 1, 1, {})
    size = log.size
    log.write("fit", 2, 2, {})
    with log.path.open("a") as file:
        file.write('{"stage": "fi')
    resumed = make(tmp_path, fresh=False)
    resumed.rewind(size, 1)
    resumed.write("fit", 2, 2, {})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_rewinding_never_lengthens_the_log(tmp_path):
    log = make(tmp_path)
    log.write("fit", 1, 1, {})
    size = log.size
    log.rewind(10_000, 1)
    assert log.size == size


def test_only_the_main_process_writes(tmp_path):
    make(tmp_path, enabled=False).write("fit", 1, 1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_log_is_a_clear_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl could not be written \(Is a directory\): make room"):
        make(tmp_path, fresh=False).write("fit", 1, 1, {})


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = make(tmp_path, tensorboard=True)
    for step in (1, 2):
        log.write("fit", step, step, {"loss": step / 4})
    log.write("fit", 2, 2, {"val/accuracy": 0.5}, split="val")
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("fit/train/loss")] == [(1, 0.25), (2, 0.5)]
    assert [event.value for event in events.Scalars("fit/val/val/accuracy")] == [0.5]
