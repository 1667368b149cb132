"""``python tools/track.py SOURCE --box X,Y,W,H``: the same as ``vision-lowrank track``."""

import sys

from vision_lowrank.cli.main import main

main(["track", *sys.argv[1:]])
