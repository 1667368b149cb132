"""New classes for a saved classifier, from a handful of pictures, without training; and taken back again.

With features h (d) of the new pictures, as the image tower gives them, a class c with the pictures P_c gets the row

* prototype heads: mean of h over P_c, a class mean as CoACT's (arXiv 2405.16625);
* cosine head: mean of h / |h| over P_c, weight imprinting (arXiv 1712.07136);
* text head: none, its name in the artefact's prompts is the classifier, and the pictures only check it.

The rows of the old classes stay as they are, bit for bit. What the new ones take from them is counted on reference
features (:mod:`.growth`, :mod:`.reference`). Additions only append, to the classes and ``history`` in
``artefact.json``, to the head's rows and to the reference features, so undoing the last one cuts off its part. The
three files change together (:mod:`.renewal`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ...attachment.folder import read_tensors
from ...data.base import ImageSet
from ...data.folder import read_tree
from ...data.options import class_name
from ...errors import ArtefactError, DataError, UserError
from ..about import ARTEFACT
from ..saved import save_parts, write_about
from .classifier import HEAD, ImageClassifier
from .growth import Growth, averaged, new_classes, old_classes
from .heads import PROTOTYPES, make_head
from .reference import FILE as REFERENCE
from .reference import load_reference, picture_features, reference_of
from .renewal import renewed

GROWS = (*PROTOTYPES, "cosine", "text")


def add_classes(
    folder: Path,
    pictures: Path,
    *,
    min_pictures: int = 1,
    batch_size: int = 64,
    dry_run: bool = False,
    show: Callable[[range], Iterable[int]] = iter,
    trust: bool = False,
) -> Growth:
    """Add the classes in `pictures` to an artefact.

    Args:
        folder: the artefact; untouched on any error.
        pictures: one folder of pictures per new class.
        min_pictures: refuse classes with fewer.
        batch_size: pictures per pass of the model.
        dry_run: only report.
        show: gives the starts of the batches back one by one, perhaps with a progress bar.
        trust: as for ``load_model``.

    Raises:
        ArtefactError: no artefact, damaged, or changed by somebody else meanwhile.
        DataError: a picture is broken, a class has too few, or is known already.
        UserError: a head that cannot grow without training, or the artefact cannot be written.
    """
    folder, pictures = Path(folder), Path(pictures)
    about = _read(folder)
    _check_head(folder, about["head"])
    images = read_tree(pictures)
    for note in images.notes:
        warnings.warn(note, stacklevel=2)
    _check_names(images.classes, about["classes"], folder)
    _check_numbers(images, pictures, min_pictures)

    classifier, before = ImageClassifier.load(folder, trust=trust), len(about["classes"])
    reference = load_reference(folder, about, before, classifier.backbone.embed_dim)
    features = picture_features(classifier.backbone, images, batch_size, show)
    labels = torch.tensor(images.labels) + before
    classes = [*about["classes"], *images.classes]
    head = _grown(classifier, classes, features, labels)
    growth = Growth(
        head=about["head"],
        classes_before=before,
        new=new_classes(classifier.backbone, head, classes[before:], features, labels, before),
        old=old_classes(classifier.backbone, head, classes, before, reference),
    )
    if not dry_run:
        entry = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "classes": list(images.classes),
            "pictures": len(images),
            "hash": images.hash,
        }
        if reference is not None:
            features, labels = torch.cat([reference[0], features]), torch.cat([reference[1], labels])
        grown = about | {"classes": classes, "history": [*about.get("history", []), entry]}
        _write(folder, about, grown, head.state_dict(), (features, labels))
    return growth


def undo(folder: Path, *, dry_run: bool = False) -> tuple[str, ...]:
    """Take the last addition back: classes, rows and reference features are what they were before it.

    Args:
        folder: the artefact; untouched on any error.
        dry_run: only say which classes.

    Returns:
        The classes taken back.

    Raises:
        ArtefactError: no artefact, or damaged.
        UserError: there is nothing to undo, or the artefact cannot be written.
    """
    folder = Path(folder)
    about = _read(folder)
    classes, history = about["classes"], about.get("history", [])
    if not history:
        raise UserError(f"{folder}: there is nothing to undo: no classes were added after its training.")
    names = history[-1]["classes"]
    before = len(classes) - len(names)
    if classes[before:] != names:
        raise ArtefactError(f"{folder / ARTEFACT}: its history does not fit its classes: the artefact is damaged.")
    rows = {} if about["head"] == "text" else _read_rows(folder, about)
    reference = load_reference(folder, about, len(classes))
    if not dry_run:
        if reference is not None:
            old = reference[1] < before
            reference = (reference[0][old], reference[1][old])
        shrunk = {key: value for key, value in about.items() if key != "history"} | {"classes": classes[:before]}
        if history[:-1]:
            shrunk["history"] = history[:-1]
        _write(folder, about, shrunk, {name: row[:before] for name, row in rows.items()}, reference)
    return tuple(names)


# --- reading and refusing ------------------------------------------------------------------------------------------


def _read(folder: Path) -> dict[str, Any]:
    return ImageClassifier.read(folder)


def _check_head(folder: Path, head: str) -> None:
    if head not in GROWS:
        raise UserError(
            f"{folder}: its head is '{head}', whose layer must be trained on all classes together: train with them, "
            f"or use task.head=cosine, whose classes are class means."
        )


def _check_names(new: Sequence[str], old: Sequence[str], folder: Path) -> None:
    """Refuse names that are the same but for case, underscores and spaces."""
    known = {class_name(name).casefold(): f"{folder} has '{name}' already" for name in old}
    for name in new:
        key = class_name(name).casefold()
        if key in known:
            raise DataError(f"class '{name}': {known[key]}: rename or remove its folder.")
        known[key] = f"'{name}' is the same but for its case"


def _check_numbers(images: ImageSet, root: Path, least: int) -> None:
    for name, own in zip(images.classes, images.by_class(), strict=True):
        if len(own) < least:
            raise DataError(
                f"class '{name}' in '{root}' has too few pictures, {len(own)} instead of {least}: "
                "add some, or lower --min-pictures."
            )


def _read_rows(folder: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the head's tensors, each with one row per class."""
    rows, classes = read_tensors(folder / HEAD, about["tensors"].get(HEAD)), len(about["classes"])
    if any(tensor.ndim == 0 or len(tensor) != classes for tensor in rows.values()):
        raise ArtefactError(f"{folder / HEAD}: does not have {classes} rows, as artefact.json says: get a fresh copy.")
    return rows


