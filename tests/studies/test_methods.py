"""Methods exchanged in a recipe: fair budgets, rates chosen on validation pictures, resumption, honest rows."""

import json
import math
import re
from dataclasses import replace

import pytest

from vision_lowrank.cli.main import main
from vision_lowrank.config import load_config
from vision_lowrank.engine.step_runner import TrainingDiverged
from vision_lowrank.errors import UserError
from vision_lowrank.paths import shipped
from vision_lowrank.registry import registry
from vision_lowrank.studies import job, methods, timing
from vision_lowrank.studies import run as experiment
from vision_lowrank.studies.columns import tables
from vision_lowrank.studies.methods import Methods
from vision_lowrank.studies.study import run_study
from vision_lowrank.studies.variants import Entry, entries

CONFIGS = shipped("configs")
SHORT = ("engine.steps=2", "seeds=[1]", "engine.checkpoint_every=0")


@pytest.fixture(scope="module")
def compared(shapes):
    plan = Methods(shapes, entries("lora,lora_xs,slora+pissa,lora_xs+lora_ga"), "defaults", rates=(1e-3, 1e-1))
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
    assert text[0] == f"**{title}**" == "**shapes, every method at its own default size**"
    assert text[2].startswith("| method | lr | r | test | ")
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
    assert count("defaults", "lora_xs") == (16, 2 * 256)
    assert count("rank", "lora_xs") == count(None, "lora_xs") == (4, 2 * 16)
    r, near = count("parameters", "lora_xs")
    assert near == 2 * r * r
    others = [2 * other * other for other in methods.RANKS if other <= 64]
    assert abs(math.log(near / reference)) == min(abs(math.log(each / reference)) for each in others)


def test_equal_rank_is_the_default_and_the_table_says_so(shapes):
    study = Methods(shapes, entries("block_lora,lora_xs,lofit")).study(shapes.parent / "none", SHORT)
    assert study.title == "shapes, every method at the recipe's rank 4"
    assert study.facts["budget"] == "rank"
    assert [variant.facts["r"] for variant in study.variants] == [4, 4, None]
    bare = (*SHORT, "adapter={type: lofit}")
    study = Methods(shapes, entries("lofit,lora_xs")).study(shapes.parent / "none", bare)
    assert study.title == "shapes, every method at its own default size"
    with pytest.raises(UserError, match="lofit has none: use --budget defaults"):
        Methods(shapes, entries("lofit"), "rank").study(shapes.parent / "none", bare)


@pytest.fixture(scope="module")
def measured(shapes):
    """An adapter and all that it can be measured against."""
    plan = Methods(shapes, entries("linear_probe,none,lora,zero_shot,full", "none,pissa"), rates=(1e-3, 1e-2))
    return run_study(plan.study(shapes.parent / "references", ("engine.steps=2", "engine.checkpoint_every=0")))


def test_references_are_rows_beside_the_adapters(measured):
    rows = {row["method"]: row for row in measured["rows"]}
    assert list(rows) == ["linear_probe", "none", "lora", "lora+pissa", "zero_shot", "full"]
    assert not any("failed" in row or "left_out" in row for row in rows.values())
    assert rows["none"]["metrics"] == rows["zero_shot"]["metrics"]
    for name, value in measured["baseline"].items():
        assert rows["zero_shot"]["metrics"][name] == pytest.approx(value, rel=1e-5)  # attention split or not
    assert measured["baseline"] == rows["lora"]["baseline"] != rows["linear_probe"]["baseline"]  # not the probe's head
    assert rows["zero_shot"]["trained_parameters"] == 0
    assert rows["full"]["trained_parameters"] > 100 * rows["lora"]["trained_parameters"]
    assert {name for name, row in rows.items() if row["validation"]} == {"linear_probe", "lora", "lora+pissa", "full"}
    [(_, header, lines)] = tables(measured)
    told = {line[0]: line[header.index("lr")] for line in lines}
    assert (told["none"], told["zero_shot"], told["untrained"]) == ("", "", "")


def test_deterministic_rows_have_no_spread_and_every_seed_is_in_the_file(measured):
    [(_, _, lines)] = tables(measured)
    assert not any("±" in cell for line in lines if line[0] in ("untrained", "none", "zero_shot") for cell in line)
    assert any("±" in cell for line in lines for cell in line)
    for row in measured["rows"]:
        assert list(row["seeds"]) == ["1", "2"]
        for name, value in row["metrics"].items():
            assert value["mean"] == pytest.approx(sum(each["metrics"][name] for each in row["seeds"].values()) / 2)


def test_references_take_rates_of_their_own_unless_one_is_named(shapes):
    def rates(*overrides):
        variants = Methods(shapes, entries("linear_probe,full,lora")).study(shapes.parent / "none", overrides).variants
        return [variant.config.engine.lr for variant in variants]

    assert rates() == [1e-2, 1e-4, 1e-2]
    assert rates("engine.lr=0.5") == [0.5, 0.5, 0.5]


def test_reference_that_a_task_does_not_have_is_a_row_with_its_reason(tmp_path):
    recipe = CONFIGS / "manipulation" / "edits_manipshield.yaml"
    zero_shot, probe = Methods(recipe, entries("zero_shot,linear_probe")).study(tmp_path).variants
    assert "task manipulation has no such reference: it has none, linear_probe, full" in zero_shot.reason
    assert (probe.config.task.decoder, probe.config.task.contrast, probe.config.adapter) == ("linear", None, None)


def test_a_rate_that_diverges_costs_that_rate_only(shapes, tmp_path, monkeypatch):
    def diverging(config, seed, folder):
        rate = config.engine.lr
        if rate == 1.0 or (rate == 0.1 and seed == 2):
            raise TrainingDiverged("the loss is nan")
        folder.mkdir(parents=True, exist_ok=True)
        metrics = {"val/accuracy": {0.1: 0.9, 0.01: 0.8, 0.001: 0.7}[rate], "test/test/accuracy": rate + seed}
        result = {"baseline": {}, "metrics": metrics, "facts": {"trainable_parameters": 1}, "cost": {}}
        (folder / "result.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(job, "run_seed", diverging)
    plan = Methods(shapes, entries("lora"), rates=(1.0, 0.1, 0.01, 0.001))
    [row] = run_study(replace(plan.study(tmp_path, ("engine.steps=2",)), reference=None))["rows"]
    assert row["lr"] == 0.01  # the best of those at which every seed can be trained
    assert row["metrics"]["test/test/accuracy"] == pytest.approx({"mean": 1.51, "std": 0.5, "n": 2})
    assert list(row["left_out"]) == ["learning rate 1, seed 1", "learning rate 0.1, seed 2"]


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
        (["--seeds", "1,1,2"], "--seeds 1,1,2: 1 is given twice"),
        (["seeds=[1,1]"], "a seed is given twice"),
        (["--lr", "1e-3,0.001"], "0.001 is given twice"),
        (["--lr", "0,0.001"], "0 is no learning rate"),
        (["--methods", "zeroshot"], "unknown adapter 'zeroshot'. Did you mean 'zero_shot'"),
        (["--methods", "linear_probe+pissa"], "linear_probe: stands for itself"),
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
