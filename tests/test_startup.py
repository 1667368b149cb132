"""What needs no model answers without importing one: help, lists, and errors about configs, paths and options.

All commands run one after the other in one process of their own that cannot import the large libraries: whoever tries
gets an ImportError, and the test says which command it was and from where.
"""

import json
import subprocess
import sys

import pytest

from vision_lowrank.paths import shipped
from vision_lowrank.registry import PACKAGES, registry
from vision_lowrank.version import __version__

HEAVY = ("torch", "torchvision", "torchmetrics", "peft", "transformers", "accelerate", "open_clip", "timm", "sklearn")
RUNNER = """
import contextlib, io, json, sys, traceback

heavy, commands = json.load(sys.stdin)
tried = []


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in heavy:
            frames = [frame for frame in traceback.extract_stack() if "vision_lowrank" in frame.filename]
            tried.append([name, *(f"{frame.filename}:{frame.lineno}" for frame in frames)])
            raise ImportError(f"{name} is not for now")


sys.meta_path.insert(0, Refuse())
from vision_lowrank.cli.main import main
import vision_lowrank as vl

results = []
for arguments in commands:
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if arguments[0] == "methods":
                print([(part.kind, part.name, part.paper, part.summary) for part in vl.methods()])
                code = 0
            else:
                main(arguments)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
    results.append([code, out.getvalue(), err.getvalue(), list(tried)])
    tried.clear()
print(json.dumps(results))
"""
RECIPE = str(shipped("configs") / "fewshot" / "emoji_block_lora.yaml")
DETECTOR = str(shipped("configs") / "manipulation" / "edits_manipshield.yaml")
SESSIONS = str(shipped("configs") / "incremental" / "emoji_coact.yaml")
COMMANDS = (
    *("train", "eval", "predict", "inspect", "export", "compare", "incremental", "add-classes", "scan", "make-edits"),
    *("list", "new", "data"),
)

# What works -> a word that it prints.
ANSWERS = {
    ("--help",): "Usage",
    ("--version",): __version__,
    ("list",): "block_lora",
    **{(command, "--help"): "Usage" for command in COMMANDS},
    **{("data", command, "--help"): "Usage" for command in ("check", "validate", "convert")},
    **{("list", kind): "" for kind in PACKAGES},
    ("methods",): "('adapter', 'block_lora', 'arXiv 2501.16720'",
}

