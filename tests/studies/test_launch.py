"""Where jobs run makes no difference to what they find; what dies, diverges or is interrupted costs itself only."""

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vision_lowrank.engine.step_runner import TrainingDiverged
from vision_lowrank.errors import UserError
from vision_lowrank.studies import job as jobs
from vision_lowrank.studies.cluster import Submitit
from vision_lowrank.studies.job import Timing, Training, from_json, to_json
from vision_lowrank.studies.launch import Stopped, here
from vision_lowrank.studies.methods import Methods
from vision_lowrank.studies.processes import Processes
from vision_lowrank.studies.study import run_study
from vision_lowrank.studies.variants import entries, leaves

SETTINGS = ("engine.checkpoint_every=1",)


def planned(shapes, folder, methods="lora,lora_xs", settings=SETTINGS):
    """A study of two methods and two seeds."""
    return Methods(shapes, entries(methods)).study(folder, settings)


def found(folder):
    """All that the jobs of a study found, but what it cost."""
    results = {path.relative_to(folder): json.loads(path.read_text()) for path in folder.glob("*/*/*/result.json")}
    return {path: dict(leaves(result | {"cost": None})) for path, result in results.items()}


def differences(some, others):
    """What two :func:`found` do not agree in."""
    assert some.keys() == others.keys()
    keys = {(path, key) for path in some for key in some[path].keys() | others[path].keys()}
    pairs = {(path, key): (some[path].get(key), others[path].get(key)) for path, key in keys}
    return {where: pair for where, pair in pairs.items() if pair[0] != pair[1]}


@pytest.fixture(scope="module")
def alone(shapes):
    """The study in this process."""
    study = planned(shapes, shapes.parent / "alone")
    run_study(study)
    return found(study.folder)


def test_job_is_text():
    training = Training("lora: seed 1", "a/b", {"engine": {"lr": 1e-3}}, 1, "a")
    timing = Timing("lora: time", "a", {"task": {"type": "x"}}, {"adapter": None})
    assert [from_json(to_json(each)) for each in (training, timing)] == [training, timing]
    assert isinstance(json.loads(to_json(training)), dict)


def test_two_processes_find_what_one_finds(shapes, tmp_path, alone, capfd):
    study, said = replace(planned(shapes, tmp_path / "out"), reference=None), []
    result = run_study(study, Processes(2), said.append)
    assert len(alone) == 4
    assert differences(found(study.folder), alone) == {}
    assert not any("left_out" in row for row in result["rows"])
    assert [line.partition(": ")[0] for line in said if "seed" in line] == [f"job {n} of 4" for n in (1, 2, 3, 4)]
    for path in found(study.folder):  # what a job prints is in its own folder, and not here
        assert "steps of about" in (study.folder / path).with_name("log.txt").read_text()
    assert "steps of about" not in capfd.readouterr().err


