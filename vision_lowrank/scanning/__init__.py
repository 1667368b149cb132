"""Looking at any pictures with a manipulation detector: inputs, one row for each of them, files that hold the rows.

``find_files`` lists the inputs, ``scan`` gives their rows, ``write_json`` and ``write_csv`` write them.
"""

from __future__ import annotations

from .detector import Detector, Threshold
from .files import Found, Source, find_files
from .header import make_header
from .photo import Photo, read_photo
from .rows import Row
from .run import Options, scan
from .tables import write_csv, write_json

__all__ = [
    "Detector",
    "Found",
    "Options",
    "Photo",
    "Row",
    "Source",
    "Threshold",
    "find_files",
    "make_header",
    "read_photo",
    "scan",
    "write_csv",
    "write_json",
]