# Mistakes -> what the one line says.
MISTAKES = {
    ("list", "adaptor"): "unknown kind 'adaptor'. Did you mean 'adapter'?",
    ("train",): "give either a recipe",
    ("train", RECIPE, "--resume", "x"): "give either a recipe",
    ("train", "--resume", "HERE/no_run"): "no run to resume here (config.yaml is missing). Did you mean 'a_run'?",
    ("train", RECIPE.replace("block", "blok")): "no such config file. Did you mean 'emoji_block_lora.yaml'?",
    ("train", "HERE/broken.yaml"): "not valid YAML",
    ("train", RECIPE, "engine"): "write key.path=value",
    ("train", RECIPE, "engine.steps=["): "not valid YAML",
    ("train", RECIPE, "engine.stepps=3"): "engine.stepps: unknown key. Did you mean 'steps'?",
    ("train", RECIPE, "engine.steps=many"): "engine.steps: input should be a valid integer",
    ("train", RECIPE, "engine.precision=fp17"): "engine.precision: input should be 'fp32', 'bf16' or 'fp16'",
    ("train", RECIPE, "seed=5"): "`seeds` is given too: give seeds=[5] alone",
    ("train", RECIPE, "bakbone=1"): "unknown key. Did you mean 'backbone'?",
    ("train", RECIPE, "backbone.wieghts=1"): "unknown key. Did you mean 'weights'?",
    ("train", RECIPE, "backbone.name=tiny-clop"): "unknown backbone 'tiny-clop'. Did you mean 'tiny-clip'?",
    ("train", RECIPE, "backbone.weights=no/such.safetensors"): "file 'no/such.safetensors' does not exist",
    ("train", RECIPE, "task=3"): "task: needs a `type`, one of: fewshot",
    ("train", RECIPE, "task.type=fewsho"): "unknown task 'fewsho'. Did you mean 'fewshot'?",
    ("train", RECIPE, "task.shotz=3"): "task.shotz: unknown key. Did you mean 'shots'?",
    ("train", RECIPE, "task.shots=0"): "task.shots: input should be greater than or equal to 1 (got 0)",
    ("train", RECIPE, "task.transfer=[{type: digitz}]"): "unknown data 'digitz'. Did you mean 'digits'?",
    ("train", DETECTOR, "task.losses.giuo=1"): "task.losses.giuo: unknown key. Did you mean 'giou'?",
    ("train", SESSIONS, "task.protocol.shotz=1"): "task.protocol.shotz: unknown key. Did you mean 'shots'?",
    ("train", RECIPE, "data.type=emojy"): "unknown data 'emojy'. Did you mean 'emoji'?",
    ("train", RECIPE, "data.trainstyle=x"): "data.trainstyle: unknown key. Did you mean 'train_style'?",
    ("train", RECIPE, "data.train_style=fluant"): "unknown emoji style 'fluant'. Did you mean 'fluent'?",
    ("train", RECIPE, "data={type: folder}"): "data",
    ("train", RECIPE, "data={type: folder, root: HERE/pictuers}"): "does not exist. Did you mean 'pictures'?",
    ("train", RECIPE, "data={type: csv, file: no.csv}"): "data.file: file 'no.csv' does not exist",
    ("train", RECIPE, "adapter.type=blok_lora"): "unknown adapter 'blok_lora'. Did you mean 'block_lora'?",
    ("train", RECIPE, "adapter.blokcs=1"): "has no option 'blokcs'. Did you mean 'blocks'?",
    ("train", RECIPE, "adapter.r=x"): "r = 'x': Input should be a valid integer",
    ("train", RECIPE, "adapter.r=0"): "r = 0: Input should be greater than or equal to 1",
    ("train", RECIPE, "adapter.dropout=1"): "dropout = 1: Input should be less than 1",
    ("train", RECIPE, "adapter.modules=3"): "adapter.modules: input should be a valid tuple",
    ("train", RECIPE, "adapter={type: peft}"): "adapter 'peft' needs the option 'name'",
    ("train", RECIPE, "initializer={type: pisa}"): "unknown initializer 'pisa'. Did you mean 'pissa'?",
    ("train", RECIPE, "initializer={type: lora_sb, sampels: 1}"): "unknown key. Did you mean 'samples'?",
    ("train", RECIPE, "rule={type: galore}"): "unknown rule 'galore'",
    ("train", RECIPE, "rule={type: glad, rho: -1}"): "rule.rho: input should be greater than or equal to 0",
    ("train", RECIPE, "regularizer={type: ba_lora, ramp: 2}"): "regularizer.ramp: input should be less than or equal",
    ("train", RECIPE, "selection={type: flexora, sofmax: x}"): "unknown key. Did you mean 'softmax'?",
    ("train", RECIPE, "hooks=[{type: no_such_hook}]"): "unknown hook 'no_such_hook'",
    ("train", RECIPE, "hooks=[1]"): "hooks.0: needs a `type`",
    ("eval", "no_such.yaml"): "no such config file",
    ("eval", RECIPE, "engine.stepps=3"): "Did you mean 'steps'?",
    ("eval", "HERE"): "no artefact here",
    ("eval", "HERE/artefact"): "does not say which data it belongs to",
    ("eval", "HERE/trained", "data.rot=x"): "data.rot: unknown key. Did you mean 'root'?",
    ("eval", "HERE/trained"): "data.root: folder 'gone' does not exist",
    ("inspect", "no_such.yaml"): "no such config file",
    ("inspect", "HERE"): "no artefact here (artefact.json is missing). Did you mean",
    ("inspect", "HERE/artefact", "engine.steps=1"): "an artefact takes no settings",
    ("inspect", RECIPE, "--out", "x.html"): "are for artefact folders",
    ("predict", "HERE/artefact", "HERE/on.png"): "does not exist. Did you mean 'one.png'?",
    ("predict", "HERE/artefact", "HERE/*.jpg"): "matches nothing",
    ("predict", "HERE/artefact", "HERE/empty"): "no pictures",
    (
        "predict",
        "HERE/artefacts",
        "HERE/one.png",
    ): "no artefact here (artefact.json is missing). Did you mean 'artefact'?",
    ("predict", "HERE/damaged", "HERE/one.png"): "not valid JSON",
    ("export", "HERE/no_such", "x"): "no artefact here",
    ("export", "HERE/artefact", "x", "--format", "mergd"): "unknown format 'mergd'. Did you mean 'merged'?",
    ("export", "HERE/artefact", "x", "--format", "onnx", "--rank", "3"): "--format onnx has none of them",
    ("add-classes", "HERE/artefact"): "give either the FOLDER",
    ("add-classes", "HERE/no_such", "HERE/pictures"): "no artefact here",
    ("add-classes", "HERE/artefact", "HERE/no_such"): "does not exist",
    ("compare", "no_such.yaml"): "no such config file",
    ("compare", RECIPE, "--methods", "blok_lora"): "unknown adapter 'blok_lora'. Did you mean 'block_lora'?",
    ("compare", RECIPE, "--methods", "lora+pisa"): "unknown part 'pisa'. Did you mean 'pissa'?",
    ("compare", RECIPE, "--methods", ","): "name at least one method",
    ("compare", RECIPE, "--budget", "ranks"): "unknown budget 'ranks'. Did you mean 'rank'?",
    ("compare", RECIPE, "--protocol", "base2novel"): "unknown protocol 'base2novel'. Did you mean 'base_to_novel'?",
    ("compare", RECIPE, "--seeds", "1,x"): "--seeds 1,x: give numbers with commas between",
    ("compare", RECIPE, "--shots", "few"): "--shots few: give numbers with commas between",
    ("compare", RECIPE, "--lr", "1e-4;2"): "--lr 1e-4;2: give numbers with commas between",
    ("compare", RECIPE, "--data", "dtd"): "give --data-root",
    ("compare", RECIPE, "--data", "dtt", "--data-root", "HERE"): "Did you mean 'dtd'?",
    ("compare", RECIPE, "engine.stepps=3"): "Did you mean 'steps'?",
    ("compare", "engine.steps=1"): "name at least one recipe",
    ("compare", RECIPE, "--vary", "adapter.r"): "--vary adapter.r: give a key and values",
    ("compare", RECIPE, "--vary", "adapter.r=2", "--methods", "lora"): "give either --methods or --vary",
    ("compare", RECIPE, "--launcher", "submitt"): "unknown launcher 'submitt'. Did you mean 'submitit'?",
    ("compare", RECIPE, "--cluster", "timeout_min=1"): "is for --launcher submitit",
    ("incremental", "engine.steps=1"): "name at least one recipe",
    ("incremental", RECIPE): "its task is fewshot",
    ("incremental", "no_such.yaml"): "no such config file",
    ("incremental", SESSIONS, "--seeds", "x"): "--seeds x: give numbers with commas between",
    ("scan", "HERE/no_such.png"): "does not exist",
    ("scan", "HERE/one.png", "--model", "HERE/no_such"): "no artefact here",
    ("scan", "HERE/one.png", "--threshold", "high"): "--threshold 'high': give auto",
    ("scan", "HERE/one.png", "--fail-on", "editd"): "Did you mean 'edited'?",
    ("make-edits", "builtin", "HERE/x", "--kinds", "blurr"): "Did you mean 'blur'?",
    ("make-edits", "builtin", "HERE/x", "--fractions", "1,2"): "must be three numbers",
    ("make-edits", "HERE/no_such", "HERE/x"): "does not exist",
    ("data", "check", "HERE/no_such"): "does not exist",
    ("data", "check", "HERE", "dtt"): "Did you mean 'dtd'?",
    ("data", "convert", "coca", "HERE", "x.jsonl"): "coca",
    ("new", "recepe", "x"): "Did you mean 'recipe'?",
    ("new", "recipe", "my/recipe"): "names no file",
    ("new", "adapter", "My-Adapter"): "not snake case",
}
HEAVY_COMMAND = ("inspect", RECIPE)
EXIT_CODES = {"scan": 1}  # 2 says that it found something


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every command answered: (exit code, stdout, stderr, large libraries asked for)."""
    here = tmp_path_factory.mktemp("here")
    for name in ("pictures", "empty", "a_run", "artefact", "trained", "damaged"):
        (here / name).mkdir()
    (here / "broken.yaml").write_text("a: [")
    (here / "one.png").touch()
    about = {
        "task": "classification",
        "backbone": {"name": "tiny-clip", "weights": None},
        "fingerprint": "0" * 16,
        "preprocess": {"size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "adapter": False,
        "trained_base": [],
        "tensors": {},
        "record": {},
    }
    config = {
        "backbone": {"name": "tiny-clip"},
        "task": {"type": "fewshot"},
        "data": {"type": "folder", "root": "gone"},
    }
    (here / "artefact" / "artefact.json").write_text(json.dumps(about))
    (here / "trained" / "artefact.json").write_text(json.dumps(about | {"record": {"config": config}}))
    (here / "damaged" / "artefact.json").write_text("{")
    commands = [*ANSWERS, *MISTAKES, HEAVY_COMMAND]
    given = [[word.replace("HERE", str(here)) for word in command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps([HEAVY, given]), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("command", ANSWERS, ids=" ".join)
def test_answers_without_a_large_library(results, command):
    code, out, err, tried = results[command]
    assert not tried
    assert code == 0, err
    assert ANSWERS[command] in out


@pytest.mark.parametrize("command", MISTAKES, ids=lambda command: " ".join(word.rpartition("/")[2] for word in command))
def test_a_mistake_is_one_line_without_a_large_library(results, command):
    code, _, err, tried = results[command]
    assert not tried
    assert code == EXIT_CODES.get(command[0], 2), err
    assert MISTAKES[command] in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_command_that_needs_a_model_is_caught(results):
    code, _, err, tried = results[HEAVY_COMMAND]
    assert tried[0][0] == "torch"
    assert code is None
    assert "torch is not for now" in err


def test_lists_are_those_of_the_parts(results):
    out = results[("methods",)][1]
    for part in registry.list():
        if part.facts:
            assert repr((part.kind, part.name, part.paper, part.summary)) in out
            assert part.name in results[("list", part.kind)][1]
