"""PEFT's own tests of custom models, run over the methods of this package.

    python benchmarks/peft_suite/run.py                        # fetches PEFT's source distribution
    python benchmarks/peft_suite/run.py --source peft-0.21.2   # it is unpacked there
    python benchmarks/peft_suite/run.py --only SORA            # one method; writes nothing

PEFT's wheel has no tests, its source distribution of the same version has. ``plugin.py`` puts our methods where those
tests list PEFT's. A failure must be in ``expected.json``, with its message and its reason, and what is there must fail:
anything else ends with exit code 1. Writes ``results.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
from plugin import NEEDED

from vision_lowrank.adapters.tuner import METHODS
from vision_lowrank.config import environment
from vision_lowrank.files import write_text
from vision_lowrank.registry import registry

HERE = Path(__file__).parent
MODULE = "test_custom_models.py"


def fetch(folder: Path) -> Path:
    """Download and unpack the source distribution of the installed PEFT into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--quiet", "--dest", folder, f"peft=={peft.__version__}"], check=True)
    with tarfile.open(next(folder.glob("peft-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"peft-{peft.__version__}"


def outcomes(source: Path, folder: Path, only: str | None) -> dict[str, tuple[str, str]]:
    """Run the tests in a copy under `folder`: test -> how it ended, and the first line of its error."""
    shutil.copytree(source / "tests", folder / "tests")
    (folder / "tests" / "__init__.py").touch()  # its files import each other, and the distribution leaves this one out
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    more = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PEFT_SUITE_RESULTS": str(folder / "outcomes.json")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "plugin", "-W", "ignore"]
    chosen = [] if only is None else ["-k", only]
    environ = os.environ | more | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--tb=line", f"tests/{MODULE}", *chosen], cwd=folder, env=environ, check=False)
    return json.loads((folder / "outcomes.json").read_text(encoding="utf-8"))


def judge(found: Mapping[str, tuple[str, str]], expected: list[dict[str, str]]) -> dict[str, Any]:
    """Count by method, and set failures against those that are expected.

    Returns:
        ``methods``: method -> passed, expected and skipped; ``exceptions``: those expected, with their counts;
        ``unexpected``: test -> message.
    """
    registry.load("adapter")
    classes = {METHODS[name].config.__name__: name for name in NEEDED}
    counts: dict[str, Counter[str]] = {name: Counter() for name in NEEDED}
    met: Counter[int] = Counter()
    unexpected = {}
    for test, (outcome, message) in sorted(found.items()):
        named = [name for name in NEEDED if name in test] or [name for kind, name in classes.items() if kind in test]
        kind = outcome
        if outcome == "failed":
            rows = (i for i, row in enumerate(expected) if re.search(row["test"], test) and row["says"] in message)
            number = next(rows, None)
            if number is None:
                kind, unexpected[test] = "unexpected", message
            else:
                kind = "expected"
                met[number] += 1
        counts[named[0]][kind] += 1
    exceptions = [row | {"count": met[number]} for number, row in enumerate(expected)]
    return {"methods": {n: dict(c) for n, c in counts.items()}, "exceptions": exceptions, "unexpected": unexpected}


def main() -> int:
    """Run the tests, write the results, and say what was not expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="PEFT's unpacked source distribution; fetched if not given")
    parser.add_argument("--only", help="tests with this in their names, as pytest's -k; writes nothing")
    arguments = parser.parse_args()
    expected = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.source or fetch(Path(folder))
        result = judge(outcomes(source, Path(folder) / "suite", arguments.only), expected)
    stale = [] if arguments.only else [row["test"] for row in result["exceptions"] if not row["count"]]
    for test, message in result["unexpected"].items():
        print(f"not expected: {test}: {message}")
    for test in stale:
        print(f"expected, and passes: {test}")
    if result["unexpected"] or stale:
        return 1
    if not arguments.only:
        facts = {
            "command": "python benchmarks/peft_suite/run.py",
            "peft": peft.__version__,
            "environment": environment(),
        }
        write_text(HERE / "results.json", json.dumps(facts | result, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
