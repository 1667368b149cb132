"""Saved models of all tasks: what each can do, and the folder it is loaded from.

A saved model is an :class:`AdaptedModel`: a backbone, perhaps an adapter, perhaps a head. Its task registers it as a
``model`` part under the name that stands as ``task`` in its ``artefact.json``; :func:`load_model` chooses by that. An
artefact is a folder::

    artefact.json       the task, base model and its fingerprint, preprocessing, what the task adds, the run's record
    adapter/            PEFT's adapter folder (absent without an adapter)
    base.safetensors    the base's tensors that were trained themselves, or all of a random base (else absent)

and what the task saves beside them. Every tensor file but the adapter's own is in ``artefact.json`` with its SHA-256.
It holds all that prediction needs but the pretrained base weights, and refuses any other base. The folder of an
adapter alone, as ``vl.save`` writes it, loads as a model without a head.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ..attachment.factored import has_factors, load_factored
from ..attachment.folder import checksum, read_tensors
from ..attachment.record import BASE, COPY
from ..attention.split import renew_identity
from ..backbones.adapted import adapted, backbone_of, plain_copy, random_base
from ..backbones.base import Backbone
from ..backbones.load import load_backbone
from ..data.images import PIXELS, batches, pixel_count, read_image, to_rgb
from ..data.transforms import Preprocess
from ..errors import ArtefactError, UserError, near_miss
from ..files import replaced, write_text
from ..json_files import finite
from ..registry import register, registry
from .about import ARTEFACT, About, read_about
from .trust import check_trust

if TYPE_CHECKING:
    from ..config.schema import RunConfig
    from ..engine.task import Task


class Row(Protocol):
    """What a saved model says of one input."""

    def to_row(self) -> dict[str, Any]:
        """Return plain values for JSON; those that are no lists are the columns of a CSV file."""
        ...

    def to_cells(self) -> dict[str, str]:
        """Return column -> text, for a table that people read."""
        ...


@register("model", "adapter", summary="an adapter alone, as vl.save writes it: to inspect and to export")
class AdaptedModel(nn.Module):
    """A backbone, attached or not, that can be saved with what trained, and used. Subclasses add a head.

    Attributes:
        task: what ``artefact.json`` and the registry call this kind of model.
        about_model: the type of what ``artefact.json`` says.
        takes: what it can be given: ``pictures``.
        exports: formats that it can be written in.
        export_limits: format -> why it cannot be written in that one, where people would ask.
        backbone: attached or not.
        fingerprint: of the base weights, before any of them trained.
        trained_base: names, inside the backbone, of the base's tensors that were trained themselves.
        record: config, versions and metrics of the run that made it; empty where none did.
    """

    task: ClassVar[str] = "adapter"
    about_model: ClassVar[type[About]] = About
    takes: ClassVar[tuple[str, ...]] = ("pictures",)
    exports: ClassVar[tuple[str, ...]] = ("lora", "diffusers", "kohya", "merged")
    export_limits: ClassVar[Mapping[str, str]] = {}

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model
        self.fingerprint, self.trained_base = model.fingerprint, set[str]()
        self.record: Mapping[str, Any] = {}

    # --- use ---------------------------------------------------------------------------------------------------------

    def predict(self, inputs: Sequence[str | Path | Image.Image], batch_size: int = 64, **options: Any) -> list[Row]:
        """Return what the model says of each input, in order.

        Args:
            inputs: pictures, as files or as PIL has them.
            batch_size: most inputs per pass; huge pictures come in smaller ones.
            options: those of the kind of model, see its ``predict_batch``.

        Raises:
            DataError: a file is no readable picture.
            UserError: an option that this kind of model does not have.
        """
        self.check_options(options)
        rows: list[Row] = []
        for given in batches(inputs, batch_size, _pixels, PIXELS):
            rows += self.predict_batch(
                [to_rgb(each) if isinstance(each, Image.Image) else read_image(each) for each in given], **options
            )
        return rows

    def predict_batch(self, images: Sequence[Image.Image]) -> list[Row]:
        """Return one row for each RGB picture, looked at together."""
        raise UserError(
            "this is an adapter alone, without a head: give an artefact folder, as `train` writes; "
            "`vision-lowrank export` writes it for other programs."
        )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise UserError where `options` of :meth:`predict` has one that this kind of model does not know."""
        known = list(inspect.signature(self.predict_batch).parameters)[1:]
        for name in options:
            if name not in known:
                raise UserError(f"a model for {self.task} predicts without '{name}'.{near_miss(name, known)}")

    def on(self, config: RunConfig) -> Task:
        """Return the task that evaluates this very model on the data that `config` names.

        Raises:
            UserError: the task that `config` names evaluates other models, or the data does not fit this one.
        """
        return registry.get("task", config.task.type).target.of_model(self, config)

    # --- files -------------------------------------------------------------------------------------------------------

    def note_training(self) -> None:
        """Remember which base parameters train now; what trains beside an adapter is in the adapter's own folder."""
        if not adapted(self.backbone):
            self.trained_base |= {name for name, p in self.backbone.named_parameters() if p.requires_grad}

    def save(self, folder: str | Path, record: Mapping[str, Any]) -> None:
        """Write the model; `record` is kept beside it (config, versions, metrics), where the folder has a place."""
        self._save_adapter(folder, random_base(self.backbone))

    @classmethod
    def load(
        cls, folder: str | Path, backbone: nn.Module | None = None, *, attach: bool = False, trust: bool = False
    ) -> AdaptedModel:
        """Read back what :meth:`save` wrote; arguments and errors are those of :func:`load_model`."""
        folder = Path(folder)
        return cls(restore_backbone(folder, cls.read(folder), backbone, attach=attach, trust=trust)).eval()

    @classmethod
    def read(cls, folder: Path) -> dict[str, Any]:
        """Read what the artefact in `folder` says of itself.

        Raises:
            ArtefactError: the file is missing or not valid, or belongs to a model of another kind.
        """
        about = read_about(folder)
        if about.get("task") != cls.task:
            alone = about.get("task") == AdaptedModel.task
            held = "an adapter alone, without a head" if alone else f"a model for {about.get('task')}"
            raise ArtefactError(
                f"{folder}: holds {held}, not a model for {cls.task}: `vision-lowrank inspect` says more of it."
            )
        return about if about["task"] == AdaptedModel.task else read_about(folder, cls.about_model)

    def restore(self, about: Mapping[str, Any]) -> None:
        """Take over what an artefact says of the training that made it."""
        self.fingerprint, self.trained_base = about["fingerprint"], set(about["trained_base"])
        self.record = about["record"]

    def save_model(
        self,
        folder: str | Path,
        about: Mapping[str, Any],
        record: Mapping[str, Any],
        parts: Mapping[str, Mapping[str, Tensor]] = {},
    ) -> None:
        """Write adapter, trained base weights, the task's tensors and ``artefact.json``.

        Args:
            folder: created where it is missing.
            about: what the task adds to ``artefact.json``.
            record: config, versions and metrics of the run, kept beside it.
            parts: file -> tensors, such as those of a head.

        Raises:
            UserError: it was loaded for prediction alone.
        """
        folder = Path(folder)
        has_adapter = adapted(self.backbone) or self.backbone.factored
        base = self._base_state()
        everything = {
            **about,
            "backbone": self.backbone.spec,
            "fingerprint": self.fingerprint,
            "preprocess": self.backbone.preprocess.to_dict(),
            "adapter": bool(has_adapter),
            "trained_base": sorted(self.trained_base),
            "record": dict(record),
        }
        with replaced(folder, ARTEFACT) as new:
            for path in new.glob("*.safetensors"):
                path.unlink()  # of what was saved here before
            if has_adapter:
                self._save_adapter(new / "adapter", {})
            write_about(new, everything | {"tensors": save_parts(new, {BASE: base} | dict(parts))})

    def _save_adapter(self, folder: Path, base: Mapping[str, Tensor]) -> None:
        """Write the adapter, with the tensors of a base that has no other place."""
        from ..attachment.store import save_adapter  # where an adapter is attached, PEFT has been imported

        if not adapted(self.backbone):
            raise UserError("the model was loaded for prediction: load it with attach=True to save it.")
        save_adapter(self.backbone, folder, base=base)

    def _base_state(self) -> dict[str, Tensor]:
        """Return the base's tensors that nobody can load elsewhere, by their names in a backbone of ``load_backbone``.

        They are those that were trained, and all of a base with random weights.
        """
        if not adapted(self.backbone) and self.backbone.factored:
            return {}  # it is refused before anything is written
        everything = random_base(self.backbone)
        if not self.trained_base:
            return everything
        plain = plain_copy(self.backbone)
        if adapted(self.backbone):
            plain.take_identity()
            self._belongs_to(plain.fingerprint)
        trained = {n: t.detach().cpu().contiguous() for n, t in plain.state_dict().items() if n in self.trained_base}
        return everything or trained

    def _belongs_to(self, weights: str) -> None:
        """Let the adapters say that they belong to a base of the fingerprint `weights`: the one trained beside them."""
        backbone_of(self.backbone).fingerprint = weights
        for name, place in self.backbone.attachments.items():
            self.backbone.attachments[name] = replace(place, fingerprint=weights)


