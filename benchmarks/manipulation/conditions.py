"""What all parts of the manipulation study share: data, recipes, the metrics that are kept, and how outputs are got."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from vision_lowrank.config import RunConfig, load_config
from vision_lowrank.data.manipulation.base import ManipulationSet, ManipulationSplits
from vision_lowrank.data.manipulation.robustness import Degradation
from vision_lowrank.engine.task import Outputs
from vision_lowrank.tasks.manipulation.building import load_manipulation
from vision_lowrank.tasks.manipulation.model import ManipulationModel
from vision_lowrank.tasks.manipulation.pictures import Annotations, Pictures

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs"
METHODS = ("manipshield", "no_contrast", "no_lds", "frozen", "full", "linear")
MAIN = "manipshield"
DATA = (
    "data.crops=2",
    "data.fractions=[0.8,0.1,0.1]",
)
TRIAL_DATA = ("data.crops=4", "data.per_photo=2")
TRIAL = ("engine.steps=2", "engine.warmup_steps=1", "engine.batch_size=2", "seeds=[1]")
SETS = ("seen", "unseen")
DETECTION = (
    "auc", "balanced_accuracy", "recall", "false_alarm_rate", "tpr_at_fpr_1", "tpr_at_fpr_5", "equal_mix/accuracy",
    "ece", "ece_before", "equal_mix/ece",
)  # fmt: skip
PIXELS = ("pixel_f1", "pixel_iou", "pixel_auc", "pixel_false_localisation", "pixel_false_area")
BOXES = (
    "box_ap50", "box_ap", "box_union_iou", "box_false_localisation",
    *(f"{box}/{name}" for box in ("constant_box", "full_box") for name in ("box_ap50", "box_union_iou")),
)  # fmt: skip
CUES = tuple(f"{before}{name}" for before in ("", "most_frequent/") for name in ("cue_micro_f1", "cue_macro_f1"))


@dataclass(frozen=True)
class Conditions:
    """What is compared under.

    Attributes:
        photos: folder of photographs, or ``builtin``.
        data: folder in which the edited photographs are made on first use.
        threads: of every training.
        trial: two steps, one seed and few pictures, to see that everything runs.
    """

    photos: str
    data: str
    threads: int = 1
    trial: bool = False

    @property
    def folder(self) -> Path:
        """Where runs and what was measured of them are kept."""
        return RUNS / ("manipulation_trial" if self.trial else "manipulation")

    @property
    def results(self) -> Path:
        """Where the study ends; a trial touches no committed file."""
        return self.folder / "results.json" if self.trial else HERE / "results.json"

    def config(self, method: str) -> RunConfig:
        """Load a method's recipe on the data of the study."""
        engine = (f"engine.threads={self.threads}", "engine.precision=bf16", "engine.tensorboard=false")
        given = [f"data.photos={self.photos}", f"data.folder={self.data}", *DATA, *engine]
        given += [*TRIAL_DATA, *TRIAL] if self.trial else []
        recipe = ROOT / "configs" / "manipulation" / f"edits_{method}.yaml"
        config = load_config(recipe, given)
        return load_config(recipe, [*given, "task.contrast.steps=2"]) if self.trial and config.task.contrast else config

    def splits(self) -> ManipulationSplits:
        """Load the edited photographs."""
        return load_manipulation(self.config(MAIN))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Make a parser of the options that every part has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="folder of photographs; needed, unless this is a trial")
    parser.add_argument("--data", help="where their edits are made on first use; default runs/data/edits_photographs")
    parser.add_argument("--threads", type=int, default=1, help="of every training; the same for all")
    parser.add_argument("--trial", action="store_true", help="two steps on built-in photographs; no committed file")
    return parser


def conditions(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Conditions:
    """Return what the options come to; stop with the parser's message where no photographs were named."""
    if not given.photos and not given.trial:
        parser.error("--photos FOLDER: name a folder of photographs, a thousand of about 224 pixels; or try --trial.")
    torch.set_num_threads(given.threads)
    name = "edits_trial" if given.trial else "edits_photographs"
    return Conditions(given.photos or "builtin", given.data or str(RUNS / "data" / name), given.threads, given.trial)


def command(script: str) -> str:
    """Return what was called, with no path but the script's."""
    pairs = zip(sys.argv, sys.argv[1:], strict=False)
    words = ["FOLDER" if before in ("--photos", "--data") else word for before, word in pairs]
    return " ".join(["python", script, *words])


def kept(metrics: Mapping[str, float], names: Iterable[str] = ()) -> dict[str, float]:
    """Return ``SET/METRIC`` -> value of the test sets as they are: detection, that of every editor, and `names`."""
    wanted = {*DETECTION, *names}
    short = {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")}
    parts = {name: name.partition("/") for name in short}
    return {
        name: short[name]
        for name, (place, _, metric) in parts.items()
        if place in SETS and (metric in wanted or metric.startswith("editor/"))
    }


def names_of(decoder: str) -> tuple[str, ...]:
    """Return which metrics beside detection a decoder has: a linear one finds no places and no cues."""
    return () if decoder == "linear" else (*PIXELS, *BOXES, *CUES)


@torch.inference_mode()
def outputs_of(
    detector: ManipulationModel, pictures: ManipulationSet, degradation: Degradation | None = None, batch: int = 64
) -> Outputs:
    """Compute what the detector says of every picture.

    It is as :func:`vision_lowrank.tasks.manipulation.scoring.score` takes it.
    """
    device, most = next(detector.decoder.parameters()).device, detector.frames.tokens
    annotations = Annotations(detector.frames, detector.cues, detector.decoder_options["boxes"])
    parts: list[Outputs] = []
    for rows in DataLoader(Pictures(pictures, annotations, degradation), batch_size=batch):
        decoded = detector({name: value.to(device) for name, value in rows.items()})._asdict()
        said = {name: value.cpu() for name, value in decoded.items() if value is not None}
        for name in said.keys() & {"tokens", "valid"}:
            said[name] = nn.functional.pad(said[name], (0, most - said[name].shape[1]))
        parts.append(said)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
