"""The sweep: fair budgets, rates chosen on validation pictures, resumption, and honest rows for what cannot run."""

import json
import math
import re

import pytest

from vision_lowrank.cli.main import main
from vision_lowrank.errors import UserError
from vision_lowrank.registry import registry
from vision_lowrank.studies import comparison
from vision_lowrank.studies import run as experiment
from vision_lowrank.studies.comparison import Sweep, compare, table
from vision_lowrank.studies.variants import Entry, entries

SHORT = ("engine.steps=2", "task.seeds=[1]", "engine.checkpoint_every=0")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory, pictures, tiny_weights):
    """A recipe of module scope, so that one sweep serves several tests."""
    path = tmp_path_factory.mktemp("sweep") / "shapes.yaml"
    path.write_text(
        f"backbone: {{name: tiny-clip, weights: {tiny_weights}}}\n"
        "task: {type: fewshot, shots: 2, seeds: [1, 2]}\n"
        f"data: {{type: folder, root: {pictures}, fractions: [0.5, 0.2, 0.3]}}\n"
        "adapter: {type: lora, r: 4, dropout: 0.25, towers: [vision], layers: [0], modules: [q, v]}\n"
        "engine: {steps: 2, batch_size: 6, lr: 1.0e-2, tensorboard: false, log_every: 1}\n"
    )
    return path


@pytest.fixture(scope="module")
def swept(shapes):
    sweep = Sweep(
        shapes, entries("lora,lora_xs,slora+pissa,lora_xs+lora_ga"), shapes.parent / "out", rates=(1e-3, 1e-1),
        overrides=("engine.steps=2",),
    )  # fmt: skip
    said = []
    return sweep, compare(sweep, said.append), said


def test_entries_cross_methods_and_initializers():
    assert entries("lora,slora+pissa", "none,nystrom") == [
        Entry("lora"), Entry("lora", "nystrom"), Entry("slora", "pissa"),
    ]  # fmt: skip
    ours = {part.name for part in registry.list("adapter")} - {"peft"}
    assert {entry.adapter for entry in entries("all")} == ours
    starts = {part.name for part in registry.list("initializer")}
    assert {entry.initializer for entry in entries("lora", "all")} == {None, *starts}
    with pytest.raises(UserError, match=r"unknown adapter 'lorra'. Did you mean 'lora'"):
        entries("lorra")
    with pytest.raises(UserError, match=r"unknown part 'pisa'. Did you mean 'pissa'"):
        entries("lora+pisa")


def test_every_method_has_the_same_data_and_its_own_options(swept):
    _, result, _ = swept
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["lora", "lora_xs", "slora+pissa", "lora_xs+lora_ga"]
    assert len({tuple(row["train_hashes"]) for row in rows.values()}) == 1
    tests = [value for row in rows.values() for name, value in row["metrics"].items() if name.startswith("test/")]
    assert {value["n"] for value in tests} == {2}
    assert rows["lora"]["adapter"]["dropout"] == 0.25
    assert rows["lora_xs"]["adapter"] | {"towers": ["vision"], "modules": ["q", "v"]} == rows["lora_xs"]["adapter"]
    assert rows["lora_xs"]["r"] == 16
    assert all(row["baseline"] == result["baseline"] for row in rows.values())


def test_the_rate_is_the_one_with_the_best_validation_accuracy(swept):
    sweep, result, _ = swept
    for row in result["rows"]:
        assert set(row["validation"]) == {"0.001", "0.1"}
        assert row["validation"][f"{row['lr']:g}"] == max(row["validation"].values())
        folder = sweep.folder / row["method"]
        for rate, value in row["validation"].items():
            seeds = sorted(path.name for path in (folder / f"lr-{rate}").glob("seed-*"))
            assert seeds == (["seed-1", "seed-2"] if float(rate) == row["lr"] else ["seed-1"])
            saved = json.loads((folder / f"lr-{rate}" / "seed-1" / "result.json").read_text())
            assert saved["metrics"]["val/accuracy"] == value


def test_a_second_call_runs_nothing_and_gives_the_same(swept, monkeypatch):
    sweep, result, _ = swept
    monkeypatch.setattr(experiment, "build_task", None)
    monkeypatch.setattr(comparison, "build_task", None)
    assert json.loads(json.dumps(compare(sweep))) == json.loads((sweep.folder / "comparison.json").read_text())
    assert compare(sweep)["rows"] == json.loads(json.dumps(result["rows"]))


