"""The HTML page of a scan: one self-contained file, a table that sorts and filters, pictures beside their overlays.

:func:`write_scan_report` reads the header and rows of ``results.json`` and the thumbnails beside it. File names and a
model's text come from strangers: the template escapes every string, pictures are data URIs of files that this package
wrote, and the page's content policy forbids every request and every script but its own, which it knows by its hash.
Without scripts the page still shows everything, unsorted.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from ..files import write_text
from .encoding import data_uri, encode_jpeg
from .pages import template

PICTURES = 500  # rows that are shown with pictures; more would make a page that no browser opens with ease
VERDICTS = ("edited", "uncertain", "real", "error")
_ICON = 72
_POLICY = "style-src 'unsafe-inline'"


def write_scan_report(path: Path, header: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], root: Path) -> Path:
    """Write the page.

    Args:
        path: the file.
        header: of ``results.json``.
        rows: of ``results.json``; the most suspicious come first, and the first :data:`PICTURES` have pictures.
        root: folder that the rows' ``thumbnails`` are relative to.

    Returns:
        `path`.
    """
    ranked = sorted(rows, key=lambda row: (VERDICTS.index(_kind(row)), -(row["probability"] or 0), row["path"]))
    script = Markup(files("vision_lowrank.viz").joinpath("scan.js").read_text(encoding="utf-8"))
    context = {
        "header": header,
        "items": [_item(row, root if number < PICTURES else None) for number, row in enumerate(ranked)],
        "tally": {kind: sum(_kind(row) == kind for row in rows) for kind in VERDICTS},
        "left_out": max(0, len(rows) - PICTURES),
        "script": script,
        "head": Markup(_head(f"Scan of {len(rows)} picture{'s' * (len(rows) != 1)}", script)),
    }
    page = template("scan.html.jinja").render(context)
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))  # names of files may hold lone surrogates
    return path


def _head(name: str, script: str) -> str:
    """Render the head of every page, its policy widened to this one script, with this page's own style."""
    head = template("head.html.jinja").render(name=name)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    head = head.replace(_POLICY, f"{_POLICY}; script-src 'sha256-{digest}'", 1)
    style = files("vision_lowrank.viz").joinpath("scan.css").read_text(encoding="utf-8")
    return head.replace("</style>", f"{style}</style>", 1)


def _kind(row: Mapping[str, Any]) -> str:
    return "error" if row["error"] is not None else row["verdict"]


def _item(row: Mapping[str, Any], root: Path | None) -> dict[str, Any]:
    """Return what the template shows of a row; no pictures where `root` is None or they are missing."""
    pictures = _pictures([root / name for name in row["thumbnails"]]) if root and row["thumbnails"] else None
    return {**row, "kind": _kind(row), "rank": VERDICTS.index(_kind(row)), "pictures": pictures}


def _pictures(paths: Sequence[Path]) -> dict[str, str] | None:
    """Return data URIs of the picture, its overlay and a smaller picture for the table."""
    try:
        picture, shown = (path.read_bytes() for path in paths)
        icon = Image.open(io.BytesIO(picture))
        icon.thumbnail((2 * _ICON, _ICON))
        encoded = encode_jpeg(icon, 70)
    except OSError:
        return None
    return {"picture": data_uri(picture), "overlay": data_uri(shown), "icon": data_uri(encoded)}