def _pixels(picture: str | Path | Image.Image) -> int:
    return picture.width * picture.height if isinstance(picture, Image.Image) else pixel_count(Path(picture))


def load_model(
    folder: str | Path, backbone: nn.Module | None = None, *, attach: bool = False, trust: bool = False
) -> AdaptedModel:
    """Load a saved model of any task, in evaluation mode.

    Args:
        folder: an artefact, such as ``runs/NAME/seed-1/artefact``, or an adapter's folder.
        backbone: the base model, if it is loaded already; otherwise it is loaded by the name in the artefact.
        attach: attach the adapter with PEFT, so that it can be switched off, merged, exported and trained on. Without
            it an adapter that has factors is put into the linears, which is quicker and computes the same.
        trust: let the artefact choose which files are opened and how large its base is, see :mod:`.trust`.

    Raises:
        ArtefactError: not an artefact, damaged, made for another base model, or it asks for what needs trust.
    """
    folder = Path(folder).expanduser()
    task = read_about(folder)["task"]
    return registry.get("model", task).target.load(folder, backbone, attach=attach, trust=trust)


def restore_backbone(
    folder: Path, about: Mapping[str, Any], backbone: nn.Module | None, *, attach: bool, trust: bool
) -> nn.Module:
    """Return the backbone of an artefact with its adapter.

    Args:
        folder: the artefact.
        about: its ``artefact.json``.
        backbone: as for :func:`load_model`.
        attach: likewise.
        trust: likewise.

    Raises:
        ArtefactError: damaged, made for another base model, or it asks for what needs trust.
    """
    if not trust:
        check_trust(folder, about, build=backbone is None)
    with _fitting(folder, about["backbone"]):
        return _restored(folder, about, backbone, attach)


