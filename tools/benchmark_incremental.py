"""``python tools/benchmark_incremental.py RECIPE… --seeds 1,2,3``: the same as ``vision-lowrank incremental``."""

import sys

from vision_lowrank.cli.main import main

main(["incremental", *sys.argv[1:]])
