"""``python tools/train.py CONFIG [key=value …]``: the same as ``vision-lowrank train``."""

import sys

from vision_lowrank.cli.main import main

main(["train", *sys.argv[1:]])
