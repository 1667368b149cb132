"""Recipes side by side: fair conditions, tables by the task's own metrics, honest rows, and going on after an
interruption; on class-incremental recipes, whose numbers come session after session."""

import csv
import json
import re
from dataclasses import replace

import pytest

from vision_lowrank.cli.main import main
from vision_lowrank.engine import Interrupted
from vision_lowrank.engine.loop import Engine
from vision_lowrank.errors import UserError
from vision_lowrank.studies import job
from vision_lowrank.studies import run as experiment
from vision_lowrank.studies.columns import tables
from vision_lowrank.studies.recipes import Recipes, Variations, shared_prefix
from vision_lowrank.studies.study import run_study

ACCURACY = {"proto": 0.5, "lora": 0.7}


@pytest.fixture
def recipes(tmp_path, pictures, tiny_weights):
    """Two methods on three classes, one per session: class means of the frozen model, and LoRA."""
    shared = (
        f"backbone: {{name: tiny-clip, weights: {tiny_weights}}}\n"
        f"data: {{type: folder, root: {pictures}, fractions: [0.5, 0.2, 0.3]}}\n"
        "engine: {batch_size: 2, lr: 1.0e-2, tensorboard: false, checkpoint_every: 1, log_every: 1}\n"
        "seeds: [1, 2]\n"
        "task:\n"
        "  type: incremental\n"
        "  protocol: {name: fscit, base: 1, way: 1, shots: 4, base_shots: 4, val_shots: 1}\n"
        "  contrastive: 0.0\n"
        "  cit_variant: none\n"
    )
    own = {
        "proto": "  epochs: 0\n",
        "lora": "  epochs: 1\n  incremental_epochs: 1\nadapter: {type: lora, r: 2, towers: [vision], layers: [0]}\n",
    }
    paths = [tmp_path / f"shapes_{name}.yaml" for name in own]
    for path, text in zip(paths, own.values(), strict=True):
        path.write_text(shared + text)
    return paths


class Runs:
    """A stand-in for ``run_seed`` that remembers what was asked of it; a method named in `broken` cannot run."""

    def __init__(self, best=0.01):
        self.asked, self.best, self.broken, self.leave = [], best, {}, set()

    def __call__(self, config, seed, folder):
        method, rate = folder.parts[-3], config.engine.lr
        self.asked.append((method, rate, seed, "/".join(folder.parts[-3:])))
        if method in self.broken:
            raise self.broken[method]
        accuracy = ACCURACY[method] + 0.01 * seed
        metrics = self.metrics(accuracy) | {"val/accuracy": 0.9 if rate == self.best else 0.1}
        result = {
            "baseline": self.metrics(0.4),
            "metrics": {name: value for name, value in metrics.items() if name not in self.leave},
            "facts": {
                "trainable_parameters": 1234,
                "train_hash": f"hash-{seed}",
                "incremental": {"matrix": {"correct": [[seed]]}, "classes": ["disc"]},
            },
            "cost": {},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result))
        return result

    @staticmethod
    def metrics(last):
        names = ("average_accuracy", "harmonic_mean", "performance_drop", "base_accuracy", "new_accuracy", "forgetting")
        sessions = {f"session/{t}/accuracy": 1.0 - t * (1.0 - last) / 2 for t in range(3)}
        return sessions | {f"incremental/{name}": 0.25 for name in names} | {"incremental/last_accuracy": last}


@pytest.fixture
def runs(monkeypatch):
    runs = Runs()
    monkeypatch.setattr(job, "run_seed", runs)
    return runs


def study(recipes, folder, overrides=(), **options):
    """What the study of these recipes finds."""
    return run_study(Recipes(recipes, **options).study(folder, overrides))


def test_every_method_runs_every_seed_in_a_folder_of_its_own(recipes, tmp_path, runs):
    result = study(recipes, tmp_path / "out")
    assert [folder for *_, folder in runs.asked] == [
        f"{method}/lr-0.01/seed-{seed}" for method in ("proto", "lora") for seed in (1, 2)
    ]
    assert (tmp_path / "out" / "lora" / "lr-0.01" / "config.yaml").is_file()
    lora = result["rows"][1]
    assert lora["metrics"]["incremental/last_accuracy"] == pytest.approx({"mean": 0.715, "std": 0.005, "n": 2})
    assert lora["facts"]["2"]["incremental"] == {"matrix": {"correct": [[2]]}, "classes": ["disc"]}
    assert [facts["train_hash"] for facts in lora["facts"].values()] == ["hash-1", "hash-2"]
    assert json.loads((tmp_path / "out" / "study.json").read_text()) == json.loads(json.dumps(result))


def test_tables_begin_with_the_model_without_training(recipes, tmp_path, runs):
    runs.leave = {"incremental/forgetting"}
    (_, header, lines), (_, sessions, after) = tables(study(recipes, tmp_path))
    assert [line[0] for line in lines] == [line[0] for line in after] == ["prototype only", "proto", "lora"]
    baseline, _, lora = (dict(zip(header, line, strict=True)) for line in lines)
    assert (baseline["last"], baseline["forgetting"], baseline["trained parameters"]) == ("40.0", "25.0", "0")
    assert (lora["last"], lora["forgetting"], lora["trained parameters"]) == ("71.5 ± 0.5", "-", "1,234")
    assert header[:4] == ["method", "last", "average", "base"]
    assert sessions == ["method", "0", "1", "2"]
    assert after[0] == ["prototype only", "100.0", "70.0", "40.0"]


