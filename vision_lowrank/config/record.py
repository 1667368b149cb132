"""What a result must carry to be understood later: versions, git revision, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "open_clip_torch", "peft", "accelerate", "transformers", "numpy")


def environment() -> dict[str, Any]:
    """Return package versions, git revision, Python, system, processor and time (UTC), as plain JSON types."""
    from ..version import __version__

    return {
        "vision_lowrank": __version__,
        "git": git_revision(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def git_revision() -> str | None:
    """Return the revision of this package's checkout, with ``+changes`` if it has any; None outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        revision = _git(folder, "rev-parse", "--short=12", "HEAD")
        return revision + ("+changes" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    looking = ["git", "--no-optional-locks", "-C", str(folder)]  # a look that is killed leaves no lock behind
    done = subprocess.run([*looking, *arguments], capture_output=True, encoding="utf-8", check=True)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
