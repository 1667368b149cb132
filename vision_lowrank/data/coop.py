"""The data sets of few-shot CLIP papers, read from the folders that users of CoOp and CLIP-LoRA have.

Eleven data sets with CoOp's fixed splits (arXiv 2109.01134) and four variants of ImageNet that only have test pictures.
Pictures keep the order of the split file, so a seed gives the published few-shot selection. ImageNet has no validation
pictures: CoOp calls its test pictures by both names, here they are test pictures only, and what selects or tunes on
validation pictures takes those that CLIP-LoRA's sampler sets aside from train.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ..config.marks import Folder
from ..config.schema import Section
from ..errors import DataError
from ..registry import register
from .base import ImageSet, Splits
from .coop_download import fetch
from .coop_fewshot_cache import cached_draw
from .coop_layout import Place, locate, missing, read_listing
from .coop_sets import ENSEMBLE, CoopSet, coop_set
from .images import read_under
from .options import Templates

Name = Annotated[str, AfterValidator(lambda name: coop_set(name).key)]


class CoopConfig(Section):
    """Options of ``data: {type: coop}``."""

    type: Literal["coop"] = "coop"
    root: Folder = Field(description="folder that holds the data sets' folders, $DATA in CoOp's instructions")
    name: Name = Field(
        description="which data set: imagenet, caltech101, oxford_pets, … as `vision-lowrank data check`"
    )
    shots_cache: bool = Field(
        False, description="take CoOp's selection split_fewshot/shot_K-seed_S.pkl where it exists"
    )
    templates: Templates | Literal["ensemble"] | None = Field(
        None, description="prompt templates; null = the data set's own, `ensemble` = seven of ImageNet's"
    )
    download: bool = Field(False, description="let torchvision download missing pictures, where it can")


@register(
    "data", "coop", summary="the data sets of CoOp and CLIP-LoRA, and four variants of ImageNet",
    paper="arXiv 2109.01134", config=CoopConfig, gives="classes",
)  # fmt: skip
def coop(config: CoopConfig) -> Splits:
    """Load the published splits of one data set; one test set called ``test``.

    Raises:
        DataError: folder, pictures or split file are missing, or the split file is malformed.
    """
    spec, root = coop_set(config.name), Path(config.root).expanduser()
    if config.download:
        fetch(spec, root)
    templates = ENSEMBLE if config.templates == "ensemble" else config.templates
    return read_splits(spec, root, templates, config.shots_cache)


def read_splits(
    spec: CoopSet, root: Path, templates: tuple[str, ...] | None = None, shots_cache: bool = False
) -> Splits:
    """Read the splits of a data set below `root`.

    Args:
        spec: the data set.
        root: the folder of all data sets.
        templates: prompt templates instead of the data set's own.
        shots_cache: offer the few-shot selections on disk.

    Raises:
        DataError: as :func:`coop`.
    """
    place = locate(spec, root)
    lacking = missing(spec, root, place)
    if lacking or place is None:
        raise DataError("\n".join(lacking))
    listing = read_listing(spec, place)
    sets = {
        split: ImageSet(
            name=spec.key,
            classes=listing.classes,
            labels=tuple(picture.label for picture in pictures),
            keys=tuple(picture.key for picture in pictures),
            load=partial(read_under, place.images),
        )
        for split, pictures in listing.splits.items()
    }
    return Splits(
        train=sets["train"],
        val=sets["val"],
        tests={"test": sets["test"]},
        templates=templates or (spec.template,),
        val_from_train=spec.source == "imagenet",
        cached=partial(_cached, place, sets["train"], sets["val"]) if shots_cache else None,
    )


def _cached(
    place: Place, train: ImageSet, val: ImageSet, shots: int, seed: int
) -> tuple[ImageSet, ImageSet | None] | None:
    found = cached_draw(place.folder, train, val, shots, seed)
    if found is None:
        what = f"'{place.folder}' has no few-shot selection for {shots} shots and seed {seed}"
        warnings.warn(f"{what}: pictures are drawn anew.", stacklevel=2)
    return found
