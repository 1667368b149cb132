"""Methods exchanged in a recipe: fair budgets, rates chosen on validation pictures, resumption, honest rows."""

import json
import math
import re

import pytest

from vision_lowrank.cli.main import main
from vision_lowrank.config import load_config
from vision_lowrank.errors import UserError
from vision_lowrank.registry import registry
from vision_lowrank.studies import job, methods, timing
from vision_lowrank.studies import run as experiment
from vision_lowrank.studies.columns import tables
from vision_lowrank.studies.methods import Methods
from vision_lowrank.studies.study import run_study
from vision_lowrank.studies.variants import Entry, entries

SHORT = ("engine.steps=2", "seeds=[1]", "engine.checkpoint_every=0")


@pytest.fixture(scope="module")
def compared(shapes):
    plan = Methods(shapes, entries("lora,lora_xs,slora+pissa,lora_xs+lora_ga"), rates=(1e-3, 1e-1))
    study = plan.study(shapes.parent / "out", ("engine.steps=2",))
    said = []
    return study, run_study(study, say=said.append), said


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


def test_every_method_has_the_same_data_and_its_own_options(compared):
    _, result, _ = compared
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["lora", "lora_xs", "slora+pissa", "lora_xs+lora_ga"]
    assert len({tuple(facts["train_hash"] for facts in row["facts"].values()) for row in rows.values()}) == 1
    assert {tuple(row["facts"]) for row in rows.values()} == {("1", "2")}
    tests = [value for row in rows.values() for name, value in row["metrics"].items() if name.startswith("test/")]
    assert {value["n"] for value in tests} == {2}
    assert rows["lora"]["adapter"]["dropout"] == 0.25
    assert rows["lora_xs"]["adapter"] | {"towers": ["vision"], "modules": ["q", "v"]} == rows["lora_xs"]["adapter"]
    assert rows["lora_xs"]["r"] == 16
    assert all(row["baseline"] == result["baseline"] for row in rows.values())


def test_the_rate_is_the_one_with_the_best_validation_accuracy(compared):
    study, result, said = compared
    for row in result["rows"]:
        assert set(row["validation"]) == {"0.001", "0.1"}
        assert row["validation"][f"{row['lr']:g}"] == max(row["validation"].values())
        folder = study.folder / row["method"]
        for rate, value in row["validation"].items():
            seeds = sorted(path.name for path in (folder / f"lr-{rate}").glob("seed-*"))
            assert seeds == (["seed-1", "seed-2"] if float(rate) == row["lr"] else ["seed-1"])
            saved = json.loads((folder / f"lr-{rate}" / "seed-1" / "result.json").read_text())
            assert saved["metrics"]["val/accuracy"] == value
    waves = [line.partition(" (")[0].partition(": ")[2] for line in said]
    chosen = waves.index(f"lora: learning rate {result['rows'][0]['lr']:g}, seed 2")
    assert chosen == 8  # the first wave is over: four methods, two rates, the first seed
    assert all(line.endswith("seed 1") for line in waves[:8])
    assert all(line.endswith("seed 2") for line in waves[8:12])  # and is not run again
    assert waves[12:] == [f"{row['method']}: time of a step" for row in result["rows"]]


def test_a_second_call_runs_nothing_and_gives_the_same(compared, monkeypatch):
    study, result, _ = compared
    for module in (experiment, methods, timing):
        monkeypatch.setattr(module, "build_task", None)
    monkeypatch.setattr(job, "run_seed", None)
    said = []
    again = json.loads(json.dumps(run_study(study, say=said.append)))
    assert again == json.loads((study.folder / "study.json").read_text())
    assert again["rows"] == json.loads(json.dumps(result["rows"]))
    assert not said


def test_the_files_hold_the_table_with_the_untrained_model_first(compared):
    study, result, _ = compared
    [(title, header, lines)] = tables(result)
    assert [line[0] for line in lines] == ["untrained", *(row["method"] for row in result["rows"])]
    assert all(len(line) == len(header) for line in lines)
    text = (study.folder / "study.md").read_text().splitlines()
    assert text[0] == f"**{title}**"
    assert text[2].startswith("| method | lr | r | test/")
    assert len(text) == 4 + len(lines)
    assert len((study.folder / "study.csv").read_text().splitlines()) == 1 + len(lines)
    drawn = (study.folder / "pareto.svg").read_text()
    assert all(row["method"] in drawn for row in result["rows"])
    assert "$" not in drawn  # numbers, not their formulas
    first = result["rows"][0]
    assert lines[1][header.index("trained parameters")] == f"{first['trained_parameters']:,}"
    assert lines[1][header.index("step memory (MiB)")] == f"{first['peak_memory'] / 2**20:.0f}"
    assert 0.5 < first["step_ratio"] < 2  # the first method against itself
    page = (study.folder / "report.html").read_text()
    assert all(row["method"] in page for row in result["rows"])
    assert "<svg" in page


