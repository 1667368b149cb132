"""Every command serves every registered task, or refuses in one line that names the command which does.

A task is covered by its recipe, ``fixtures/recipes/TASK.yaml``: a run of seconds that needs no file. Each is trained
once, and every command is tried on the recipe and on what came out.
"""

import contextlib
import io
import json
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import vision_lowrank as vl
from vision_lowrank.backbones.adapted import adapted
from vision_lowrank.cli.export import FORMATS
from vision_lowrank.cli.main import main
from vision_lowrank.config import load_config
from vision_lowrank.registry import registry
from vision_lowrank.studies.run import build_task

RECIPES = Path(__file__).parents[1] / "fixtures" / "recipes"
TASKS = [part.name for part in registry.list("task")]

REMEDY = re.compile(r"`?vision-lowrank [a-z-]+|--[a-z]+")
STOPPED_AT = 2  # steps of a stage


class Trained(NamedTuple):
    """One task, trained from its recipe.

    Attributes:
        task: registered name.
        recipe: its file.
        run: the run folder.
        artefact: what came out.
        result: ``result.json``.
    """

    task: str
    recipe: Path
    run: Path
    artefact: Path
    result: dict


def command(*arguments):
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code, out.getvalue(), err.getvalue()


def refused(code, err, expected=2):
    """The one line with which a command refused, where it did; it says what to do instead."""
    if code == 0:
        return None
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) == (expected, 1), err
    assert "Traceback" not in err
    assert REMEDY.search(lines[0]), lines[0]
    return lines[0]


