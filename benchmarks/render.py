"""Write the studies' tables into the documents that have a place for them: ``python benchmarks/render.py``.

A study is a folder with ``results.json`` and ``tables.py``, which has ``render_tables(result)``, Markdown, and, where
there is a picture, ``draw_figure(result)``, an SVG that goes to ``figure.svg`` in the same folder. The place for the
tables is in the study's own ``README.md``, and may be in the project's too, between two lines::

    <!-- NAME: made by benchmarks/render.py -->
    <!-- end -->

where NAME is the folder's path under ``benchmarks``. ``--check`` writes nothing and compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from textwrap import fill
from types import ModuleType
from typing import Any, NamedTuple

STUDIES = Path(__file__).parent
ROOT = STUDIES.parent
PLACE = re.compile(r"(<!-- (\S+): made by benchmarks/render.py -->\n).*?(<!-- end -->)", re.DOTALL)
Result = Mapping[str, Any]


class Study(NamedTuple):
    """A folder under ``benchmarks`` with committed results."""

    folder: Path

    @property
    def name(self) -> str:
        """As the places for its tables say it."""
        return self.folder.relative_to(STUDIES).as_posix()

    @property
    def result(self) -> Result:
        """What was committed."""
        return json.loads((self.folder / "results.json").read_text(encoding="utf-8"))

    def load_tables(self) -> ModuleType:
        """Load the study's ``tables.py`` by path, since all have the same file name."""
        module = ModuleType(f"tables of {self.name}")
        SourceFileLoader(module.__name__, str(self.folder / "tables.py")).exec_module(module)
        return module

    def render(self) -> str:
        """Render the tables, and how they came about."""
        result = self.result
        later = result.get("later")
        made = [f"Made by `{result['command']}` on {describe_machine(result)}."]
        made += [f"Added later by `{later['command']}`: {', '.join(later['methods'])}."] if later else []
        origin = "\n".join(fill(sentence, 120, break_on_hyphens=False) for sentence in made)
        return f"{self.load_tables().render_tables(result)}\n{origin}\n"

    def draw(self) -> None:
        """Write the figure, where the study has one."""
        draw_figure = getattr(self.load_tables(), "draw_figure", None)
        if draw_figure:
            (self.folder / "figure.svg").write_text(draw_figure(self.result), encoding="utf-8")


def describe_machine(result: Result) -> str:
    """Describe machine and version."""
    environment = result.get("environment") or next(iter(result["entries"].values()))["environment"]
    return f"{environment['processor']}, {environment['cores']} cores, torch {environment['packages']['torch']}"


def main() -> None:
    """Write, or compare with ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a document is not what the JSON says")
    check = parser.parse_args().check
    studies = [Study(path.parent) for path in sorted(STUDIES.rglob("results.json"))]
    rendered = {study.name: study.render() for study in studies}
    for path in (ROOT / "README.md", *(study.folder / "README.md" for study in studies)):
        text = path.read_text(encoding="utf-8")
        new = PLACE.sub(lambda place: f"{place[1]}{rendered[place[2]]}{place[3]}", text)
        if check and new != text:
            sys.exit(f"{path.relative_to(ROOT)} differs from the committed results: run benchmarks/render.py")
        if not check:
            path.write_text(new, encoding="utf-8")
    if not check:
        for study in studies:
            study.draw()


if __name__ == "__main__":
    main()
