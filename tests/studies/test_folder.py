import json
import os
import shutil
import subprocess
import sys

import pytest

from vision_lowrank.cli.main import main
from vision_lowrank.config import load_config
from vision_lowrank.errors import UserError
from vision_lowrank.lock import locked
from vision_lowrank.studies import run as experiment
from vision_lowrank.studies.folder import open_run, run_folder

TIMINGS = {"seconds", "samples_per_second", "peak_memory_mib"}


class Killed(Exception):
    pass


def killed(config, at, monkeypatch):
    """Run until a step of the first seed, as a process does that is killed there."""

    class Dying(experiment.Engine):
        def update(self):
            norm = super().update()
            if self.step == at:
                raise Killed
            return norm

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "Engine", Dying)
        with pytest.raises(Killed):
            experiment.run(config)


def command(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def log_of(folder):
    lines = map(json.loads, (folder / "seed-1" / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def test_a_kill_before_the_first_checkpoint_leaves_the_same_run(recipe, monkeypatch):
    whole, cut = (load_config(recipe, ["seeds=[1]", f"name={name}"]) for name in ("whole", "cut"))
    experiment.run(whole)
    killed(cut, 1, monkeypatch)
    assert (run_folder(cut) / "seed-1" / "baseline.json").is_file()
    experiment.run(cut)
    expected = log_of(run_folder(whole))
    assert expected[0]["split"] == "test"  # the baseline
    assert log_of(run_folder(cut)) == expected


def test_the_folder_that_is_resumed_is_the_folder_given(recipe, tmp_path, monkeypatch, capsys):
    config = load_config(recipe, ["seeds=[1]"])
    killed(config, 3, monkeypatch)
    moved = tmp_path / "elsewhere" / "another-name"
    moved.parent.mkdir()
    shutil.move(run_folder(config), moved)
    monkeypatch.chdir(moved.parent)
    assert command("train", "--resume", "another-name") == 0
    assert f"report: {os.path.join('another-name', 'report.html')}" in capsys.readouterr().out
    assert (moved / "seed-1" / "artefact" / "artefact.json").is_file()
    assert max(line["global_step"] for line in log_of(moved)) == 4
    assert not run_folder(config).exists()
    assert command("train", "--resume", moved, "name=third") == 2
    assert f"vision-lowrank train {moved / 'config.yaml'} name=third" in capsys.readouterr().err


def test_a_refused_run_does_not_block_its_correction(recipe, tmp_path, capsys):
    wrong = ["seeds=[1]", "name=again", "task.shots=99"]
    assert command("train", recipe, *wrong) == 2
    assert (tmp_path / "runs" / "again" / "config.yaml").is_file()
    assert command("train", recipe, *wrong[:2]) == 0
    assert load_config(tmp_path / "runs" / "again" / "config.yaml").task.shots == 2


def test_what_was_computed_before_training_is_not_taken_for_another_config(recipe, monkeypatch):
    one, other = (load_config(recipe, ["seeds=[1]", f"task.templates=['{text} {{}}']"]) for text in ("a", "the wild"))
    killed(one, 1, monkeypatch)
    result = experiment.run(other)
    fresh = experiment.run(other.model_copy(update={"name": "fresh"}))
    assert result["baseline"] == fresh["baseline"]
    assert log_of(run_folder(other)) == log_of(run_folder(other).parent / "fresh")


def test_a_finished_run_says_so_and_why_it_does_not_go_on_with_more_steps(recipe, tmp_path, capsys):
    folder = tmp_path / "runs" / "shapes"
    assert command("train", recipe, "seeds=[1]") == 0
    assert "already done" not in capsys.readouterr().err
    assert command("train", "--resume", folder) == 0
    assert f"{folder / 'seed-1'}: already done" in capsys.readouterr().err
    assert command("train", "--resume", folder, "engine.steps=9") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "a run goes on only as it began" in error
    assert "differs in 'steps: 4' there, 'steps: 9' here" in error
    assert command("train", "--resume", folder, "engine.log_every=2") == 0  # nothing that decides a result


def test_a_second_process_is_kept_out_and_told_the_id_of_the_first(recipe, tmp_path, capsys):
    with locked(tmp_path / "runs" / "shapes"):
        assert command("train", recipe, "seeds=[1]") == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"process {os.getpid()} on" in error
    assert not (tmp_path / "runs" / "shapes" / "config.yaml").exists()


def test_a_lock_goes_with_its_process(tmp_path):
    """However it ends, and though a child of it lives on."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom vision_lowrank.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n        os.write(1, b'child\\n')\n        time.sleep(60)\n        os._exit(0)\n"
        "    os.write(1, b'locked\\n')\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert sorted(process.stdout.readline() for _ in range(2)) == ["child\n", "locked\n"]
        with pytest.raises(UserError, match=f"process {process.pid} on"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with locked(tmp_path):
            assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on")
        assert not (tmp_path / ".lock").exists()
    finally:
        os.killpg(process.pid, 9)
        process.stdout.close()


def test_a_damaged_config_of_a_run_is_another_runs(recipe):
    config = load_config(recipe)
    folder = run_folder(config)
    (folder / "seed-1").mkdir(parents=True)
    (folder / "config.yaml").write_text("[")
    (folder / "seed-1" / "result.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run of another config"):
        open_run(folder, config)
