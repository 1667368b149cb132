"""Grids of studies and their tables."""

import csv
import json

import pytest

from vision_lowrank.errors import UserError
from vision_lowrank.metrics.classification import harmonic_mean
from vision_lowrank.studies.grid import Grid, run_grid, tables
from vision_lowrank.studies.methods import Methods
from vision_lowrank.studies.pages import latex
from vision_lowrank.studies.variants import entries

SHORT = ("engine.steps=2", "seeds=[1,2]", "adapter={type: lora, r: 2, layers: [0]}")


def cell(mean, std=0.0, n=3):
    return {"mean": mean, "std": std, "n": n}


def row(data, method, shots=1, **metrics):
    named = {f"{name.replace('__', '/')}/accuracy": cell(value) for name, value in metrics.items()}
    return {"data": data, "shots": shots, "method": method, "metrics": named}


def shown(protocol, rows):
    """The tables of a grid of few-shot classification."""
    return tables({"task": "fewshot", "protocol": protocol, "rows": rows})


def test_grid_runs_every_shot_and_resumes(recipe, tmp_path, monkeypatch):
    grid = Grid(Methods(recipe, entries("lora")), tmp_path / "grid", SHORT, shots=(1, 2))
    result = run_grid(grid)
    assert [(r["shots"], r["method"]) for r in result["rows"]] == [
        (1, "untrained"), (1, "lora"), (2, "untrained"), (2, "lora"),
    ]  # fmt: skip
    for suffix in ("json", "md", "csv", "tex"):
        assert (tmp_path / "grid" / f"grid.{suffix}").is_file()
        assert (tmp_path / "grid" / "folder" / "shots-2" / f"study.{suffix}").is_file()
    monkeypatch.setattr("vision_lowrank.engine.loop.Engine.update", lambda self: pytest.fail("trained again"))
    assert run_grid(grid)["rows"] == result["rows"]
    lines = list(csv.reader((tmp_path / "grid" / "grid.csv").read_text().splitlines()))
    assert lines[1][1] == "untrained"
    assert json.loads((tmp_path / "grid" / "grid.json").read_text())["protocol"] == "all"


def test_cell_in_which_nothing_can_run_costs_itself_only(recipe, pictures, tmp_path):
    grid = Grid(Methods(recipe, entries("lora")), tmp_path, (*SHORT, "seeds=[1]"), shots=(1, 99))
    result = run_grid(grid)
    assert [row["method"] for row in result["rows"]] == ["untrained", "lora", "lora"]
    assert "class 'disc'" in result["rows"][2]["failed"]
    few, many = tables(result)
    assert few[2][1][1] != "-"
    assert many[2] == [["untrained", "-"], ["lora", "-"]]


def test_base_to_novel_table_averages_before_the_harmonic_mean():
    rows = [
        row("a", "zero-shot", test__t=0.5, **{"transfer__novel-t": 0.4}),
        row("a", "lora", test__t=0.9, **{"transfer__novel-t": 0.5}),
        row("b", "zero-shot", test__t=0.3, **{"transfer__novel-t": 0.2}),
        row("b", "lora", test__t=0.5, **{"transfer__novel-t": 0.7}),
    ]
    [(_, header, lines)] = shown("base_to_novel", rows)
    lora = dict(zip(header, lines[1], strict=True))
    assert (lora["a base"], lora["a novel"], lora["b HM"]) == ("90.0", "50.0", f"{100 * harmonic_mean(0.5, 0.7):.1f}")
    assert (lora["mean base"], lora["mean novel"]) == ("70.0", "60.0")
    assert lora["mean HM"] == f"{100 * harmonic_mean(0.7, 0.6):.1f}"
    assert lines[0][0] == "zero-shot"


def test_table_has_a_column_per_data_set_and_their_mean():
    rows = [
        *(row(data, method, shots, test__t=value) for shots in (1, 2) for data, method, value in [
            ("a", "zero-shot", 0.1), ("a", "lora", 0.2 * shots), ("b", "zero-shot", 0.3), ("b", "lora", 0.4),
        ]),
    ]  # fmt: skip
    first, second = shown("all", rows)
    assert first[1] == ["method", "a", "b", "mean"]
    assert first[2][1] == ["lora", "20.0", "40.0", "30.0"]
    assert second[2][1] == ["lora", "40.0", "40.0", "40.0"]


def test_transfer_table_has_the_source_and_every_target():
    rows = [row("a", method, test__t=0.5, transfer__x=0.25, transfer__y=0.75) for method in ("zero-shot", "lora")]
    [(_, header, lines)] = shown("transfer", rows)
    assert header == ["method", "t", "x", "y"]
    assert lines[1] == ["lora", "50.0", "25.0", "75.0"]


def test_method_that_could_not_run_is_a_dash():
    failed = {"data": "a", "shots": 1, "method": "lofit", "failed": "no"}
    [(_, _, lines)] = shown("all", [row("a", "zero-shot", test__t=0.5), failed])
    assert lines[1] == ["lofit", "-"]


def test_table_of_another_task_has_its_headline():
    cells = [("a", "untrained", 0.5), ("a", "lora", 0.75), ("b", "untrained", 0.5), ("b", "lora", 0.25)]
    metrics = [{"test/seen/auc": cell(value), "test/seen/f1": cell(0.1)} for *_, value in cells]
    rows = [
        {"data": data, "shots": None, "method": method, "metrics": each}
        for (data, method, _), each in zip(cells, metrics, strict=True)
    ]
    [(title, header, lines)] = tables({"task": "manipulation", "protocol": "all", "rows": rows})
    assert (title, header) == ("all", ["method", "a", "b", "mean"])
    assert lines[1] == ["lora", "75.0", "25.0", "50.0"]


def test_latex_escapes_what_latex_would_read():
    text = latex("t", ["method", "a"], [["zero-shot", "1"], ["block_lora", "50.0 ± 1.0"]])
    assert r"block\_lora & 50.0 $\pm$ 1.0 \\" in text
    assert text.count(r"\midrule") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [({"protocol": "base2novel"}, "base_to_novel"), ({"data": ("dtd",)}, "--data-root")],
)
def test_mistakes_are_named(recipe, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run_grid(Grid(Methods(recipe, entries("lora")), tmp_path, SHORT, **options))