def test_budgets(shapes):
    def count(budget, adapter):
        [variant] = Methods(shapes, [Entry(adapter)], budget).study(shapes.parent / "none", SHORT).variants
        return variant.config.adapter.options.get("r"), methods.trained_parameters(variant.config)

    _, reference = count("defaults", "lora")
    assert count("rank", "lora_xs") == (4, 2 * 16)
    r, near = count("parameters", "lora_xs")
    assert near == 2 * r * r
    others = [2 * other * other for other in methods.RANKS if other <= 64]
    assert abs(math.log(near / reference)) == min(abs(math.log(each / reference)) for each in others)


def test_what_cannot_run_is_a_row_with_its_reason_and_stops_nothing(shapes, tmp_path):
    result = run_study(Methods(shapes, entries("lora,rand_lora+pissa")).study(tmp_path, SHORT))
    kept, failed = result["rows"]
    assert "failed" not in kept
    assert "initializer" in failed["failed"]
    assert "left out: " in (tmp_path / "study.md").read_text()


def test_nothing_that_can_run_is_an_error(shapes, tmp_path):
    with pytest.raises(UserError, match="initializer"):
        run_study(Methods(shapes, entries("rand_lora+pissa")).study(tmp_path, SHORT))


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
    assert "job 1 of 1: lora: learning rate 0.001, seed 1" in shown.err
    assert json.loads((tmp_path / "study.json").read_text())["rows"][0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "lorra"], "Did you mean 'lora'"),
        (["--budget", "ranks"], "unknown budget 'ranks'. Did you mean 'rank'"),
        (["--budget", "rank"], "are of --methods"),
        (["--seeds", "one"], "--seeds one: give numbers"),
        (["--methods", ","], "name at least one method"),
        (["adapter=null", "--methods", "lora"], "--methods needs a recipe with an adapter"),
        (["task={type: zeroshot}", "--methods", "lora"], "task zeroshot attaches no adapter"),
        (["--methods", "lora", "--vary", "adapter.r=2,4"], "either --methods or --vary"),
        (["--vary", "adapter.r"], "--vary adapter.r: give a key and values"),
        (["--launcher", "slurm"], "unknown launcher 'slurm'"),
        (["--cluster", "timeout_min=3"], "is for --launcher submitit"),
        (["--launcher", "submitit", "--cluster", "timeout_min"], "write KEY=VALUE"),
        (["--launcher", "submitit", "--jobs", "2"], "--jobs is of this machine"),
        (["--shots", "2", "task={type: zeroshot}"], "shots"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(shapes, capsys, options, message):
    assert run("compare", shapes, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_first_method_that_cannot_run_does_not_stop_the_others(shapes, tmp_path):
    result = run_study(Methods(shapes, entries("rand_lora+pissa,lora")).study(tmp_path, SHORT))
    assert ["failed" in row for row in result["rows"]] == [True, False]


def test_overrides_reach_every_method_that_knows_them(shapes):
    given = (*SHORT, "adapter.r=8", "adapter.dropout=0.1", "adapter.init_lora_weights=gaussian")
    plan, base = Methods(shapes, [Entry("slora")]), load_config(shapes, given)
    options = plan.config(base, given, Entry("slora")).adapter.options
    assert (options["r"], options["dropout"]) == (8, 0.1)
    assert plan.config(base, given, Entry("lora")).adapter.options["init_lora_weights"] == "gaussian"


def test_a_method_far_from_the_target_says_so(shapes, tmp_path):
    plan = Methods(shapes, entries("lora,loldu"), "parameters")
    result = run_study(plan.study(tmp_path, (*SHORT, "adapter.r=16")))
    [(_, header, lines)] = tables(result)
    sizes = [line[header.index("trained parameters")] for line in lines[1:]]
    assert [f"(target {result['target']:,})" in size for size in sizes] == [False, True]