@pytest.fixture(scope="module", params=TASKS)
def trained(request, tmp_path_factory):
    recipe, out = RECIPES / f"{request.param}.yaml", tmp_path_factory.mktemp(request.param)
    assert recipe.is_file(), f"task '{request.param}' is in no contract: give it {recipe.name} in fixtures/recipes"
    code, said, err = command("train", recipe, f"out={out}", "name=whole")
    assert code == 0, err
    assert "report.html" in said
    run = out / "whole"
    return Trained(
        request.param, recipe, run, run / "seed-1" / "artefact", json.loads((run / "result.json").read_text())
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with one class of three pictures, as add-classes takes them and every other command too."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "new thing").mkdir()
    for number, colour in enumerate(("teal", "navy", "maroon")):
        Image.new("RGB", (140, 130), colour).save(root / "new thing" / f"{number}.png")
    return root


def means(result, key="metrics"):
    return {name: value["mean"] for name, value in result[key].items()}


def numbers(row):
    return [value for value in row.values() if isinstance(value, float)]


def tensors(folder):
    return {path.relative_to(folder): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


# --- training ------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_to_the_same_result(trained, monkeypatch):
    kind = registry.get("task", trained.task).target
    after_step, sent = kind.after_step, []

    def interrupting(self, step):
        after_step(self, step)
        if step == STOPPED_AT and not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(kind, "after_step", interrupting)
    stopped = trained.run.with_name("stopped")
    code, _, err = command("train", trained.recipe, f"out={stopped.parent}", "name=stopped")
    if kind.stages is not registry.get("task", "zeroshot").target.stages:
        assert code == 130, err
        assert f"vision-lowrank train --resume {stopped}" in err
        assert not (stopped / "result.json").exists()
    assert command("train", "--resume", stopped)[0] == 0
    result = json.loads((stopped / "result.json").read_text())
    for key in ("baseline", "metrics"):
        assert means(result, key) == means(trained.result, key)
    whole, again = tensors(trained.artefact), tensors(stopped / "seed-1" / "artefact")
    assert whole.keys() == again.keys()
    for path, state in whole.items():
        assert all(torch.equal(tensor, again[path][name]) for name, tensor in state.items()), path


def test_the_report_is_whole(trained):
    page = (trained.run / "report.html").read_text()
    assert "{{" not in page
    assert trained.task in page
    assert "whole" in page
    headline = trained.result["metrics"]
    assert headline
    assert any(name.split("/")[-1] in page for name in headline)


# --- what came out -------------------------------------------------------------------------------------------------


def test_eval_of_the_saved_model_gives_the_metrics_of_training(trained, tmp_path, monkeypatch):
    built = []
    for kind in (open_clip.CLIP, VisionTransformer):
        build = kind.__init__
        counted = lambda self, *args, build=build, **cfg: built.append(1) or build(self, *args, **cfg)  # noqa: E731
        monkeypatch.setattr(kind, "__init__", counted)
    code, _, err = command("eval", trained.artefact, "--json", tmp_path / "found.json")
    assert code == 0, err
    found, recorded = json.loads((tmp_path / "found.json").read_text()), means(trained.result)
    tests = {name for name in recorded if name.startswith("test/")}
    assert tests <= found.keys()
    assert {name: found[name] for name in tests} == pytest.approx({name: recorded[name] for name in tests}, abs=1e-5)
    assert built == [1]  # the base is loaded once


def test_eval_of_the_recipe_gives_the_untrained_model(trained, tmp_path):
    out = f"out={trained.run.parent}"
    code, _, err = command("eval", trained.recipe, out, "--json", tmp_path / "found.json")
    assert code == 0, err
    baseline = means(trained.result, "baseline")
    assert json.loads((tmp_path / "found.json").read_text()) == pytest.approx(baseline, abs=1e-5)


def test_predict_says_what_the_saved_model_says(trained, pictures, tmp_path):
    code, _, err = command("predict", trained.artefact, pictures, "--json", tmp_path / "p.json")
    if "pictures" not in vl.load_model(trained.artefact).takes:
        assert "use `vision-lowrank track`" in refused(code, err)
        return
    assert code == 0, err
    rows = json.loads((tmp_path / "p.json").read_text())
    paths = sorted(pictures.rglob("*.png"))
    assert [row.pop("image") for row in rows] == [str(path) for path in paths]
    for form in (False, True):
        model = vl.load_model(trained.artefact, attach=form)
        assert model.takes == ("pictures",)
        for row, other in zip(rows, model.predict(paths), strict=True):
            said = other.to_row()
            assert row.keys() == said.keys()
            assert numbers(row) == pytest.approx(numbers(said), abs=1e-4)
            assert numbers(row)
    code, shown, _ = command("predict", trained.artefact, paths[0])
    assert code == 0
    assert model.predict(paths[:1])[0].to_cells().popitem()[0] in shown
    assert command("predict", trained.artefact, paths[0], "--csv", tmp_path / "p.csv")[0] == 0
    assert (tmp_path / "p.csv").read_text().startswith("image,")


def test_scan_looks_for_edits_or_says_what_does_it(trained, pictures, tmp_path):
    arguments = ("scan", pictures, "--recursive", "--model", trained.artefact, "--out", tmp_path / "out")
    code, _, err = command(*arguments)
    if refused(code, err, expected=1) is None:  # 2 says that something was found
        assert len(json.loads((tmp_path / "out" / "results.json").read_text())["rows"]) == 3
    else:
        assert "vision-lowrank predict" in err


def test_add_classes_adds_or_says_what_to_do(trained, pictures):
    code, out, err = command("add-classes", trained.artefact, pictures, "--dry-run")
    if refused(code, err) is None:
        assert "new thing" in out


@pytest.mark.parametrize("format", ["lora", "merged"])
def test_export_writes_what_trained_or_says_why_not(trained, tmp_path, format):
    code, out, err = command("export", trained.artefact, tmp_path / "out", "--format", format)
    line = refused(code, err)
    if (trained.artefact / "adapter").is_dir():
        assert line is None
    if line is None:
        assert str(tmp_path / "out") in out.replace("\n", "")
        assert any((tmp_path / "out").iterdir())
    else:
        assert not (tmp_path / "out").exists()


def test_export_refuses_formats_that_the_model_does_not_name(trained, tmp_path):
    model = vl.load_model(trained.artefact)
    for format in set(FORMATS) - set(model.exports):
        code, _, err = command("export", trained.artefact, tmp_path / "out", "--format", format)
        assert f"cannot be written as {format}" in refused(code, err)
        assert not (tmp_path / "out").exists()


def test_export_of_an_adapter_alone(trained, tmp_path):
    if not (trained.artefact / "adapter").is_dir():
        code, _, err = command("export", trained.artefact / "adapter", tmp_path / "out")
        assert code == 2
        assert "no artefact here" in err
        return
    folders = {"alone": trained.artefact / "adapter", "within": trained.artefact}
    for name, folder in folders.items():
        assert command("export", folder, tmp_path / name)[0] == 0
    written = [load_file(tmp_path / name / "adapter_model.safetensors") for name in folders]
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(tensor, written[1][name]) for name, tensor in written[0].items())


# --- looking -------------------------------------------------------------------------------------------------------


def test_inspect_of_the_recipe_has_a_line_for_every_stage(trained):
    code, out, err = command("inspect", trained.recipe, f"out={trained.run.parent}")
    assert code == 0, err
    task = build_task(load_config(trained.recipe, [f"out={trained.run.parent}"]), 1)
    assert ("adapted modules" in out) == adapted(task.model.backbone)
    assert "trainable" in out
    stages = task.stages()
    for stage in stages:
        assert f"stage '{stage.name}'" in out
    assert ("nothing trains" in out) == (not stages)


def test_inspect_of_the_saved_model_shows_its_change_or_says_why_not(trained, tmp_path):
    code, out, err = command("inspect", trained.artefact, "--out", tmp_path / "page.html")
    line = refused(code, err)
    has_adapter = (trained.artefact / "adapter").is_dir()
    assert (line is None) == has_adapter
    if has_adapter:
        assert "intruders" in out
        assert (tmp_path / "page.html").is_file()
        assert command("inspect", trained.artefact / "adapter", "--out", tmp_path / "alone.html")[0] == 0


# --- comparing -----------------------------------------------------------------------------------------------------


def compared(trained, out, *options):
    """What ``compare`` on the recipe with one seed said, and its rows; None for rows where it refused."""
    arguments = ("compare", trained.recipe, f"out={trained.run.parent}", *options, "--out", out, "--seeds", "1")
    code, said, err = command(*arguments)
    line = refused(code, err)
    if line is not None:
        return line, None
    (table,) = out.glob("*.md")
    (result,) = (json.loads(path.read_text()) for path in out.glob("*.json") if "rows" in path.read_text())
    assert all(row["method"] in table.read_text() for row in result["rows"])
    return said, result["rows"]


def test_compare_makes_a_table_by_the_headline_metric(trained, tmp_path):
    said, rows = compared(trained, tmp_path / "compared", "--vary", "engine.eval_batch_size=4,8")
    assert len(rows or ()) == 2, said
    headline = registry.get("task", trained.task).target.headline
    for row in rows:
        assert any(name == headline or name.endswith(f"/{headline}") for name in row["metrics"])


def test_compare_exchanges_adapters_where_the_task_attaches_one(trained, tmp_path):
    said, rows = compared(trained, tmp_path / "compared", "--methods", "lora")
    assert (rows is not None) == registry.get("task", trained.task).target.adapts, said
    if rows:
        assert "lora" in said