def test_process_that_dies_costs_its_job_and_an_interrupt_leaves_checkpoints(shapes, tmp_path, monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **how: started.append(popen(*given, **how)) or started[-1])
    study = planned(shapes, tmp_path / "out", "lora", (*SETTINGS, "engine.steps=3000"))
    folder, said = tmp_path / "out" / "lora" / "lr-0.01", []

    def say(line):
        said.append(line)
        if line.startswith("job 1"):  # as the system does where memory is short
            started[-1].kill()
        elif line.startswith("job 2"):
            threading.Thread(target=interrupt).start()

    def interrupt():
        while not list((folder / "seed-2" / "checkpoints").glob("step-*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="interrupted with 1 of 2 jobs left"):
        run_study(study, Processes(1), say)
    assert said[1].startswith("lora: learning rate 0.01, seed 1 left out: its process ended with code -9")
    assert not list(folder.glob("*/result.json"))
    assert list((folder / "seed-2" / "checkpoints").glob("step-*"))
    assert [process.returncode for process in started] == [-9, 0]


def test_jobs_share_threads_and_gpus(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 9)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert list(Processes(2)._shares(2)) == [(4, None), (4, None)]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert list(Processes(3)._shares(3)) == [(3, "0"), (3, "1"), (3, "0")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [device for _, device in Processes(2)._shares(2)] == ["5", "7"]


def test_submitit_finds_what_one_process_finds(shapes, tmp_path, alone):
    pytest.importorskip("submitit")
    study, said = planned(shapes, tmp_path / "out", "lora", (*SETTINGS, "seeds=[2]")), []
    [row] = run_study(study, Submitit(study.folder / "submitit", {"cluster": "local", "timeout_min": 5}), said.append)[
        "rows"
    ]
    [path] = found(study.folder)
    assert differences(found(study.folder), {path: alone[path]}) == {}
    assert "step_ratio" in row
    assert said[0].startswith("1 jobs submitted")
    assert sum("done" in line for line in said) == 2  # a training, and a measurement
    assert list((study.folder / "submitit").glob("*_log.out"))


def test_submitit_refuses_what_it_does_not_know(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="--cluster: "):
        Submitit(tmp_path, {"cluster": "local", "nonsense": 1})


def diverging(monkeypatch, where):
    """Have jobs end as a training that diverged, those of which `where` says so by config and seed."""
    run_seed = jobs.run_seed

    def run(config, seed, folder):
        if where(config, seed):
            raise TrainingDiverged("stage 'train', step 2: the loss is nan")
        return run_seed(config, seed, folder)

    monkeypatch.setattr(jobs, "run_seed", run)


def test_a_diverged_job_costs_its_own_cell_and_is_named(shapes, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        diverging(patch, lambda config, seed: config.engine.lr > 1)
        plan = Methods(shapes, entries("lora"), rates=(1e-2, 1e3))
        result = run_study(plan.study(tmp_path / "rates", ("engine.steps=3", "seeds=[1]")))
    [row] = result["rows"]
    assert (row["lr"], set(row["validation"])) == (1e-2, {"0.01"})
    [(left_out, reason)] = row["left_out"].items()
    assert left_out == "learning rate 1000, seed 1"
    assert "the loss is nan" in reason
    assert "lora: learning rate 1000, seed 1 | left out: " in (tmp_path / "rates" / "study.md").read_text()

    diverging(monkeypatch, lambda config, seed: seed == 2)
    result = run_study(planned(shapes, tmp_path / "seeds"))
    for row in result["rows"]:
        assert list(row["left_out"]) == ["learning rate 0.01, seed 2"]
        assert {value["n"] for value in row["metrics"].values()} == {1}


def test_all_rates_diverged_is_a_failed_row(shapes, tmp_path, monkeypatch):
    diverging(monkeypatch, lambda config, seed: True)
    plan = Methods(shapes, entries("lora"), rates=(1e-2, 1e-3))
    with pytest.raises(UserError, match="the loss is nan"):
        run_study(plan.study(tmp_path, ("engine.steps=3", "seeds=[1]")))


def test_no_validation_data_to_choose_a_rate_by(shapes, tmp_path):
    plan = Methods(shapes, entries("lora"), rates=(1e-2, 1e-3))
    with pytest.raises(UserError, match=r"there is no val/accuracy to choose a learning rate by.*give one --lr"):
        run_study(plan.study(tmp_path, ("engine.steps=2", "seeds=[1]", "data.fractions=[0.7, 0.0, 0.3]")))


def test_folder_of_another_config_is_left_alone(shapes, tmp_path):
    study = planned(shapes, tmp_path, "lora")
    run_study(study)
    before = found(tmp_path)
    with pytest.raises(UserError, match="another config"):
        run_study(planned(shapes, tmp_path, "lora", (*SETTINGS, "engine.steps=3")))
    assert found(tmp_path) == before


def test_what_is_nobodys_mistake_is_a_reason_with_its_traceback_in_the_log(tmp_path):
    job = Timing("x", str(tmp_path / "job"), None, None)
    assert here([job], lambda line: None) != [None]
    assert "Traceback" in Path(job.folder, "log.txt").read_text()
