"""``load_factored``: an adapter for prediction, without PEFT, where its ΔW has the form scale · B A.

The linears that the adapter sits on are replaced by :class:`~vision_lowrank.kernels.factored.FactoredLinear`, with the
tensors that the attached layers computed with when they were saved, in the same order in memory: outputs are those of
the saved model, bit for bit. All checks of ``load`` hold: files, checksums, base and probe.

In a file of factors a tensor that the attached layer computes as the transpose of a matrix is kept as that matrix,
under a name that ends with :data:`TRANSPOSED`. Order and alignment in memory may decide the last bit of a product.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..attention.split import fuse_attention, renew_identity, split_attention
from ..backbones.adapted import adapted
from ..backbones.base import Backbone
from ..errors import ArtefactError, UserError
from ..json_files import read_object
from ..kernels.factored import FactoredLinear
from .folder import CONFIG, attachment_of, check_base, check_outputs, probe_outputs, read_tensors
from .record import COPY, TENSORS, read_record

# PEFT's names of LoRA's tensors.
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
TRANSPOSED = "_T"


def has_factors(folder: Path) -> bool:
    """Tell whether :func:`load_factored` can load the adapter in `folder`.

    Raises:
        ArtefactError: its record is missing or damaged.
    """
    factors = read_record(folder)["factors"]
    return factors is not None and (folder / factors["file"]).is_file()


def load_factored(folder: Path, backbone: Backbone) -> Backbone:
    """Load factors into `backbone`, in place: frozen, in evaluation mode, the adapter's factors in its linears.

    Args:
        folder: one that :func:`has_factors`.
        backbone: the same base weights, without adapters.

    Raises:
        UserError: `backbone` carries an adapter already.
        ArtefactError: as ``load``; the backbone is left without the adapter.
    """
    if adapted(backbone) or getattr(backbone, "factored", None):
        raise UserError(f"'{backbone.name}' already carries an adapter: load it anew for another one.")
    record = read_record(folder)
    if isinstance(backbone, Backbone):
        renew_identity(backbone)
    check_base(attachment_of(record), backbone, folder)
    read_object(folder / CONFIG, COPY)
    state = read_tensors(folder / TENSORS, record["sha256"])
    factors = record["factors"]
    if factors["file"] != TENSORS:
        state = read_tensors(folder / factors["file"], factors["sha256"])
    split_attention(backbone)
    replaced = _replace(backbone, state, factors["scale"], folder)
    backbone.requires_grad_(False).eval()
    try:
        check_outputs(record, probe_outputs(backbone), backbone, folder)
    except Exception:
        for path, linear in replaced.items():
            backbone.set_submodule(path, linear)
        raise
    backbone.factored = record["sha256"]
    return backbone


def merge_factored(backbone: Backbone) -> Backbone:
    """Fold the factors of :func:`load_factored` into the weights, in place, and fuse attention back.

    What remains costs what the base costs and computes the same but for rounding. It is still known as the base with
    that adapter: ``fingerprint`` and ``factored`` stay, and what refused the one refuses the other.
    """
    inside = [(path, part) for path, part in backbone.named_modules() if isinstance(part, FactoredLinear)]
    for path, part in inside:
        backbone.set_submodule(path, part.merged())
    return fuse_attention(backbone)


def pack_factors(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Pack path in the backbone -> A (r, in) and B (out, r) as the tensors of a file."""
    state = {}
    for path, (A, B) in pairs.items():
        for name, tensor in ((f"{PREFIX}{path}{DOWN}", A), (f"{PREFIX}{path}{UP}", B)):
            is_transpose = tensor.T.is_contiguous() and not tensor.is_contiguous()
            kept, name = (tensor.T, name + TRANSPOSED) if is_transpose else (tensor, name)
            state[name] = kept.detach().cpu().contiguous()
    return state


def unpack_factors(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Undo :func:`pack_factors`, with copies: path -> ``A`` and ``B``; other tensors are left out."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        place, tensor = (name.removesuffix(TRANSPOSED), tensor.T) if name.endswith(TRANSPOSED) else (name, tensor)
        for ending, letter in ((DOWN, "A"), (UP, "B")):
            if place.startswith(PREFIX) and place.endswith(ending):
                path = place.removeprefix(PREFIX).removesuffix(ending)
                pairs.setdefault(path, {})[letter] = tensor.clone()  # in a file they lie as it comes
    return pairs


def _replace(backbone: Backbone, state: Mapping[str, Tensor], scale: float, folder: Path) -> dict[str, nn.Linear]:
    """Put the factors in and return the linears that were there."""
    made: dict[str, FactoredLinear] = {}
    linears: dict[str, Any] = {}
    for path, pair in unpack_factors(state).items():
        try:
            linears[path] = linear = backbone.get_submodule(path)
            fits = pair["A"].shape == (len(pair["A"]), linear.in_features) and pair["B"].shape == (
                linear.out_features,
                len(pair["A"]),
            )
        except (AttributeError, KeyError):
            fits = False
        if not fits:
            raise ArtefactError(f"'{folder}': the factors of '{path}' do not fit '{backbone.name}': save it anew.")
        made[path] = FactoredLinear(linear, pair["A"], pair["B"], scale)
    for path, linear in made.items():
        backbone.set_submodule(path, linear)
    return linears
