"""What PEFT's own tests say of our methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown

Result = Mapping[str, Any]


def render_tables(result: Result) -> str:
    """Render the counts of every method, and the exceptions with their reasons."""
    counts = [
        [f"`{name.lower()}`", *(str(row.get(kind, 0)) for kind in ("passed", "expected", "skipped"))]
        for name, row in result["methods"].items()
    ]
    exceptions = [[str(row["count"]), f"`{row['shown']}`", row["reason"]] for row in result["exceptions"]]
    return "\n".join(
        [
            markdown(["method", "passed", "failed as expected", "skipped by PEFT"], counts),
            markdown(["failures", "tests", "reason"], exceptions),
            f"The tests are those of peft {result['peft']}.",
        ]
    )
