"""Numbers as the tables show them."""

from __future__ import annotations

from collections.abc import Mapping


def percent(value: Mapping[str, float]) -> str:
    """``mean ± spread`` in percent of a fraction's mean, std and n; without a spread where there is none."""
    spread = f" ± {100 * value['std']:.1f}" if value["n"] > 1 and value["std"] > 0 else ""
    return f"{100 * value['mean']:.1f}{spread}"
