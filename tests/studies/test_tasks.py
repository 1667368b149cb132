"""``compare`` serves tasks that attach nothing too; of no task is there a table without its headline metric."""

import json

import pytest

from vision_lowrank.cli.main import main
from vision_lowrank.metrics.names import larger_is_better, title
from vision_lowrank.registry import registry
from vision_lowrank.studies.columns import compared, printed, shown


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def found(folder):
    """The JSON and the cells of the table of a study."""
    lines = (folder / "study.md").read_text().splitlines()[2:]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return json.loads((folder / "study.json").read_text()), [table[0], *table[2:]]


def test_recipes_that_train_nothing(shapes, tmp_path):
    other = tmp_path / "plain.yaml"
    other.write_text(shapes.read_text())
    given = [shapes, other, "task={type: zeroshot}", "adapter=null", "--seeds", "1"]
    assert run("compare", *given, "--out", tmp_path / "out") == 0
    result, (header, baseline, first, second) = found(tmp_path / "out")
    assert header == ["method", "test", "trained parameters"]
    assert baseline[1:] == first[1:] == second[1:]
    assert (first[0], second[0], first[2]) == ("shapes", "plain", "0")
    assert not (tmp_path / "out" / "pareto.svg").exists()  # nothing trains
    assert result["settings"] == {}


def test_pretraining_with_settings_that_vary(tmp_path):
    recipe = tmp_path / "pretrain.yaml"
    recipe.write_text(
        "backbone: {name: tiny-clip, weights: random}\n"
        "task: {type: pretrain_clip}\n"
        "data: {type: emoji_captions, test_styles: [fluent]}\n"
        "engine: {steps: 1, batch_size: 4, tensorboard: false}\n"
    )
    given = ["--vary", "task.patch_dropout=0.0,0.5", "--lr", "1e-4", "--out", tmp_path / "out"]
    assert run("compare", recipe, *given) == 0
    result, (header, *lines) = found(tmp_path / "out")
    assert [line[0] for line in lines] == ["untrained", "task.patch_dropout=0.0", "task.patch_dropout=0.5"]
    assert header[1] == "test/fluent"
    assert {row["lr"] for row in result["rows"]} == {1e-4}


@pytest.mark.parametrize("part", registry.list("task"), ids=lambda part: part.name)
def test_every_task_says_what_it_is_compared_by(part):
    facts = part.target
    assert facts.headline
    assert facts.baseline
    full = facts.headline if "/" in facts.headline else f"test/somewhere/{facts.headline}"
    assert full in compared(part.name, [full, f"{full}/deeper", "val/loss"])
    if facts.selects_by:
        assert facts.selects_by.startswith("val/")
    if facts.columns:
        assert facts.headline in facts.columns


def test_columns_are_printed_of_sets_as_they_are_and_by_full_name():
    names = ("test/a/loss", "test/a/accuracy", "incremental/forgetting", "incremental/last_accuracy")
    assert printed("incremental", names) == ["incremental/last_accuracy", "incremental/forgetting"]
    assert printed("fewshot", names) == list(names)
    assert compared("fewshot", [*names, "test/a/jpeg-70/accuracy"]) == ["test/a/accuracy"]


def test_titles_units_and_directions_of_metrics():
    assert [title(f"incremental/{name}") for name in ("last_accuracy", "harmonic_mean")] == ["last", "harmonic mean"]
    value = {"mean": 0.5, "std": 0.25, "n": 2}
    assert (shown("test/a/auc", value), shown("test/a/loss", value)) == ("50.0 ± 25.0", "0.500 ± 0.250")
    assert shown("test/a/auc", None) == "-"
    less = (
        "val/loss",
        "test/a/ece",
        "incremental/forgetting",
        "incremental/performance_drop",
        "session/1/base_forgetting",
    )
    assert not any(map(larger_is_better, less))
    assert all(map(larger_is_better, ("val/accuracy", "test/a/pixel_f1", "incremental/backward_transfer")))
