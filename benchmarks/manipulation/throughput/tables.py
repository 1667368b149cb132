"""How fast a detector looks at pictures, in how much memory, and what reading a lower layer saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown

Result = Mapping[str, Any]


def render_tables(result: Result) -> str:
    """Render pictures a second, memory, and what reading a lower layer saves."""
    entries = list(result["entries"].values())
    batches = list(dict.fromkeys(entry["batch"] for entry in entries))
    groups: dict[tuple[str, int, int], dict[int, Result]] = {}
    for entry in entries:
        groups.setdefault((entry["device"], entry["threads"], entry["size"]), {})[entry["batch"]] = entry
    speed = [
        [device, str(threads), f"{size} px", way, *(_rate(row.get(batch), way) for batch in batches)]
        for (device, threads, size), row in groups.items()
        for way in ("decoded", "files")
    ]
    memory = [
        [device, str(threads), f"{size} px", _mebibytes(next(iter(row.values()))["resident_bytes"]),
         *(_mebibytes(row[batch]["peak_bytes"]) if batch in row else "-" for batch in batches)]
        for (device, threads, size), row in groups.items()
    ]  # fmt: skip
    names = [f"batch {batch}" for batch in batches]
    layers = list(next(iter(result["truncated"].values()))["ratio"])
    saved = [
        [key, *(f"{row['ratio'][layer]:.2f}" for layer in layers), str(row["own"])]
        for key, row in result["truncated"].items()
    ]
    where = ["device", "threads", "long side"]
    return "\n".join(
        [
            f"**pictures per second**\n\n{markdown([*where, 'from', *names], speed)}",
            f"**memory of the process in MiB: with the detector loaded, and at most**\n\n"
            f"{markdown([*where, 'loaded', *names], memory)}",
            f"**time up to a layer, as a share of the whole tower**\n\n"
            f"{markdown(['device', *(f'layer {layer}' for layer in layers), 'read by the detector'], saved)}",
        ]
    )


def _rate(entry: Result | None, way: str) -> str:
    return f"{entry['images_per_second'][way]:.3g}" if entry else "-"


def _mebibytes(number: int | None) -> str:
    return "-" if number is None else f"{number / 2**20:,.0f}"
