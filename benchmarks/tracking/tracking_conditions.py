"""What all parts of the tracking study share: recipe, clips, folders, and the options that say them."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from vision_lowrank.config import RunConfig, load_config
from vision_lowrank.data.emoji_scenes import SceneClips, SceneSplits
from vision_lowrank.data.gives import read_data

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs"
RECIPE = ROOT / "configs" / "tracking" / "scenes_lora.yaml"
SEEDS = (1, 2, 3)
STEPS = 200
TRIAL = (
    "backbone.weights=random", "engine.steps=2", "engine.warmup_steps=1", "engine.batch_size=2", "seeds=[1]",
    "task.pairs=8", "data.test_clips=2", "data.frames=4",
)  # fmt: skip


@dataclass(frozen=True)
class Conditions:
    """What is compared under.

    Attributes:
        photographs: folders of photographs that scenes are drawn over; none = scikit-image's.
        steps: of every training.
        trial: a random base, two steps, one seed and two clips of four frames, to see that everything runs.
    """

    photographs: tuple[str, ...] = ()
    steps: int = STEPS
    trial: bool = False

    @property
    def folder(self) -> Path:
        """Where runs and result files are kept."""
        return RUNS / ("tracking_trial" if self.trial else "tracking")

    @property
    def results(self) -> Path:
        """Where the study ends; a trial touches no committed file."""
        return self.folder / "results.json" if self.trial else HERE / "results.json"

    @property
    def overrides(self) -> tuple[str, ...]:
        """What is changed in the recipe. Warmup keeps its share of the steps."""
        length = (f"engine.steps={self.steps}", f"engine.warmup_steps={self.steps // 20}", "engine.eval_every=0")
        folders = [str(Path(folder).expanduser().resolve()) for folder in self.photographs]
        data = (f"data.photographs={json.dumps(folders)}",) if folders else ()
        engine = ("engine.precision=bf16", "engine.tensorboard=false")  # half the time of fp32 where the CPU has bf16
        return (*length, *engine, f"seeds={list(SEEDS)}", *data, *(TRIAL if self.trial else ()))

    def config(self) -> RunConfig:
        """Load the recipe under these conditions."""
        return load_config(RECIPE, self.overrides)

    def splits(self) -> SceneSplits:
        """Return the clips."""
        return read_data(self.config().data, "clips")

    def about(self) -> dict[str, object]:
        """Return what is told of the conditions, with no folder's name."""
        config, splits = self.config(), self.splits()
        engine, test = config.engine, splits.tests["emoji_scenes"]
        sets = {"train": splits.train, "val": splits.val, "test": test}
        pools = {name: each.clips.pool for name, each in sets.items() if isinstance(each.clips, SceneClips)}
        return {
            "steps": engine.steps,
            "pairs": engine.steps * engine.batch_size,
            "precision": engine.precision,
            "photographs": {name: len(pool.photographs) for name, pool in pools.items()},
            "clips": len(test),
            "frames": len(test[0]),
            "test_hash": test.hash,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every part has."""
    parser.add_argument("--photographs", nargs="+", default=[], metavar="FOLDER", help="drawn over; scikit-image's")
    parser.add_argument("--steps", type=int, default=STEPS, help="of every training, 32 pairs each")
    parser.add_argument("--trial", action="store_true", help="two steps from a random base; no committed file")


def conditions(given: argparse.Namespace) -> Conditions:
    """Return what the options come to."""
    return Conditions(tuple(given.photographs), given.steps, given.trial)


def command(script: str, given: argparse.Namespace) -> str:
    """Return what was called, with no folder's name."""
    words = ["python", script]
    words += ["--photographs", *["FOLDER"] * len(given.photographs)] if given.photographs else []
    words += ["--steps", str(given.steps)] if given.steps != STEPS else []
    return " ".join([*words, *(["--trial"] if given.trial else [])])