def test_files_hold_tables_plots_and_page(recipes, tmp_path, runs):
    study(recipes, tmp_path / "out")
    assert (tmp_path / "out" / "study.md").read_text().count("| prototype only |") == 2
    assert r"71.5 $\pm$ 0.5" in (tmp_path / "out" / "study.tex").read_text()
    rows = list(csv.reader((tmp_path / "out" / "study.csv").read_text().splitlines()))
    assert rows[1][1:3] == ["prototype only", "40.0"]
    assert all("lora" in (tmp_path / "out" / name).read_text() for name in ("series.svg", "pareto.svg"))
    page = (tmp_path / "out" / "report.html").read_text()
    shared = ("task.protocol.way", "base and new are", "2 variants of incremental with <strong>tiny-clip")
    assert all(text in page for text in ("<svg", "71.5 ± 0.5", "prototype only", "incremental_epochs", *shared))
    assert not re.search(r'(?:src|href)="(?!#)', page)  # self-contained


def test_rate_is_chosen_per_method_by_the_first_seed_on_validation_pictures(recipes, tmp_path, runs):
    runs.best = 0.1
    result = study(recipes, tmp_path, rates=(0.001, 0.1))
    assert [row["lr"] for row in result["rows"]] == [0.1, 0.1]
    assert result["rows"][1]["validation"] == {"0.001": 0.1, "0.1": 0.9}
    assert {(rate, seed) for method, rate, seed, _ in runs.asked if method == "lora"} == {
        (0.001, 1), (0.1, 1), (0.1, 2),
    }  # fmt: skip
    assert "best on validation data" in (tmp_path / "report.html").read_text()


def test_method_that_cannot_run_is_listed_and_stops_nothing(recipes, tmp_path, runs):
    runs.broken["proto"] = RuntimeError("out of memory\nin layer 3")
    result = study(recipes, tmp_path)
    (_, _, lines), (_, _, after) = tables(result)
    assert lines[1][:2] == ["proto", "left out: RuntimeError: out of memory"]
    assert [line[0] for line in after] == ["prototype only", "lora"]
    assert "left out: RuntimeError" in (tmp_path / "report.html").read_text()
    assert "in layer 3" in (tmp_path / "proto" / "lr-0.01" / "seed-1" / "log.txt").read_text()
    runs.broken["lora"] = UserError("no")
    with pytest.raises(UserError, match="out of memory"):
        study(recipes, tmp_path / "again")


def test_damaged_result_costs_its_own_cell(recipes, tmp_path, runs):
    study(recipes, tmp_path, rates=(0.001, 0.01))
    (tmp_path / "proto" / "lr-0.01" / "seed-1" / "result.json").write_text("{")
    (tmp_path / "lora" / "lr-0.01" / "seed-2" / "result.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        study(recipes, tmp_path, rates=(0.001, 0.01))
    (tmp_path / "lora" / "lr-0.01" / "seed-2" / "result.json").unlink()
    (tmp_path / "lora" / "lr-0.01" / "seed-2").rmdir()
    damaged, whole = study(recipes, tmp_path, rates=(0.001, 0.01))["rows"]
    assert "seed-1/result.json: not valid JSON" in damaged["failed"]
    assert whole["lr"] == 0.01


def test_settings_in_which_methods_differ_are_told(recipes, tmp_path, runs):
    settings = study(recipes, tmp_path)["settings"]
    assert settings["task.epochs"] == {"proto": 0, "lora": 1}
    assert settings["adapter.r"] == {"proto": None, "lora": 2}
    assert not {"name", "out", "engine.lr", "backbone.name"} & set(settings)


def test_a_chosen_rate_is_one_of_the_settings(recipes, tmp_path, runs):
    plan = Recipes(recipes).study(tmp_path, ())
    first, second = plan.variants
    settings = run_study(replace(plan, variants=[first, replace(second, rates=(0.5,))]))["settings"]
    assert settings["engine.lr"] == {"proto": 0.01, "lora": 0.5}


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("shots: 4", "shots: 3", "task.protocol.shots"),
        ("[0.5, 0.2, 0.3]", "[0.4, 0.3, 0.3]", "data.fractions"),
        ("name: tiny-clip", "name: tiny-clip, image_size: 96", "backbone.image_size"),
        ("seeds: [1, 2]", "seeds: [1]", "seeds"),
    ],
)
def test_methods_under_other_conditions_are_refused(recipes, tmp_path, runs, old, new, key):
    recipes[1].write_text(recipes[1].read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=f"proto.yaml and .*lora.yaml differ in {key}") as refused:
        study(recipes, tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1
    assert not runs.asked


def test_what_is_given_for_all_makes_them_agree(recipes, tmp_path, runs):
    recipes[1].write_text(recipes[1].read_text().replace("seeds: [1, 2]", "seeds: [1]"))
    result = study(recipes, tmp_path, ["seeds=[3]", "task.protocol.val_shots=0"])
    assert result["seeds"] == [3]
    assert {seed for _, _, seed, _ in runs.asked} == {3}


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (("emoji_coact", "emoji_lora"), "emoji_"),
        (("emoji_lora", "emoji_lora_frozen"), "emoji_"),
        (("coact", "lora"), ""),
        (("linear_probe",), ""),
        (("cub_full_coact", "cub_full_lora"), "cub_full_"),
    ],
)
def test_names_lose_what_all_begin_with(tmp_path, names, prefix):
    assert shared_prefix([tmp_path / f"{name}.yaml" for name in names]) == prefix


