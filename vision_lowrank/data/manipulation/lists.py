"""The protocols of IMDL-BenCo: which published data sets train and which test, and where they are on a disk.

* ``mvss``: train on CASIAv2, test on CASIAv1, Columbia, Coverage, NIST16 and IMD2020.
* ``cat``, the toolkit's variant with seven sets: train on CASIAv2, FantasticReality, IMD2020 and the four parts of
  tampCOCO, 1840 draws of each per epoch (12,880). Its documentation also describes nine sets of 1800 draws (16,200)
  with compRAISE, and the original CAT-Net has more real sets. Test on CASIAv1, Columbia, Coverage and NIST16: IMD2020
  was trained on.

A set is a folder ``Tp``/``Gt`` or a JSON file below the root, or in a folder of its name; capitals and punctuation do
not matter, ``IMD_20_1024`` is ``imd201024``. Nothing is ever downloaded: a message names the home page.

The toolkit chooses the best checkpoint on the test sets; here `val_share` of the training pictures validates. Which of
them share an original is not published, so pictures of one original may be on both sides unless `source_pattern` tells.

Source: IMDL-BenCo (arXiv 2406.10580); MVSS-Net and CAT-Net for the lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ...config.marks import FileOrFolder, Folder
from ...config.schema import Section
from ...errors import DataError
from ...registry import register
from .base import ManipulationSet, ManipulationSplits
from .imdl import DRAWS, is_balanced, read_balanced, read_imdl
from .joined import join
from .splits import carve

CASIA = "https://github.com/namtpham/casia{}groundtruth (masks; the corrected ones for CASIAv2)"
CAT_NET = "https://github.com/mjkwon2021/CAT-Net"


@dataclass(frozen=True)
class PublishedSet:
    """A published data set.

    Attributes:
        name: as papers write it.
        aliases: names of its folder or JSON file on users' disks, lower case without punctuation.
        home: its page.
    """

    name: str
    aliases: tuple[str, ...]
    home: str


SETS = {
    each.name: each
    for each in (
        PublishedSet("CASIAv1", ("casiav1", "casia1", "casia10", "casiav1plus"), CASIA.format(1)),
        PublishedSet("CASIAv2", ("casiav2", "casia2", "casia20", "casia20revised"), CASIA.format(2)),
        PublishedSet(
            "Columbia", ("columbia", "columbiacolor"), "https://www.ee.columbia.edu/ln/dvmm/downloads/authsplcuncmp/"
        ),
        PublishedSet("Coverage", ("coverage", "coveragecorrected"), "https://github.com/wenbihan/coverage"),
        PublishedSet("NIST16", ("nist16", "nist161024", "nist2016", "nc16"), "https://mfc.nist.gov (registration)"),
        PublishedSet(
            "IMD2020", ("imd2020", "imd20", "imd201024", "imd20201024"), "http://staff.utia.cas.cz/novozada/db/"
        ),
        PublishedSet("FantasticReality", ("fantasticreality", "fantasticrealityv1", "fantasticreality1024"), CAT_NET),
        PublishedSet("tampCOCO-sp", ("tampcocosp", "spcocolist", "spcoco"), CAT_NET),
        PublishedSet("tampCOCO-cm", ("tampcococm", "cmcocolist", "cmcoco"), CAT_NET),
        PublishedSet("tampCOCO-bcm", ("tampcocobcm", "bcmcocolist", "bcmcoco"), CAT_NET),
        PublishedSet("tampCOCO-bcmc", ("tampcocobcmc", "bcmccocolist", "bcmccoco"), CAT_NET),
    )
}


@dataclass(frozen=True)
class Protocol:
    """What trains and what tests.

    Attributes:
        train: names in ``SETS``.
        tests: names in ``SETS``.
        balanced: an epoch has equal draws of every training set.
    """

    train: tuple[str, ...]
    tests: tuple[str, ...]
    balanced: bool


PROTOCOLS = {
    "mvss": Protocol(("CASIAv2",), ("CASIAv1", "Columbia", "Coverage", "NIST16", "IMD2020"), False),
    "cat": Protocol(
        ("CASIAv2", "FantasticReality", "IMD2020", "tampCOCO-sp", "tampCOCO-cm", "tampCOCO-bcm", "tampCOCO-bcmc"),
        ("CASIAv1", "Columbia", "Coverage", "NIST16"),
        True,
    ),
}


class ImdlConfig(Section):
    """Options of ``data: {type: imdl}``."""

    type: Literal["imdl"] = "imdl"
    protocol: Literal["mvss", "cat", "custom"] = Field("custom", description="whose lists; custom = `train`, `tests`")
    root: Folder | None = Field(None, description="mvss and cat: folder that holds the data sets' folders")
    train: tuple[FileOrFolder, ...] = Field(
        (), description="custom: folders with Tp and Gt, JSON lists of pairs, or one BalancedDataset JSON"
    )
    tests: dict[str, FileOrFolder] = Field(
        {}, description="custom: name -> folder or JSON list; otherwise added to the protocol's"
    )
    draws: int | None = Field(
        DRAWS, ge=1, description="several training sets: draws of each per epoch; null = every picture once"
    )
    val_share: float = Field(0.1, ge=0, le=0.5, description="share of the training pictures that validates")
    check_masks: bool = Field(True, description="read all masks first: a black one is a real picture; false = trust")
    source_pattern: str | None = Field(
        None, description="regular expression with one group: what twins share in their paths; they stay together"
    )

    @model_validator(mode="after")
    def _complete(self) -> ImdlConfig:
        if self.protocol == "custom" and not (self.train and self.tests):
            raise ValueError("protocol custom needs `train` and `tests`; mvss and cat find theirs in `root`")
        if self.protocol != "custom" and (self.root is None or self.train):
            raise ValueError(f"protocol {self.protocol} needs `root` and no `train`: its lists say what trains")
        try:
            groups = re.compile(self.source_pattern or "()").groups
        except re.error as error:
            raise ValueError(f"source_pattern is no regular expression: {error}") from None
        if groups != 1:
            raise ValueError("source_pattern needs exactly one group, such as (\\d+)t?\\.tif")
        return self


@register(
    "data",
    "imdl",
    summary="IMDL-BenCo's data sets and the protocols MVSS and CAT",
    paper="arXiv 2406.10580",
    config=ImdlConfig,
    gives="edits",
)
def imdl(config: ImdlConfig) -> ManipulationSplits:
    """Read train, val and test sets of a protocol; several training sets are a :class:`~.joined.JoinedSet`.

    Raises:
        DataError: a set is missing (names its home page), wrong, or trains and tests at once.
    """
    train = {Path(path).stem: Path(path).expanduser() for path in config.train}
    if len(train) < len(config.train):
        raise DataError("two of data.train have one name: rename one's folder.")
    tests, balanced = {}, True
    if config.protocol != "custom":
        protocol = PROTOCOLS[config.protocol]
        places = locate(Path(str(config.root)).expanduser(), (*protocol.train, *protocol.tests))
        train = {name: places[name] for name in protocol.train}
        tests, balanced = {name: places[name] for name in protocol.tests}, protocol.balanced
    twice = sorted(tests.keys() & config.tests.keys())
    if twice:
        raise DataError(
            f"data.tests names '{twice[0]}', a test set of protocol {config.protocol} itself: rename yours."
        )
    tests |= {name: Path(path).expanduser() for name, path in config.tests.items()}
    shared = {path.resolve() for path in train.values()} & {path.resolve() for path in tests.values()}
    if shared:
        raise DataError(f"'{min(shared)}' trains and tests at once: choose one.")
    read = partial(read_imdl, check_masks=config.check_masks, source_pattern=config.source_pattern)
    images = _training(train, config, config.draws if balanced else None, read)
    learned, val = carve(images, config.val_share) if config.val_share else (images, images.subset([], "val"))
    return ManipulationSplits(learned, val, {name: read(path, name) for name, path in tests.items()})


def _training(
    places: dict[str, Path], config: ImdlConfig, draws: int | None, read: Callable[[Path, str], ManipulationSet]
) -> ManipulationSet:
    if len(places) == 1 and is_balanced(next(iter(places.values()))):
        joined = read_balanced(next(iter(places.values())), DRAWS, config.check_masks, config.source_pattern)
        return replace(joined, draws=draws)
    sets = [read(path, name) for name, path in places.items()]
    return sets[0] if len(sets) == 1 else join("train", sets, draws)


def locate(root: Path, names: Iterable[str]) -> dict[str, Path]:
    """Find where each data set is: a folder that holds ``Tp``, or a JSON file.

    Raises:
        DataError: the root or a set is missing, or a set is there twice; names every missing one with its home page.
    """
    if not root.is_dir():
        raise DataError(f"folder '{root}' does not exist: give the folder that holds the data sets' folders.")
    places: dict[str, list[Path]] = {}
    for path in _candidates(root):
        name = path.stem if path.is_file() else path.name
        places.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), []).append(path)
    found, absent = {}, []
    for name in names:
        each = SETS[name]
        hits = [path for alias in each.aliases for path in places.get(alias, [])]
        if len(hits) > 1:
            shown = " and ".join(f"'{path}'" for path in hits[:2])
            raise DataError(f"{name} is in '{root}' twice, {shown}: keep one, or name the sets with protocol 'custom'.")
        if hits:
            found[name] = hits[0]
        else:
            absent.append(f"{name}: {each.home}")
    if absent:
        raise DataError(
            f"'{root}' lacks {len(absent)} data sets of the protocol (a folder with Tp and Gt, or a JSON list, of that "
            f"name). They are never downloaded; get {'; '.join(absent)}."
        )
    return found


def _candidates(root: Path) -> Iterator[Path]:
    """Yield folders with ``Tp`` and JSON files in `root` and one level below."""
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            if (path / "Tp").is_dir():
                yield path
            else:
                yield from sorted(path.glob("*.json"))
        elif path.suffix.lower() == ".json":
            yield path
