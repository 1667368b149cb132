"""``python tools/detect_manipulation.py PATHS… --out DIR``: the same as ``vision-lowrank scan``."""

import sys

from vision_lowrank.cli.main import main

main(["scan", *sys.argv[1:]])
