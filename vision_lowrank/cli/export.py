"""``vision-lowrank export``: an artefact as a plain LoRA or as merged weights."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from ..adapters.merge import merge
from ..errors import UserError, near_miss
from ..export.lora import export_lora
from ..tasks.classification.classifier import ImageClassifier

FORMATS = ("lora", "merged")


def export_command(artefact: Path, out: Path, format: str) -> None:
    """Write `artefact` to `out` and say what was written and how exact it is.

    Raises:
        UserError: an unknown format, or an artefact without an adapter.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format '{format}'.{near_miss(format, FORMATS)} Known: {', '.join(FORMATS)}.")
    model = ImageClassifier.load(artefact).model
    if not hasattr(model, "peft_config"):
        raise UserError(f"{artefact}: has no adapter to export: only its head was trained.")
    if format == "lora":
        print(export_lora(model, out))
        return
    merged = merge(model)
    path = out if out.suffix == ".safetensors" else out / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in merged.model.state_dict().items()}, path)
    print(f"{path}: the whole model with the adapter merged in; load it as weights of '{merged.name}'.")