# --- features and rows ---------------------------------------------------------------------------------------------


@torch.no_grad()
def _grown(classifier: ImageClassifier, classes: Sequence[str], features: Tensor, labels: Tensor) -> nn.Module:
    """Make the head of all `classes`; `labels` (N,) say which new one each of `features` (N, d) belongs to."""
    head = make_head(classifier.head_name, classifier.backbone, classes, classifier.templates)
    if classifier.head_name == "text":
        head.refresh(classifier.backbone)
        return head
    state, vectors = classifier.head.state_dict(), averaged(head, features)
    means = torch.stack([vectors[labels == c].mean(dim=0) for c in labels.unique()])
    state["prototypes"] = torch.cat([state["prototypes"], means.to(state["prototypes"])])
    if "seen" in state:
        state["seen"] = torch.cat([state["seen"], torch.ones(len(means), dtype=torch.bool)])
    head.load_state_dict(state)
    return head


# --- writing -------------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    read: Mapping[str, Any],
    about: Mapping[str, Any],
    rows: Mapping[str, Tensor],
    reference: tuple[Tensor, Tensor] | None,
) -> None:
    """Replace the three files; `read` is what ``artefact.json`` held when `about` was made from it."""
    try:
        with renewed(folder, without=(ARTEFACT, HEAD, REFERENCE)) as new:
            kept = reference_of(*reference) if reference is not None and len(reference[1]) else {}
            others = {name: digest for name, digest in about["tensors"].items() if name not in (HEAD, REFERENCE)}
            hashes = others | save_parts(new, {HEAD: rows, REFERENCE: kept})
            write_about(new, {**about, "tensors": hashes})
            if ImageClassifier.read(folder)["classes"] != read["classes"]:
                raise ArtefactError(f"{folder}: somebody else changed its classes meanwhile: run the command again.")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder}: cannot be written ({reason}); it is as it was.") from None