def _restored(folder: Path, about: Mapping[str, Any], backbone: nn.Module | None, attach: bool) -> nn.Module:
    """Do what :func:`restore_backbone` is for, with an artefact that may choose what it does."""
    backbone = backbone if backbone is not None else load_backbone(**about["backbone"])
    if isinstance(backbone, Backbone) and not backbone.factored:
        renew_identity(backbone)
    base = read_tensors(folder / BASE, about["tensors"][BASE]) if BASE in about["tensors"] else {}
    is_whole = base.keys() >= backbone.state_dict().keys()  # then nothing is left of whatever base there was
    if not is_whole and backbone.fingerprint != about["fingerprint"]:
        raise ArtefactError(
            f"{folder}: made for base weights {about['fingerprint']} ({about['backbone']['name']}), but "
            f"'{backbone.name}' has {backbone.fingerprint}: load the base it was trained on."
        )
    if isinstance(backbone, Backbone) and not is_whole:
        backbone.hold_identity()  # its adapter need not take it once more
    if about["preprocess"]:
        _use_preprocess(folder, backbone, Preprocess.from_dict(about["preprocess"]))
    if base:
        _put_base(base, backbone, folder / BASE)
    place = folder if about["task"] == AdaptedModel.task else folder / "adapter"
    return _with_adapter(place, backbone, attach) if about["adapter"] else backbone


@contextmanager
def _fitting(folder: Path, spec: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever a library says of options, sizes or values that do not go together into one line."""
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ArtefactError(f"{folder}: does not fit its base '{spec['name']:.200}' ({reason}); {COPY}.") from error


def _use_preprocess(folder: Path, backbone: nn.Module, preprocess: Preprocess) -> None:
    """Let the backbone see pictures as the artefact did; their side is the backbone's own."""
    if preprocess.size != backbone.preprocess.size:
        raise ArtefactError(
            f"{folder}: looks at pictures of {preprocess.size} pixels, and '{backbone.name}' takes "
            f"{backbone.preprocess.size}: load the base it was trained on."
        )
    backbone.preprocess = preprocess


def _with_adapter(folder: Path, backbone: nn.Module, attach: bool) -> nn.Module:
    """Load the adapter in `folder` into `backbone`: attached, or where not asked for, its factors in the linears."""
    if not attach and has_factors(folder):
        return load_factored(folder, backbone)
    from ..attachment.store import load  # PEFT, only where it is needed

    return load(folder, backbone)


def save_parts(folder: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Write file -> tensors as safetensors, but for those without any; return file -> SHA-256, for the record."""
    for name, state in parts.items():
        if state:
            save_file({key: tensor.detach().contiguous() for key, tensor in state.items()}, folder / name)
    return {name: checksum(state) for name, state in parts.items() if state}


def add_parts(folder: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write further tensor files into an artefact, and into its record."""
    about = read_about(folder)
    about["tensors"] |= save_parts(folder, parts)
    write_about(folder, about)


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``artefact.json``; a metric that is not finite is null there."""
    text = json.dumps(finite(about), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / ARTEFACT, text + "\n")


def load_part(module: nn.Module, path: Path, about: Mapping[str, Any], what: str) -> None:
    """Fill a head, or another part that a task saved, called `what` in messages; `about` is the artefact's record.

    Raises:
        ArtefactError: the file cannot be read, is not what was saved, or does not fit.
    """
    state = read_tensors(path, about["tensors"].get(path.name))
    own = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in state.items()}:
        raise ArtefactError(f"'{path}': its tensors are not those of the {what} that artefact.json describes; {COPY}.")
    module.load_state_dict(state)


def _put_base(state: Mapping[str, Tensor], backbone: nn.Module, path: Path) -> None:
    """Put trained tensors of the base into `backbone`, which has another fingerprint from then on."""
    own = backbone.state_dict(keep_vars=True)
    odd = sorted(name for name, tensor in state.items() if name not in own or own[name].shape != tensor.shape)
    if odd:
        raise ArtefactError(
            f"{path}: '{odd[0]}' does not fit '{backbone.name}': pass a backbone as load_backbone gives."
        )
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    backbone.take_identity()