def test_settings_that_vary_make_every_combination(recipes, tmp_path, runs, monkeypatch):
    folders = [f"adapter.r={r}-task.l_ft={n}" for r in (2, 4) for n in (4, 5)]
    for name in folders:
        monkeypatch.setitem(ACCURACY, name, 0.6)
    plan = Variations(recipes[1], ["adapter.r=2,4", "task.l_ft=4,5"])
    result = run_study(plan.study(tmp_path / "out", ["seeds=[1]"]))
    assert [row["method"] for row in result["rows"]] == [name.replace("-task", ", task") for name in folders]
    assert [folder for *_, folder in runs.asked] == [f"{name}/lr-0.01/seed-1" for name in folders]
    assert set(result["settings"]) == {"adapter.r", "task.l_ft"}


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.mark.parametrize("command", ["incremental", "compare"])
def test_command_takes_recipes_and_settings(recipes, tmp_path, runs, capsys, command):
    given = [recipes[0], "engine.steps=7", recipes[1], "--seeds", "5", "--lr", "0.01", "--out", tmp_path / "out"]
    assert run(command, *given) == 0
    assert {(rate, seed) for _, rate, seed, _ in runs.asked} == {(0.01, 5)}
    result = json.loads((tmp_path / "out" / "study.json").read_text())
    assert result["overrides"] == ["engine.steps=7", "seeds=[5]"]
    assert "report.html" in capsys.readouterr().out


def test_interrupted_command_says_how_to_go_on(recipes, tmp_path, runs, capsys, monkeypatch):
    runs.broken["lora"] = Interrupted(tmp_path, "session-1", 3)
    monkeypatch.setattr("sys.argv", ["vision-lowrank", "incremental", "a b.yaml"])
    assert run("incremental", *recipes, "--out", tmp_path / "out") == 130
    assert "Go on with: vision-lowrank incremental 'a b.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipes: [recipes[0], recipes[0]], "two recipes are called 'proto'"),
        (lambda recipes: ["task.epochs=1"], "name at least one recipe"),
        (lambda recipes: [*recipes, "--seeds", "one"], "--seeds one: give numbers"),
        (lambda recipes: [recipes[0].with_name("shapes_prot.yaml")], "Did you mean 'shapes_proto.yaml'"),
        (lambda recipes: [recipes[0], "task={type: fewshot}"], "its task is fewshot"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(recipes, tmp_path, capsys, change, message):
    assert run("incremental", *change(recipes), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_recipes_of_two_tasks_cannot_be_compared(recipes, recipe, tmp_path, capsys):
    assert run("compare", recipes[0], recipe, "--out", tmp_path / "out") == 2
    assert "of task incremental and" in capsys.readouterr().err


def test_study_stopped_in_a_session_goes_on_and_ends_as_if_it_had_not(recipes, tmp_path, monkeypatch):
    whole = study(recipes, tmp_path / "whole", ["seeds=[1]"])
    cut, update, steps = Recipes(recipes).study(tmp_path / "cut", ["seeds=[1]"]), Engine.update, []

    def stopping(engine):
        steps.append((engine.stage.name, engine.step))
        if steps.count(("session-1", 1)) == 1:  # the second of its two steps, until it is done again
            raise KeyboardInterrupt
        return update(engine)

    monkeypatch.setattr(Engine, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_study(cut)
    assert not (cut.folder / "lora" / "lr-0.01" / "seed-1" / "result.json").exists()
    steps[:] = [("session-1", 1)]
    result = run_study(cut)
    assert [row["metrics"] for row in result["rows"]] == [row["metrics"] for row in whole["rows"]]
    assert [step for step in steps[1:] if step[0] != "base"] == [("session-1", 1), ("session-2", 0), ("session-2", 1)]

    monkeypatch.setattr(experiment, "build_task", None)  # nothing is built a third time
    assert json.loads(json.dumps(run_study(cut)["rows"])) == json.loads(json.dumps(result["rows"]))


def test_recipe_without_training_is_the_first_row(recipes, tmp_path):
    result = study(recipes[:1], tmp_path, ["seeds=[1]"])
    [row] = result["rows"]
    assert {name: row["metrics"][name] for name in result["baseline"]} == result["baseline"]
    assert row["method"] == "shapes_proto"
