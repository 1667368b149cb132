import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import vision_lowrank as vl
from vision_lowrank.cli.main import main
from vision_lowrank.config import load_config
from vision_lowrank.studies import run as experiment


def run(*arguments):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture(scope="module")
def artefact(tmp_path_factory, pictures, tiny_weights):
    """A trained artefact and the result of its run."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "shapes.yaml"
    path.write_text(
        f"out: {folder}\nbackbone: {{name: tiny-clip, weights: {tiny_weights}}}\n"
        "task: {type: fewshot, shots: 2}\n"
        f"data: {{type: folder, root: {pictures}}}\nadapter: {{type: comp_lora, r: 2}}\n"
        "engine: {steps: 3, batch_size: 6, lr: 1.0e-2, tensorboard: false}\n"
    )
    result = experiment.run(load_config(path))
    return folder / "shapes" / "seed-1" / "artefact", result


# --- what works ---------------------------------------------------------------------------------------------------


def test_help_answers_without_torch():
    code = (
        "import sys\nfrom vision_lowrank.cli.main import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'peft', 'timm'} & set(sys.modules), 'heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout


@pytest.mark.parametrize(
    "command", ["train", "eval", "predict", "inspect", "export", "list", "new", "incremental", "add-classes"]
)
def test_every_command_has_help(command, capsys):
    assert run(command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_train_prints_table_and_places(recipe, capsys):
    assert run("train", recipe, "seeds=[1]") == 0
    out = capsys.readouterr().out
    assert "untrained" in out
    assert "report.html" in out
    assert "seed-1/artefact" in out


def test_train_begins_with_what_the_data_are(recipe, pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "mine")
    (tmp_path / "mine" / "loose.png").write_bytes((pictures / "disc" / "0.png").read_bytes())
    (tmp_path / "mine" / "__MACOSX").mkdir()
    assert run("train", recipe, f"data.root={tmp_path / 'mine'}", "seeds=[1]") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("3 classes: disc, square, stripes pictures: train 15, val 6, test 9 (of train, 6 drawn")
    assert "1 made by a system ('__MACOSX'), 1 beside the folders ('loose.png')" in said


def test_a_single_class_is_one_line(recipe, pictures, tmp_path, capsys):
    shutil.copytree(pictures / "disc", tmp_path / "mine" / "disc")
    assert "has a single class, 'disc'" in one_line(capsys, "train", recipe, f"data.root={tmp_path / 'mine'}")


def test_predict_says_what_it_left_out(artefact, pictures, tmp_path, capsys):
    shutil.copytree(pictures / "disc", tmp_path / "mine" / "disc")
    (tmp_path / "mine" / "notes.txt").write_text("no picture")
    assert run("predict", artefact[0], tmp_path / "mine", "--json", tmp_path / "p.json") == 0
    assert len(json.loads((tmp_path / "p.json").read_text())) == 10
    assert capsys.readouterr().err.splitlines()[0] == "left out: 1 no picture ('notes.txt')"


def test_resume_of_a_finished_run_gives_the_same_table(recipe, tmp_path, capsys):
    run("train", recipe, "seeds=[1]")
    first = capsys.readouterr().out
    assert run("train", "--resume", tmp_path / "runs" / "shapes") == 0
    assert capsys.readouterr().out == first


def test_eval_of_an_artefact_gives_the_metrics_of_training(artefact, tmp_path):
    folder, result = artefact
    assert run("eval", folder, "--json", tmp_path / "m.json") == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["test/test/loss"] == pytest.approx(result["metrics"]["test/test/loss"]["mean"], abs=1e-5)


def test_eval_on_other_data_of_the_same_classes(artefact, pictures, tmp_path):
    folder, _ = artefact
    data = f"data={{type: folder, train: {pictures}, test: {pictures}}}"
    assert run("eval", folder, data, "--json", tmp_path / "m.json") == 2  # one tree cannot be both
    shutil.copytree(pictures, tmp_path / "other")
    data = f"data={{type: folder, train: {pictures}, test: {tmp_path / 'other'}}}"
    assert run("eval", folder, data, "--json", tmp_path / "m.json") == 0
    assert 0 <= json.loads((tmp_path / "m.json").read_text())["test/test/accuracy"] <= 1


def test_eval_of_a_recipe_is_the_untrained_model(recipe, tmp_path):
    assert run("eval", recipe, "--json", tmp_path / "m.json") == 0
    assert "test/test/accuracy" in json.loads((tmp_path / "m.json").read_text())


@pytest.mark.parametrize("what", ["folder", "file", "glob"])
def test_predict_takes_folder_file_and_glob(artefact, pictures, tmp_path, what):
    names = {"folder": pictures, "file": pictures / "disc" / "0.png", "glob": pictures / "*" / "1.png"}
    expected = {"folder": 30, "file": 1, "glob": 3}
    assert run("predict", artefact[0], names[what], "--json", tmp_path / "p.json", "--csv", tmp_path / "p.csv") == 0
    rows = json.loads((tmp_path / "p.json").read_text())
    assert len(rows) == expected[what]
    with open(tmp_path / "p.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == [row["class"] for row in rows]


def test_predict_equals_evaluation_in_training(artefact, tmp_path):
    folder, _ = artefact
    config = vl.registry.get("task", "fewshot")
    assert config is not None
    record = json.loads((folder / "artefact.json").read_text())["record"]
    root = record["config"]["data"]["root"]
    task = experiment.build_task(load_config(folder.parents[1] / "config.yaml"), 1)
    images = task.splits.tests["test"]
    paths = [os.path.join(root, key) for key in images.keys]
    assert run("predict", folder, *paths, "--json", tmp_path / "p.json", "--top", 3) == 0
    rows = json.loads((tmp_path / "p.json").read_text())
    right = [row["class"] == images.classes[label] for row, label in zip(rows, images.labels, strict=True)]
    assert sum(right) / len(right) == pytest.approx(record["metrics"]["test/test/accuracy"])
    assert all(sum(p for _, p in row["top"]) == pytest.approx(1, abs=1e-4) for row in rows)


def test_predict_table_shows_every_picture(artefact, pictures, capsys, monkeypatch):
    monkeypatch.chdir(pictures / "disc")
    assert run("predict", artefact[0], "0.png") == 0
    assert "0.png" in capsys.readouterr().out


def test_predict_table_is_one_line_a_picture(artefact, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copytree(pictures, tmp_path / ("pictures_of_" + "long_names_" * 8))
    (long,) = tmp_path.glob("pictures_of_*")
    assert run("predict", artefact[0], long, pictures / "disc" / "0.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert len([line for line in lines if "%" in line]) == len([line for line in lines if ".png" in line]) == 31


def test_names_of_files_steer_no_terminal(artefact, pictures, tmp_path, capsys):
    odd = tmp_path / "a\n\x1b[31mb.png"
    shutil.copy(pictures / "disc" / "0.png", odd)
    assert run("predict", artefact[0], odd) == 0
    odd.write_bytes(b"none")
    assert run("predict", artefact[0], odd) == 2
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert "\x1b" not in text
        assert r"\x1b[31mb.png" in text
    assert r"a\n\x1b[31mb.png" in shown.out


def test_a_set_called_as_its_kind_is_told_once(recipe, capsys):
    assert run("train", recipe, "seeds=[1]") == 0
    shown = capsys.readouterr()
    assert "test/accuracy" in shown.out
    assert "test/test" not in shown.out + shown.err
    assert "top5" not in shown.out + shown.err  # of three classes


def test_inspect_shows_coverage_and_cost(recipe, capsys):
    assert run("inspect", recipe) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 classes: ")
    assert "pictures: train " in out
    assert ", test 9" in out
    assert "q_proj" in out
    assert "trainable" in out
    assert "one step" in out


@pytest.mark.parametrize("format", ["lora", "merged"])
def test_export_writes_what_other_libraries_load(artefact, tmp_path, tiny_weights, format):
    assert run("export", artefact[0], tmp_path / "out", "--format", format) == 0
    if format == "lora":
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    else:
        merged, base = load_file(tmp_path / "out" / "model.safetensors"), load_file(tiny_weights)
        assert merged.keys() == base.keys()
        changed = {name for name in base if not torch.equal(base[name], merged[name])}
        assert changed
        assert all("in_proj_weight" in name for name in changed)


@pytest.mark.parametrize("kind", [None, "adapter", "backbone", "data", "task"])
def test_list_shows_what_is_registered(kind, capsys):
    assert run("list", *([kind] if kind else [])) == 0
    out = capsys.readouterr().out
    for part in vl.methods(kind):
        assert part.name in out


def test_new_recipe_is_valid_and_new_adapter_works(tmp_path, recipe):
    assert run("new", "recipe", "mine", "--out", tmp_path) == 0
    mine = load_config(tmp_path / "mine.yaml")
    assert (mine.name, mine.backbone.name, mine.backbone.weights) == ("mine", "open_clip:ViT-B-16", "openai")
    assert (mine.task.shots, mine.rates) == (None, (5e-4, 2e-3, 8e-3))
    assert run("new", "adapter", "my_method", "--out", tmp_path) == 0
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport torch, vision_lowrank as vl, my_method\n"
        "model = vl.attach(vl.load_backbone('tiny-clip', 'random'), my_method.MyMethodConfig(r=2))\n"
        "assert vl.registry.get('adapter', 'my_method').target is my_method.MyMethodConfig\nprint('works')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "works", done.stderr


@pytest.mark.parametrize("job", ["fewshot", "incremental", "manipulation"])
@pytest.mark.parametrize("options", [[], ["--backbone", "timm:vit_small_patch14_dinov2.lvd142m"], ["--shots", "3"]])
def test_new_recipes_begin_with_pretrained_weights_and_references(tmp_path, job, options):
    if job == "manipulation" and "--shots" in options:
        return
    assert run("new", "recipe", "mine", "--task", job, "--data", str(tmp_path), *options, "--out", tmp_path) == 0
    config = load_config(tmp_path / "mine.yaml")
    assert config.task.type == job
    assert config.backbone.weights in ("openai", "pretrained")
    assert len(config.rates) == 3
    assert "linear_probe" in config.references
    known = vl.registry.get("task", job).target.references(config)
    assert set(config.references) <= set(known)


def test_a_new_recipe_trains_beside_its_references(tmp_path, pictures, tiny_weights, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("new", "recipe", "mine", "--backbone", "tiny-clip", "--data", str(pictures))
    given = [f"backbone.weights={tiny_weights}", "engine.steps=2", "engine.tensorboard=false", "adapter.layers=[0]"]
    assert run("train", "mine.yaml", *given) == 0
    shown = capsys.readouterr().out
    assert "zero shot" in shown
    assert "linear probe" in shown
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert result["references"]["zero_shot"]["seeds"] == {"1": result["seeds"]["1"]["baseline"]}
    assert result["references"]["linear_probe"]["metrics"]["test/test/accuracy"]["n"] == 1
    assert result["lr"] == float(max(result["validation"], key=result["validation"].get))
    assert result["config"]["engine"]["lr"] == result["lr"]
    assert result["seeds"]["1"]["facts"]["train_images"] == 18  # six tenths of all
    assert run("train", "--resume", "runs/mine") == 0
    assert json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())["seeds"] == result["seeds"]


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == vl.__version__


@pytest.mark.parametrize("door", ["train", "eval"])
def test_tools_are_doors_to_the_same_commands(door):
    tool = os.path.join(os.path.dirname(__file__), "..", "..", "tools", f"{door}.py")
    done = subprocess.run([sys.executable, tool, "no_such.yaml"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no_such.yaml" in done.stderr


# --- bad input: one clear line, exit code 2, no traceback ------------------------------------------------------------


def one_line(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.stepps=3", "Did you mean 'steps'?"),
        ("engine.steps=many", "should be a valid integer"),
        ("adapter.type=blok_lora", "Did you mean 'block_lora'?"),
        ("backbone.name=tiny-clop", "Did you mean 'tiny-clip'?"),
        ("backbone={name: 'open_clip:ViT-B-61', weights: openai}", "Did you mean 'ViT-B-16'?"),
        ("backbone={name: 'timm:vit_tiny_patch61_224', weights: pretrained}", "Did you mean"),
        ("data={type: foldr, root: x}", "Did you mean 'folder'?"),
        ("adapter={type: lora, r: 1000}", "r = 1000 is too large for"),
        ("adapter.r=3", "r = 3 is not divisible by blocks = 2"),
        ("adapter.modules=[q, w]", "module 'w'"),
        ("adapter.layers=[99]", "99"),
        ("task.shots=9", "class 'disc'"),
        ("data.root=/no/such/folder", "/no/such/folder"),
        ("backbone.weights=/no/such/file.safetensors", "does not exist"),
        ("engine.precision=fp16", "fp16"),
        ("engine.batch_size=5 engine.accumulate=2", "batch_size 5 cannot be divided"),
    ],
)
def test_bad_setting_is_one_line(recipe, override, message, capsys):
    assert message in one_line(capsys, "train", recipe, *override.split(" engine")[:1], *more(override))


def more(override):
    return ["engine" + rest for rest in override.split(" engine")[1:]]


def test_folder_without_pictures(recipe, tmp_path, capsys):
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    assert "empty" in one_line(capsys, "train", recipe, f"data.root={tmp_path / 'empty'}")


@pytest.mark.parametrize("content", [b"no picture", None])
def test_broken_picture_is_named_and_skipped_only_on_request(recipe, pictures, tmp_path, content, capsys):
    shutil.copytree(pictures, tmp_path / "own")
    whole = (pictures / "disc" / "0.png").read_bytes()
    (tmp_path / "own" / "disc" / "broken.png").write_bytes(content or whole[: len(whole) // 2])
    root = f"data.root={tmp_path / 'own'}"
    assert "disc/broken.png" in one_line(capsys, "train", recipe, root)
    with pytest.warns(UserWarning, match=r"broken\.png"):
        assert run("train", recipe, root, "data.skip_broken=true", "seeds=[1]", "name=skipped") == 0


def test_predict_names_a_broken_picture_and_skips_it_on_request(artefact, pictures, tmp_path, capsys):
    shutil.copy(pictures / "disc" / "0.png", tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    line = one_line(capsys, "predict", artefact[0], tmp_path)
    assert "bad.png" in line
    assert "--skip-broken" in line
    assert run("predict", artefact[0], tmp_path, "--skip-broken", "--json", tmp_path / "p.json") == 0
    assert [row["image"] for row in json.loads((tmp_path / "p.json").read_text())] == [str(tmp_path / "good.png")]


@pytest.mark.parametrize("what", ["nothing_like_this.png", "*.nope"])
def test_predict_names_what_it_cannot_find(artefact, what, capsys):
    assert what in one_line(capsys, "predict", artefact[0], what)


def test_artefact_of_another_base(artefact, tmp_path, capsys, pictures):
    folder = tmp_path / "artefact"
    shutil.copytree(artefact[0], folder)
    torch.manual_seed(5)
    other = vl.load_backbone("tiny-clip", "random").model.state_dict()
    from safetensors.torch import save_file

    save_file(other, tmp_path / "other.safetensors")
    about = json.loads((folder / "artefact.json").read_text())
    about["backbone"]["weights"] = str(tmp_path / "other.safetensors")
    (folder / "artefact.json").write_text(json.dumps(about))
    assert "made for base weights" in one_line(capsys, "predict", folder, pictures)


@pytest.mark.parametrize(
    ("name", "content"),
    [("adapter/adapter_model.safetensors", b"x" * 99), ("artefact.json", b"{"), ("adapter/adapter_config.json", b"[]")],
)
def test_damaged_artefact_is_named(artefact, tmp_path, pictures, capsys, name, content):
    folder = tmp_path / "artefact"
    shutil.copytree(artefact[0], folder)
    (folder / name).write_bytes(content)
    assert os.path.basename(name) in one_line(capsys, "predict", folder, pictures)


def test_folder_that_is_no_artefact_names_the_right_one(artefact, pictures, capsys):
    assert "Did you mean" in one_line(capsys, "predict", artefact[0].parents[1], pictures)


def test_run_folder_of_another_config(recipe, capsys):
    run("train", recipe, "seeds=[1]")
    assert "another config" in one_line(capsys, "train", recipe, "seeds=[1]", "engine.lr=0.5")


def test_no_write_permission(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in one_line(capsys, "train", recipe, f"out={tmp_path / 'file'}")


def test_train_needs_a_recipe_or_a_run(capsys, tmp_path):
    assert "--resume" in one_line(capsys, "train")
    assert "no run to resume" in one_line(capsys, "train", "--resume", tmp_path)


def test_unknown_option_exits_with_2(capsys):
    assert run("train", "--resmue", "x") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_scaffold_refuses_bad_names_and_existing_files(tmp_path, capsys):
    assert "not snake case" in one_line(capsys, "new", "adapter", "My-Method", "--out", tmp_path)
    assert "Did you mean 'recipe'?" in one_line(capsys, "new", "recepe", "x", "--out", tmp_path)
    assert "Did you mean 'fewshot'?" in one_line(capsys, "new", "recipe", "x", "--task", "fewshots")
    assert "takes all pictures" in one_line(capsys, "new", "recipe", "x", "--task", "manipulation", "--shots", 2)
    assert "--shots: is for recipes" in one_line(capsys, "new", "adapter", "x", "--shots", 2)
    assert "unknown backbone 'timn'" in one_line(capsys, "new", "recipe", "x", "--backbone", "timn:vit")
    run("new", "recipe", "x", "--out", tmp_path)
    assert "exists already" in one_line(capsys, "new", "recipe", "x", "--out", tmp_path)


def test_export_needs_an_adapter_and_a_known_format(artefact, tmp_path, capsys):
    assert "Did you mean 'merged'?" in one_line(capsys, "export", artefact[0], tmp_path / "x", "--format", "mergd")


def test_interrupt_says_how_to_go_on(recipe, tmp_path):
    """A real run in a process of its own is stopped by SIGINT and resumed to the uninterrupted result.

    One thread: products of several threads may differ in the last bit from process to process.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    settings = ["seeds=[1]", "engine.steps=60"]
    command = [sys.executable, "-m", "vision_lowrank", "train", recipe, *settings, "name=stopped"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment)
    stopped = tmp_path / "runs" / "stopped"
    while not list(stopped.glob("seed-1/checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"vision-lowrank train --resume {stopped}" in error
    assert "Traceback" not in error
    assert run("train", "--resume", stopped) == 0
    assert run("train", recipe, *settings, "name=whole") == 0
    results = [json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("stopped", "whole")]
    assert results[0]["metrics"] == results[1]["metrics"]
