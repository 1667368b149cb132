"""What ``engine.lr: auto`` stands for: three learning rates, of which validation pictures choose one.

They suit what trains, under AdamW: low-rank updates at the rates that won on emoji and on photographs (committed under
``benchmarks/catalogue``), few numbers in fixed places at larger ones, base weights at smaller ones, a head alone as
linear probes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUTO = "auto"
UPDATES = (5e-4, 2e-3, 8e-3)
FEW = (2e-3, 1e-2, 5e-2)
BASE = (2e-5, 1e-4, 5e-4)
HEADS = (3e-3, 1e-2, 3e-2)
# Adapters that train few numbers: prompts, prefixes, offsets, diagonals, small cores.
OF_FEW = ("visual_prompt", "kv_prefix", "lofit", "loldu", "lora_xs")


def auto_rates(run: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the rates for a run's settings, whose sections may be checked already."""
    if run.get("adapter"):
        return FEW if _type(run["adapter"]) in OF_FEW else UPDATES
    return BASE if run.get("rule") and _type(run["rule"]) == "lisa" else HEADS


def resolved(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with ``rates`` and their middle one in place of ``engine.lr: auto``."""
    engine = run.get("engine")
    if not (isinstance(engine, Mapping) and engine.get("lr") == AUTO):
        return dict(run)
    rates = run.get("rates") or auto_rates(run)
    return {**run, "rates": rates, "engine": {**engine, "lr": rates[len(rates) // 2]}}


def _type(section: Any) -> str:
    return str(section.get("type") if isinstance(section, Mapping) else section.type)
