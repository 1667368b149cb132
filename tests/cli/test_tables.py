"""The tables that `train` and `eval` print: the columns of tasks that name them, all metrics of others."""

from types import SimpleNamespace

import pytest

from vision_lowrank.cli.tables import metrics_table, values_table
from vision_lowrank.registry import registry
from vision_lowrank.studies.columns import printed

NAMES = ("test/a/loss", "test/a/auc", "test/a/jpeg-70/auc", "test/b/auc", "test/b/f1", "val/auc", "val/equal_mix/auc")


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    found = {"long": SimpleNamespace(columns=("f1", "auc")), "short": SimpleNamespace(columns=())}
    monkeypatch.setattr(registry, "get", lambda kind, name: SimpleNamespace(target=found[name]))


def test_columns_are_those_of_sets_as_they_are_in_the_tasks_order():
    assert printed("long", NAMES) == ["test/a/auc", "test/b/f1", "test/b/auc"]


@pytest.mark.parametrize(("task", "names"), [("short", NAMES), (None, NAMES), ("long", ("val/auc", "session/0/f1"))])
def test_all_metrics_where_no_column_is_named_or_found(task, names):
    assert printed(task, names) == list(names)


def test_tables_show_shares_in_percent_and_say_where_the_rest_is():
    metrics = {name: {"mean": 0.5, "std": 0.25, "n": 2} for name in NAMES}
    before = {name: {"mean": 0.25, "std": 0.0, "n": 2} for name in NAMES}
    run = {"name": "demo", "task": "long", "seeds": {"1": {}, "2": {}}, "metrics": metrics, "baseline": before}
    table = metrics_table(run)
    first = [next(iter(column.cells)) for column in table.columns]
    assert first == ["test/a/auc", "25.0", "50.0 ± 25.0", "+25.0"]
    assert table.caption == "3 of 7 metrics; all are in result.json, and folded in the report"
    table = values_table("demo", dict.fromkeys(NAMES, 0.5), "long")
    assert (table.row_count, table.caption) == (3, "3 of 7 metrics; all are written by --json FILE")
    table = metrics_table(run | {"task": "short"})
    assert (table.row_count, table.caption) == (7, None)
    assert next(iter(table.columns[2].cells)) == "0.500 ± 0.250"
