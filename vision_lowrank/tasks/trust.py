"""What an artefact may ask for without being trusted: it is data of somebody else, and chooses no file and no size.

An artefact names its base, and ``load_backbone`` would open whatever file stands there and build a model of any size.
So, unless the user says ``--trust`` (``trust=True``), and before anything is built:

* no part of the base's name, weights or options is a path or an address: library tags and names only;
* sides of pictures are at most :data:`MAX_SIDE` pixels, other sizes at most :data:`MAX_OPTION`;
* the base has no more parameters than the artefact's tensors make likely. A random base lies in the artefact, so it
  has those of its file. Of any other base, D is the largest side of a saved tensor, hence at least about the width of
  what was adapted: a transformer of that width has some 12 D² parameters a block and D for each word it knows.

Parameters are counted while the model is built on torch's device ``meta``, which allocates nothing, and the building
ends at the first one too many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ..attachment.record import BASE, COPY
from ..backbones.load import load_backbone
from ..backbones.weights import PRETRAINED, RANDOM
from ..config.marks import MAX_SIDE, WEIGHTS
from ..errors import ArtefactError
from ..json_files import read_header

MAX_OPTION = 10**6
LEAST_WIDTH = 64  # a base is allowed the size that goes with this width, whatever was saved
REMEDY = "give --trust (trust=True) if you know where the artefact comes from"
_HUB = re.compile(r"\w[\w.\-]*(/\w[\w.\-]*)?")  # the names of Hugging Face's hub, which are no paths


def check_trust(folder: Path, about: Mapping[str, Any], *, build: bool = True) -> None:
    """Refuse an artefact that chooses a file to open or a size to allocate.

    Args:
        folder: the artefact.
        about: its ``artefact.json``, checked.
        build: its base will be loaded; where the user gave one, only sizes of pictures are left to choose.

    Raises:
        ArtefactError: what it asks for, and the remedy.
    """
    _check_sizes(folder, about)
    if not build:
        return
    spec = about["backbone"]
    _check_texts(folder, spec)
    if ":" in spec["name"]:  # a model that ships with the package has the size it has
        _check_parameters(folder, spec, _allowed(folder, spec))


def _check_texts(folder: Path, spec: Mapping[str, Any]) -> None:
    family, _, arch = spec["name"].partition(":")
    if family == "hf" and (not _HUB.fullmatch(arch) or Path(arch).exists()):
        raise ArtefactError(f"{folder}: its base is '{spec['name']:.200}', which is a place on this disk: {REMEDY}.")
    for key, value in spec.items():
        for text in _values(value, str) if key != "name" else ():
            if key == "weights" and text in (RANDOM, PRETRAINED):
                continue
            if "/" in text or "\\" in text or text.startswith("~") or text.endswith(WEIGHTS) or _exists(text):
                raise ArtefactError(f"{folder}: its base asks to open '{text:.200}' ({key}): {REMEDY}.")


def _check_sizes(folder: Path, about: Mapping[str, Any]) -> None:
    sides = {
        "backbone.image_size": about["backbone"].get("image_size"),
        "preprocess.size": (about["preprocess"] or {}).get("size"),
        "framing.size": (about.get("framing") or {}).get("size"),
    }
    for key, side in sides.items():
        if side is not None and side > MAX_SIDE:
            raise ArtefactError(f"{folder}: {key} = {side} is more than {MAX_SIDE} pixels: {REMEDY}.")
    for number in _values(about["backbone"], int):
        if abs(number) > MAX_OPTION:
            raise ArtefactError(f"{folder}: its base asks for a size of {number:.3g}: {REMEDY}.")


def _allowed(folder: Path, spec: Mapping[str, Any]) -> int:
    """Return the most parameters that the base may have, from the headers of the artefact's tensor files."""
    files = sorted(folder.rglob("*.safetensors"))
    shapes = {path: [tuple(shape) for shape in read_header(path).values()] for path in files}
    if spec["weights"] == RANDOM:
        if folder / BASE not in shapes:
            raise ArtefactError(f"'{folder / BASE}' is missing: what it belongs to is incomplete; {COPY}.")
        return 2 * sum(prod(shape) for shape in shapes[folder / BASE])  # shared parameters count where they are used
    widths = (max(shape, default=1) for path in files for shape in shapes[path])
    width = max([LEAST_WIDTH, *widths])
    return 4096 * width**2 + 300_000 * width


def _check_parameters(folder: Path, spec: Mapping[str, Any], allowed: int) -> None:
    arguments = {**spec, "weights": RANDOM}
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _counting(allowed):
            load_backbone(**arguments)
    except _TooLarge:
        raise ArtefactError(
            f"{folder}: its base '{spec['name']:.200}' has more than {allowed:,} parameters, far more than belong to "
            f"the tensors in the artefact: {REMEDY}."
        ) from None
    except Exception:  # whatever is wrong with it is said when it is built in earnest
        return


class _TooLarge(BaseException):
    """More parameters than allowed; no error, so that nothing on the way takes it for one."""


@contextmanager
def _counting(allowed: int) -> Iterator[None]:
    """Raise :class:`_TooLarge` inside the block once modules have more than `allowed` numbers in their tensors."""
    count = 0

    def add(module: nn.Module, name: str, tensor: Any) -> None:
        nonlocal count
        count += tensor.numel() if tensor is not None else 0
        if count > allowed:
            raise _TooLarge

    hooks = (
        torch_module.register_module_parameter_registration_hook(add),
        torch_module.register_module_buffer_registration_hook(add),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _values(value: Any, kind: type) -> Iterator[Any]:
    """Yield all texts, or all numbers, in plain JSON values."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _values(each, kind)
    elif isinstance(value, list):
        for each in value:
            yield from _values(each, kind)
    elif isinstance(value, kind) and not isinstance(value, bool):
        yield value


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False