def test_the_files_hold_the_table_with_the_untrained_model_first(swept):
    sweep, result, _ = swept
    header, lines = table(result)
    assert [line[0] for line in lines] == ["untrained", *(row["method"] for row in result["rows"])]
    assert all(len(line) == len(header) for line in lines)
    text = (sweep.folder / "comparison.md").read_text().splitlines()
    assert text[0].startswith("| method | lr | r | test/")
    assert len(text) == 2 + len(lines)
    assert len((sweep.folder / "comparison.csv").read_text().splitlines()) == 1 + len(lines)
    drawn = (sweep.folder / "pareto.svg").read_text()
    assert all(row["method"] in drawn for row in result["rows"])
    assert "$" not in drawn  # numbers, not their formulas
    first = result["rows"][0]
    assert lines[1][header.index("trained parameters")] == f"{first['trained_parameters']:,}"
    assert 0.5 < first["step_ratio"] < 2  # the first method against itself


def test_budgets(shapes):
    def count(budget, adapter):
        sweep = Sweep(shapes, [Entry(adapter)], shapes.parent / "none", SHORT, budget)
        config = sweep.config(Entry(adapter), comparison._rank(sweep, Entry(adapter)))
        return config.adapter.options.get("r"), comparison._trained(config)

    _, reference = count("defaults", "lora")
    assert count("rank", "lora_xs") == (4, 2 * 16)
    r, near = count("parameters", "lora_xs")
    assert near == 2 * r * r
    others = [2 * other * other for other in comparison.RANKS if other <= 64]
    assert abs(math.log(near / reference)) == min(abs(math.log(each / reference)) for each in others)


def test_what_cannot_run_is_a_row_with_its_reason_and_stops_nothing(shapes, tmp_path):
    result = compare(Sweep(shapes, entries("lora,rand_lora+pissa"), tmp_path, SHORT))
    kept, failed = result["rows"]
    assert "failed" not in kept
    assert "initializer" in failed["failed"]
    assert "left out: " in (tmp_path / "comparison.md").read_text()


def test_nothing_that_can_run_is_an_error(shapes, tmp_path):
    with pytest.raises(UserError, match="initializer"):
        compare(Sweep(shapes, entries("rand_lora+pissa"), tmp_path, SHORT))


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


def test_the_command_prints_the_table_and_where_the_files_are(shapes, tmp_path, capsys):
    options = ["--methods", "lora", "--seeds", "1", "--lr", "1e-3", "--out", tmp_path]
    assert run("compare", shapes, "engine.steps=2", *options) == 0
    shown = capsys.readouterr()
    assert "untrained" in shown.out
    assert str(tmp_path / "pareto.svg") in re.sub(r"\s", "", shown.out)
    assert "method 1 of 1: lora" in shown.err
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"][0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "lorra"], "Did you mean 'lora'"),
        (["--budget", "ranks"], "unknown budget 'ranks'. Did you mean 'rank'"),
        (["--seeds", "one"], "--seeds one: give numbers"),
        (["--methods", ","], "name at least one method"),
        (["adapter=null", "--methods", "lora"], "compare needs a few-shot recipe with an adapter"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(shapes, capsys, options, message):
    assert run("compare", shapes, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_first_method_that_cannot_run_does_not_stop_the_others(shapes, tmp_path):
    result = compare(Sweep(shapes, entries("rand_lora+pissa,lora"), tmp_path, SHORT))
    assert ["failed" in row for row in result["rows"]] == [True, False]


def test_overrides_reach_every_method_that_knows_them(shapes):
    given = (*SHORT, "adapter.r=8", "adapter.dropout=0.1", "adapter.init_lora_weights=gaussian")
    sweep = Sweep(shapes, [Entry("slora")], shapes.parent / "none", given)
    options = sweep.config(Entry("slora")).adapter.options
    assert (options["r"], options["dropout"]) == (8, 0.1)
    assert sweep.config(Entry("lora")).adapter.options["init_lora_weights"] == "gaussian"


def test_a_method_far_from_the_target_says_so(shapes, tmp_path):
    result = compare(Sweep(shapes, entries("lora,loldu"), tmp_path, (*SHORT, "adapter.r=16"), "parameters"))
    header, lines = table(result)
    sizes = [line[header.index("trained parameters")] for line in lines[1:]]
    assert [f"(target {result['target']:,})" in size for size in sizes] == [False, True]
