"""Which pictures the model looks at between stages, which of them belong together, and what training draws."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...data.manipulation.base import REAL, ManipulationSet
from ...data.manipulation.sampling import Draws, EqualDraws, Twins
from ...errors import UserError
from .config import ManipulationConfig

FOLDS = 5  # of the probe in the table of layers


def sample_evenly(pictures: ManipulationSet, most: int) -> ManipulationSet:
    """Choose at most so many pictures, evenly over the set, so that whole sources and all kinds of edits take part."""
    if len(pictures) <= most:
        return pictures
    sources = np.unique(pictures.sources.codes)
    share = np.linspace(0, len(sources) - 1, max(1, int(len(sources) * most / len(pictures)))).astype(int)
    return pictures.subset(np.flatnonzero(np.isin(pictures.sources.codes, sources[share]))[:most])


def twins_of(sources: Tensor, labels: Tensor) -> Tensor:
    """Find, for each row, the row of a picture of the same source with the other label; its own where there is none."""
    twins = torch.arange(len(sources))
    for source in sources.unique():
        rows = (sources == source).nonzero().flatten()
        real, edited = rows[labels[rows] == REAL], rows[labels[rows] != REAL]
        if len(real) and len(edited):
            twins[real[0]], twins[edited[0]] = edited[0], real[0]
    return twins


def drawn_twins(labels: Tensor, rows: int) -> Tensor:
    """Return the row of each picture's twin, (B,), in a batch of draws of `rows` pictures.

    A draw is a pair, or one picture that has no twin.
    """
    return torch.arange(len(labels), device=labels.device).view(-1, rows).flip(1).flatten()


def check_pictures(options: ManipulationConfig, val: ManipulationSet, draws: Draws) -> None:
    """Refuse pictures that stages A and B could not use, before anything was trained.

    Raises:
        UserError: no twins for contrasts of pairs, or too few photographs for the probe's folds.
    """
    if options.contrast and options.contrast.reading == "pair" and not isinstance(draws, Twins):
        raise UserError("task.contrast.reading=pair needs pictures with their own edits: take label, or add twins.")
    if options.layer == "lds":
        check_selection(sample_evenly(val, options.selection.pictures))


def check_selection(pictures: ManipulationSet) -> None:
    """Refuse pictures that layer selection could not use.

    Raises:
        UserError: they come from too few photographs for the probe's folds.
    """
    for name, own in (("real", pictures.labels == REAL), ("edited", pictures.labels != REAL)):
        if (found := len(np.unique(pictures.sources.codes[own]))) < FOLDS:
            raise UserError(
                f"task.layer=lds looks at validation pictures of {FOLDS} photographs or more, and '{pictures.name}' "
                f"has {name} ones of {found}: add some, better hundreds, or set task.layer to a number or to last."
            )


def share_of_reals(pictures: ManipulationSet, draws: Draws) -> float:
    """Compute real pictures over edited ones in a sample of training.

    Single pictures count as often as they are drawn.
    """
    if isinstance(draws, EqualDraws):
        parts, real = draws.images.parts, pictures.labels == REAL
        share = float(np.mean([real[parts == part].mean() for part in np.unique(parts)]))
        return share / max(1 - share, 1 / len(pictures))
    drawn = draws.draw(0, 0)
    labels = pictures.labels[list(drawn)] if len(drawn) > 1 else pictures.labels
    return float((labels == REAL).sum() / max(1, (labels != REAL).sum()))
