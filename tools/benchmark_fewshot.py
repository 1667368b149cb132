"""``python tools/benchmark_fewshot.py CONFIG --methods … --shots 1,2,4``: the same as ``vision-lowrank compare``."""

import sys

from vision_lowrank.cli.main import main

main(["compare", *sys.argv[1:]])
