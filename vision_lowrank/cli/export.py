"""``vision-lowrank export``: a saved model as a plain LoRA, as merged weights, or as an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ..errors import UserError, near_miss
from ..tasks.about import read_about
from .tables import print_table

if TYPE_CHECKING:
    from ..export.lora import ExportReport

# What --format offers -> the LoRA format of export_lora; None for what is no LoRA.
FORMATS = {"lora": "peft", "diffusers": "diffusers", "kohya": "kohya", "merged": None, "onnx": None}


def export_command(
    artefact: Path,
    out: Path,
    format: str,
    rank: int | None,
    tolerance: float | None,
    fuse_qkv: bool,
    trust: bool = False,
) -> None:
    """Write `artefact` to `out` and say what was written and how exact it is.

    Raises:
        UserError: an unknown format, an artefact of which the format can hold nothing or not all, or an option that
            the format has not.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format '{format}'.{near_miss(format, FORMATS)} Known: {', '.join(FORMATS)}.")
    if FORMATS[format] is None and (rank is not None or tolerance is not None or fuse_qkv):
        raise UserError(f"--rank, --tolerance and --fuse-qkv are for LoRA files: --format {format} has none of them.")
    read_about(artefact)
    from ..backbones.adapted import adapted  # torch, only now
    from ..export.lora import export_lora
    from ..export.merged import export_merged
    from ..export.onnx import export_onnx
    from ..tasks.saved import load_model

    model = load_model(artefact, attach=True, trust=trust)
    if format not in model.exports:
        reason = f", as {model.export_limits[format]}" if format in model.export_limits else ""
        raise UserError(
            f"{artefact}: a model for {model.task} cannot be written as {format}{reason}: "
            f"use --format {' or '.join(filter(None, [', '.join(model.exports[:-1]), model.exports[-1]]))}."
        )
    if format == "onnx":
        print(export_onnx(model, out))
        return
    has_adapter = adapted(model.backbone)
    if not has_adapter and not model.trained_base:
        raise UserError(
            f"{artefact}: has nothing to export but its head: neither an adapter nor the base was trained; "
            "`vision-lowrank predict` uses it as it is."
        )
    if format == "merged":
        path = export_merged(model.backbone, out)
        what = "the adapter merged in" if has_adapter else "its own weights as trained"
        print(f"{path}: the backbone with {what}; load it as weights of '{model.backbone.name}'.")
        return
    if model.trained_base:  # beside an adapter too: its ΔW is one of the trained weights
        raise UserError(f"{artefact}: base weights were trained, which a LoRA file cannot hold: use --format merged.")
    report = export_lora(model.backbone, out, FORMATS[format], rank, tolerance, fuse_qkv=fuse_qkv)
    print_table(_layers(report))
    print(report)


def _layers(report: ExportReport) -> Table:
    """Make a table of rank and error of every layer, the worst first."""
    table = Table()
    table.add_column("layer", overflow="fold")
    table.add_column("rank", justify="right")
    table.add_column("relative error", justify="right")
    for layer in sorted(report.errors, key=lambda name: -report.errors[name]):
        error = report.errors[layer]
        table.add_row(layer, str(report.ranks[layer]), f"{error:.2g}" if error else "exact")
    return table
