"""``python tools/eval.py ARTEFACT|CONFIG [key=value …]``: the same as ``vision-lowrank eval``."""

import sys

from vision_lowrank.cli.main import main

main(["eval", *sys.argv[1:]])
