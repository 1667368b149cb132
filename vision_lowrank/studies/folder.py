"""A run's folder: which run it belongs to, and that one process at a time works in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from ..config import RunConfig, to_tree, to_yaml
from ..engine.checkpoint import CheckpointStore
from ..engine.runtime import Runtime
from ..engine.settings import FREE_SETTINGS
from ..errors import UserError
from ..files import write_text
from ..lock import locked

# What a seed's folder holds before anything was trained.
BEFORE_TRAINING = ("baseline.json", "metrics.jsonl")


def run_folder(config: RunConfig) -> Path:
    """Return where the results of `config` go, unless they go on elsewhere."""
    return Path(config.out).expanduser() / config.name


@contextmanager
def opened(folder: Path, config: RunConfig) -> Iterator[None]:
    """Hold the folder for one run of one or several processes, of which the first one locks it.

    Raises:
        UserError: as :func:`open_run`, in every process; or another process works in the folder.
    """
    runtime, refused = Runtime(), None
    with ExitStack() as stack:
        if runtime.is_main:
            try:
                stack.enter_context(locked(folder))
                open_run(folder, config)
            except OSError as error:
                refused = str(_unwritable(folder, error))
            except UserError as error:
                refused = str(error)
        refused = runtime.gather(refused)[0]
        if refused is not None:
            raise UserError(refused)
        yield


def open_run(folder: Path, config: RunConfig) -> None:
    """Create the run folder, or check that it belongs to this config.

    What a run leaves that was refused, or stopped before its first checkpoint, is replaced by that of another config.

    Raises:
        UserError: something was trained there with another config, or the folder cannot be written.
    """
    path = folder / "config.yaml"
    try:
        own, other = _deciding(to_tree(config)), _deciding_of(path)
        if other is not None and other != own:
            if _has_begun(folder):
                raise UserError(
                    f"{folder}: holds a run of another config, and a run goes on only as it began, since its learning "
                    "rates follow from its settings: choose another `name=…`, or remove the folder "
                    f"(differs in {_first_difference(other, own)})."
                )
            _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, to_yaml(config))
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written ({error.strerror}): choose another `out=…`.")


def _deciding(tree: dict[str, Any]) -> str:
    """Write what decides the results of a run: neither where they go nor how fast they come."""
    engine = {key: value for key, value in tree.get("engine", {}).items() if key not in FREE_SETTINGS}
    others = {key: value for key, value in tree.items() if key not in ("name", "out", "engine")}
    return yaml.safe_dump(others | {"engine": engine}, sort_keys=False, allow_unicode=True)


def _deciding_of(path: Path) -> str | None:
    """Read the same of a run that is there; None where there is none. What is no config is another run's."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        return _deciding(yaml.safe_load(text))
    except (yaml.YAMLError, AttributeError):
        return text


def _has_begun(folder: Path) -> bool:
    """Tell whether something of a run is there that another run must not take for its own."""
    seeds = [seed for seed in folder.glob("seed-*") if seed.is_dir()]
    done = any((each / "result.json").exists() for each in (folder, *seeds))
    return done or any(len(CheckpointStore(seed / "checkpoints")) for seed in seeds)


def _clear(folder: Path) -> None:
    """Remove what was written before anything was trained."""
    for seed in folder.glob("seed-*"):
        for name in BEFORE_TRAINING:
            (seed / name).unlink(missing_ok=True)
        shutil.rmtree(seed / "tensorboard", ignore_errors=True)


def _first_difference(old: str, new: str) -> str:
    pairs: Sequence[tuple[str, str]] = [
        (a, b) for a, b in zip(old.splitlines(), new.splitlines(), strict=False) if a != b
    ]
    return f"'{pairs[0][0].strip()}' there, '{pairs[0][1].strip()}' here" if pairs else "its length"
