"""The network beside the bare trunk, crops beside the network, and the command beside CSRT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_lowrank.viz.text import markdown

Result = Mapping[str, Any]
RATIOS = {
    "network / vit": "of the bare ViT",
    "network / blocks": "of its blocks alone",
    "head / vit": "head alone, of the ViT",
    "factors / vit": "with the adapter as factors, of the ViT",
    "crop / network": "crop and pre-processing, of the network",
    "frame / network": "all of a frame, of the network",
}


def render_tables(result: Result) -> str:
    """Render ratios of every trunk, and the command where it was measured."""
    parts = [f"**One frame of one target, median ratios (quartiles) of {result['rounds']} rounds**\n\n{ratios(result)}"]
    if "track" in result:
        parts.append(f"**Frames per second on a clip of {result['track']['frames']} frames**\n\n{rates(result)}")
    return "\n".join(parts)


def ratios(result: Result) -> str:
    """Render what a frame costs on every trunk."""
    entries = result["networks"].values()
    header = ["", *(f"`{name}`, {entry['search']} px" for name, entry in result["networks"].items())]
    times = [f"{1000 * entry['seconds']['network']['median']:.1f} ms" for entry in entries]
    lines = [["network", *times]]
    lines += [[title, *(_shown(entry["ratios"][name], 3) for entry in entries)] for name, title in RATIOS.items()]
    return markdown(header, lines)


def rates(result: Result) -> str:
    """Render frames per second of both processes."""
    found = result["track"]
    lines = [
        [f"`vision-lowrank {name}`" if name == "track" else name, _shown(found["whole"][name], 1),
         _shown(found["loop"][name], 1)]
        for name in ("track", "CSRT")
    ]  # fmt: skip
    return markdown(["process", "with its start", "without"], lines)


def _shown(value: Mapping[str, float], digits: int) -> str:
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
